"""Command ``python -m data_prep.phantoms.heart OUT``."""

import sys
from functools import partial

from data_prep.phantoms.heart.heart_phantom import write_phantom
from data_prep.phantoms.phantom_folder import run_phantom_command

main = partial(
    run_phantom_command,
    write_phantom,
    module="data_prep.phantoms.heart",
    description="Write beating hearts in ACDC's layout, with exact labels.",
    cases=60,
    has_test_cases=True,
    noun="patients",
)


if __name__ == "__main__":
    sys.exit(main())
