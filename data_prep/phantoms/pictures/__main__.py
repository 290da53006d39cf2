"""Command ``python -m data_prep.phantoms.pictures OUT``."""

import sys
from functools import partial

from data_prep.phantoms.phantom_folder import run_phantom_command
from data_prep.phantoms.pictures.picture_phantom import write_picture_phantom

main = partial(
    run_phantom_command,
    write_picture_phantom,
    module="data_prep.phantoms.pictures",
    description="Write grey pictures of cells with masks of 0 and 255 as PNG.",
    cases=40,
)


if __name__ == "__main__":
    sys.exit(main())
