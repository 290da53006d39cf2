"""``python -m uumamba`` is the command ``uumamba``; torchrun starts it so, too."""

from uumamba.cli import main

if __name__ == "__main__":
    main()
