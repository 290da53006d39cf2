"""``python -m data_prep.phantoms.coronary``."""

import sys

from data_prep.phantoms.coronary.coronary_phantom import main

sys.exit(main())
