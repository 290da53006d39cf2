"""Phantom of brain lesions in two MRI sequences, in nnU-Net's layout."""
