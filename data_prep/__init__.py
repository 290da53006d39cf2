"""Public data sets and the phantom: one module each, from the raw layout to a manifest."""

from data_prep.acdc import read_acdc
from data_prep.aorta import read_aorta
from data_prep.folds import assign_folds
from data_prep.imagecas import read_imagecas
from data_prep.mnms import read_mnms
from data_prep.phantom import write_phantom

__all__ = ["assign_folds", "read_acdc", "read_aorta", "read_imagecas", "read_mnms", "write_phantom"]
