"""Command ``python -m data_prep.phantoms.aorta OUT``."""

import sys
from functools import partial

from data_prep.phantoms.aorta.aorta_phantom import write_aorta_phantom
from data_prep.phantoms.phantom_folder import run_phantom_command

main = partial(
    run_phantom_command,
    write_aorta_phantom,
    module="data_prep.phantoms.aorta",
    description="Write CT angiographies of dissected aortas in AortaSeg24's layout, with exact labels.",
    cases=30,
)


if __name__ == "__main__":
    sys.exit(main())
