"""Command ``python -m data_prep.phantoms.lesions OUT``."""

import sys
from functools import partial

from data_prep.phantoms.lesions.lesion_phantom import write_lesion_phantom
from data_prep.phantoms.phantom_folder import run_phantom_command

main = partial(
    run_phantom_command,
    write_lesion_phantom,
    module="data_prep.phantoms.lesions",
    description="Write brain lesions in T1 and FLAIR in nnU-Net's layout, with exact labels.",
    cases=20,
)


if __name__ == "__main__":
    sys.exit(main())
