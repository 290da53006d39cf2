"""Readers of scan files, one file per format.

Each returns a :class:`~uumamba.data.formats.stored_volume.StoredVolume` from the header alone. All rules about sizes,
spacings and axes are in :mod:`uumamba.data.open_scan`, and hold for every format.
"""
