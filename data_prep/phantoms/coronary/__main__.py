"""Command ``python -m data_prep.phantoms.coronary OUT``."""

import sys
from functools import partial

from data_prep.phantoms.coronary.coronary_phantom import write_coronary_phantom
from data_prep.phantoms.phantom_folder import run_phantom_command

main = partial(
    run_phantom_command,
    write_coronary_phantom,
    module="data_prep.phantoms.coronary",
    description="Write coronary CT angiographies in ImageCAS's layout, with exact labels.",
    cases=40,
    has_test_cases=True,
)


if __name__ == "__main__":
    sys.exit(main())
