"""The command ``uumamba``, also as ``python -m uumamba``, which torchrun starts."""


def main() -> None:
    """Run the command line, or name the package that it lacks.

    The generic packages work with torch, numpy and scipy alone; the command line does not.
    """
    try:
        from uumamba import cli
    except ModuleNotFoundError as error:
        needs = f"the command line needs the package {error.name}, which is missing"
        raise SystemExit(f"uumamba: {needs}. Fix: pip install {error.name}, or uumamba without --no-deps.") from None
    cli.main()


if __name__ == "__main__":
    main()
