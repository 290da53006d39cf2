"""Copy of a NIfTI file in the style of another scanner."""

import gzip
from pathlib import Path

import numpy as np

from uumamba.data.formats.nifti import GZIP_MAGIC, NIFTI_SUFFIXES
from uumamba.data.open_scan import open_scan
from uumamba.data.vendor_styles import shift_style
from uumamba.runtime.errors import require
from uumamba.runtime.files import whole_file


def write_shifted(
    source: Path | str, target: Path | str, style: str, *, case_id: str, seed: int = 0, strength: float = 1.0
) -> None:
    """Write a scan in the style of another scanner, atomically.

    Header, extensions, data type and scaling of the source are kept byte for byte; integers are rounded and clipped to
    the range of their dtype. At strength 0 the voxels are also unchanged. Equal sources give equal bytes.

    Args:
        source: ``.nii`` or ``.nii.gz``, one 3-D volume.
        target: compressed if the name ends in ``.gz``.
        style: a name of :data:`uumamba.data.vendor_styles.STYLES`.
        case_id: key of the draws, and name in errors.
        seed: seed of the draws.
        strength: 0 to 1.

    Raises:
        CaseError: the source cannot be read.
        UsageError: the style is unknown, or the strength is not from 0 to 1.
    """
    source, target = Path(source), Path(target)
    require(source.name.lower().endswith(NIFTI_SUFFIXES), "source", got=source.name, expected="a NIfTI file")
    scan = open_scan(source, case_id=case_id).read()
    stored_bytes = source.read_bytes()
    content = gzip.decompress(stored_bytes) if stored_bytes.startswith(GZIP_MAGIC) else stored_bytes
    dtype = np.dtype(scan.header.get_data_dtype())
    begin = max(int(scan.header["vox_offset"]), scan.header.sizeof_hdr)
    end = begin + scan.array.size * dtype.itemsize
    stored = np.frombuffer(content[begin:end], dtype).reshape(scan.array.shape, order="F")
    shifted = shift_style(stored, style, case_id=case_id, spacing_mm=scan.spacing_mm, seed=seed, strength=strength)
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        shifted = np.clip(np.rint(shifted.astype(np.float64)), limits.min, limits.max)
    voxels = stored if strength == 0.0 else shifted.astype(dtype)
    written = content[:begin] + voxels.tobytes(order="F") + content[end:]
    with whole_file(target) as unfinished:
        unfinished.write_bytes(gzip.compress(written, 4, mtime=0) if target.name.endswith(".gz") else written)
