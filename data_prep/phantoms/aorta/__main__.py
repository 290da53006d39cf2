"""``python -m data_prep.phantoms.aorta``."""

from data_prep.phantoms.aorta.aorta_phantom import main

main()
