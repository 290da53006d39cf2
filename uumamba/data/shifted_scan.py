"""Copy of a NIfTI file in another scanner's style.

Other voxels, the same header byte for byte.
"""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.nifti import read_nifti
from uumamba.data.vendor_styles import Volume, shift_style
from uumamba.runtime.files import whole_file

_GZIP_MAGIC = b"\x1f\x8b"


def write_shifted(
    source: Path | str, target: Path | str, style: str, *, case_id: str, seed: int = 0, strength: float = 1.0
) -> None:
    """Write a scan as another scanner might show it, whole or absent.

    The target has the header, extensions, data type and scaling of the source, byte for byte; integers are rounded and
    kept in the range of their type. At strength 0 the voxels are the source's, too. Equal sources give equal bytes.

    Args:
        source: ``.nii`` or ``.nii.gz``, one 3-D volume.
        target: compressed where the name ends in ``.gz``.
        style: a name of :data:`uumamba.data.vendor_styles.STYLES`.
        case_id: names the case in the draws and in errors.
        seed: another one gives other draws.
        strength: 0 to 1.

    Raises:
        CaseError: the source cannot be read with certainty.
        UsageError: there is no such style, or the strength is not between 0 and 1.
    """
    source, target = Path(source), Path(target)
    scan = read_nifti(source, case_id=case_id)
    content = source.read_bytes()
    content = gzip.decompress(content) if content.startswith(_GZIP_MAGIC) else content
    dtype = np.dtype(scan.header.get_data_dtype())
    begin = max(int(scan.header["vox_offset"]), scan.header.sizeof_hdr)
    end = begin + scan.array.size * dtype.itemsize
    stored = np.frombuffer(content[begin:end], dtype).reshape(scan.array.shape, order="F")
    shifted = shift_style(stored, style, case_id=case_id, spacing_mm=scan.spacing_mm, seed=seed, strength=strength)
    voxels = stored if strength == 0.0 else _as_stored(shifted, dtype)
    written = content[:begin] + voxels.tobytes(order="F") + content[end:]
    with whole_file(target) as unfinished:
        unfinished.write_bytes(gzip.compress(written, 4, mtime=0) if target.name.endswith(".gz") else written)


def _as_stored(image: Volume, dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "f":
        return image.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(image.astype(np.float64)), limits.min, limits.max).astype(dtype)
