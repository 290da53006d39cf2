r"""Readings of damaged scan files, compared with other readers.

    python -m benchmarks.fuzz_readers --examples 5000 --json benchmarks/results/fuzz_readers.json

Small files of each format are damaged: bytes of the header or of the data replaced, bits flipped, the file cut, lines
of a text header removed, doubled or given other numbers. Every reading must end within 5 s and 500 MB, with a
:class:`uumamba.runtime.errors.CaseError` or with voxels, spacing and affine equal to those of an independent reader
(nibabel for NIfTI, pydicom for DICOM, ITK for the others, in a process of its own, because some headers end it). Of
every second PNG the checksums are corrected afterwards, so that what they protect is read. Then single bits of
compressed voxels are flipped; no file may give other voxels.
"""

import argparse
import gzip
import os
import resource
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from benchmarks.result_file import write_result
from benchmarks.scan import print_rows
from uumamba.data.scan import Scan, read_image
from uumamba.runtime.errors import CaseError

SECONDS, MEGABYTES = 5.0, 500.0
FORMATS = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".dcm", ".png")
COMPRESSED = (".nii.gz", ".mha", ".nrrd", ".png")
SHAPE_ZYX = (5, 6, 7)
_NUMBERS = (b"0", b"-1", b"1e999", b"nan", b"99999999999999999999", b"0.00001", b"7 7", b"x", b"")

Reading = tuple[NDArray[Any], NDArray[np.float64], tuple[float, ...]]


@dataclass
class Findings:
    """Counts of a format's readings, and the files that broke a promise.

    Attributes:
        counts: number of readings by outcome.
        broken: description of each broken promise.
        seconds: longest reading.
    """

    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0


def main(given: Sequence[str] | None = None) -> int:
    """Damage and read files; return 1 for a broken promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=5000, help="number of damaged files over all formats")
    parser.add_argument("--flips", type=int, default=1000, help="flipped bits in each compressed format")
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--quick", action="store_true", help="60 examples and 20 flips")
    options = parser.parse_args(given)
    examples, flips = (60, 20) if options.quick else (options.examples, options.flips)
    rows, before = [], measure_megabytes()
    with tempfile.TemporaryDirectory() as folder, Reference() as reference:
        for suffix in FORMATS:
            found = fuzz(suffix, examples // len(FORMATS), Path(folder), reference)
            rows.append(make_row(suffix, "damaged", found))
        for suffix in COMPRESSED:
            rows.append(make_row(suffix, "one bit flipped", flip_bits(suffix, flips, Path(folder))))
    print_rows(rows)
    megabytes = measure_megabytes() - before
    if options.json is not None:
        about = (
            "Small files of each format, damaged at random (seed 0). Equal: voxels, spacing and affine are those of "
            "nibabel, pydicom or ITK; alone: the other reader refuses the file or ends with it. No reading may be "
            f"unequal, raise another error than CaseError, or take over {SECONDS:g} s or {MEGABYTES:g} MB; the memory "
            f"of the process grew by {megabytes:.0f} MB."
        )
        write_result(options.json, rows, title="Damaged scan files", about=about)
    return int(any(row["broken"] for row in rows) or megabytes > MEGABYTES)


def measure_megabytes() -> float:
    """Return the largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(suffix: str, examples: int, folder: Path, reference: "Reference", *, seed: int = 0) -> Findings:
    """Damage files of a format and read each."""
    found, draws = Findings(), np.random.default_rng(seed)
    path = write_sample(folder, suffix)
    content, header_bytes = path.read_bytes(), find_header_bytes(path)
    if suffix == ".nii.gz":
        content = gzip.decompress(content)
    for number in range(examples):
        kind, damaged = damage(content, header_bytes, draws)
        if suffix == ".png" and number % 2:
            damaged = correct_checksums(damaged)
        path.write_bytes(gzip.compress(damaged, 1) if suffix == ".nii.gz" else damaged)
        outcome, seconds = read_once(path, reference)
        found.counts[outcome.split(":")[0]] += 1
        found.seconds = max(found.seconds, seconds)
        if outcome.startswith("broken") or seconds > SECONDS:
            found.broken.append(f"{suffix} {number} ({kind}, {seconds:.1f} s): {outcome}")
    return found


def flip_bits(suffix: str, flips: int, folder: Path, *, seed: int = 1) -> Findings:
    """Flip one bit of the compressed voxels at a time."""
    found, draws = Findings(), np.random.default_rng(seed)
    path = write_sample(folder, suffix, compress=True)
    content, whole = path.read_bytes(), read_image(path).array
    begin = 0 if suffix == ".nii.gz" else find_header_bytes(path)
    for position in draws.integers(8 * begin, 8 * len(content), flips).tolist():
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            is_equal = np.array_equal(read_image(path).array, whole)
        except CaseError:
            found.counts["refused"] += 1
            continue
        found.counts["equal" if is_equal else "broken"] += 1
        if not is_equal:
            found.broken.append(f"{suffix}: bit {position} gives other voxels")
    return found


def make_row(suffix: str, kind: str, found: Findings) -> dict[str, Any]:
    """Make a row of the table; broken promises are printed."""
    for line in found.broken:
        print(line, file=sys.stderr)
    outcomes = ("refused", "equal", "repaired", "alone", "broken")
    counts = {name: found.counts[name] for name in outcomes}
    return (
        {"format": suffix, "files": kind, "number": found.counts.total()}
        | counts
        | {"longest_s": round(found.seconds, 2)}
    )


def write_sample(folder: Path, suffix: str, *, compress: bool = False) -> Path:
    """Write a small scan of a format."""
    import SimpleITK

    values = np.random.default_rng(0).integers(0, 500, SHAPE_ZYX).astype(np.int16)
    image = SimpleITK.GetImageFromArray(values[:1] if suffix == ".dcm" else values)
    image.SetSpacing((1.25, 1.5, 8.0))
    image.SetOrigin((3.0, -4.0, 5.5))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    if suffix == ".png":
        image = SimpleITK.GetImageFromArray(values[0].astype(np.uint16))
    if suffix == ".dcm":
        for tag, value in (("0008|0060", "MR"), ("0018|0050", "8.0")):
            image.SetMetaData(tag, value)
    path = folder / f"scan{suffix}"
    SimpleITK.WriteImage(image, str(path), useCompression=compress)
    return path


def find_header_bytes(path: Path) -> int:
    """Return the length of a sample's header."""
    content = path.read_bytes()
    if path.name.endswith((".nii", ".nii.gz")):
        return 352
    if path.suffix == ".mha":
        return content.find(b"LOCAL\n") + len(b"LOCAL\n")
    if path.suffix == ".nrrd":
        return content.find(b"\n\n") + 2
    if path.suffix == ".png":
        return content.find(b"IDAT") + len(b"IDAT")
    return len(content) if path.suffix == ".mhd" else len(content) - 2 * SHAPE_ZYX[1] * SHAPE_ZYX[2]


def damage(content: bytes, header_bytes: int, draws: np.random.Generator) -> tuple[str, bytes]:
    """Damage a file in one of several ways; header fields most often."""
    head, data = content[:header_bytes], content[header_bytes:]
    is_text = head.isascii() and b"\n" in head
    kinds: Mapping[str, Callable[[], bytes]] = {
        "bytes of the header": lambda: _replace_bytes(head, draws) + data,
        "bits of the header": lambda: _flip(head, draws) + data,
        "bytes of the data": lambda: head + _replace_bytes(data, draws),
        "cut": lambda: content[: draws.integers(len(content))],
        "longer": lambda: content + draws.bytes(int(draws.integers(1, 4000))),
    }
    if is_text:
        kinds = (
            {"a number": lambda: _replace_number(head, draws) + data}
            | dict(kinds)
            | {"lines": lambda: _change_lines(head, draws) + data}
        )
    weights = np.array([3.0, 2.0, *[1.0] * (len(kinds) - 2)])
    kind = list(kinds)[int(draws.choice(len(kinds), p=weights / weights.sum()))]
    return kind, kinds[kind]()


def correct_checksums(content: bytes) -> bytes:
    """Write the right checksum after each chunk of a PNG."""
    changed, start = bytearray(content), 8
    while start + 12 <= len(content):
        stop = start + 8 + int.from_bytes(content[start : start + 4])
        changed[stop : stop + 4] = (
            zlib.crc32(content[start + 4 : stop]).to_bytes(4) if stop + 4 <= len(content) else b""
        )
        start = stop + 4
    return bytes(changed[: len(content)])


def _replace_bytes(part: bytes, draws: np.random.Generator) -> bytes:
    changed = bytearray(part)
    for position in draws.integers(0, len(part), draws.integers(1, 5)).tolist() if part else ():
        changed[position] = (0, 255, 128, int(draws.integers(256)))[draws.integers(4)]
    return bytes(changed)


def _flip(part: bytes, draws: np.random.Generator) -> bytes:
    changed = bytearray(part)
    position = int(draws.integers(8 * len(part)))
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)


def _replace_number(head: bytes, draws: np.random.Generator) -> bytes:
    words = head.split(b" ")
    numeric = [place for place, word in enumerate(words) if word[:1].isdigit() or word[:1] == b"-"]
    words[int(draws.choice(numeric))] = _NUMBERS[draws.integers(len(_NUMBERS))]
    return b" ".join(words)


def _change_lines(head: bytes, draws: np.random.Generator) -> bytes:
    lines = head.splitlines(keepends=True)
    place, other = draws.integers(0, len(lines), 2).tolist()
    changed: Sequence[bytes] = (lines[:place] + lines[place + 1 :], [*lines, lines[place]], lines)[draws.integers(3)]
    if changed is lines:
        lines[place], lines[other] = lines[other], lines[place]
    return b"".join(changed)


def read_once(path: Path, reference: "Reference") -> tuple[str, float]:
    """Read a file, and compare with the independent reader.

    Returns:
        ``refused``, ``equal``, ``repaired`` (not equal, with a warning), ``alone``, or ``broken`` with a reason; and
        the seconds.
    """
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            scan = read_image(path, keep_integers=True)
        except CaseError:
            return "refused", time.perf_counter() - began
        except Exception as error:  # noqa: BLE001 - any other error is what is looked for
            return f"broken: {type(error).__name__}: {error}", time.perf_counter() - began
        seconds = time.perf_counter() - began
        is_repaired = bool(caught)
        readers = {".nii": read_nibabel, ".gz": read_nibabel, ".dcm": read_pydicom}
        outcome = compare(scan, readers.get(path.suffix, reference.read)(path))
        return "repaired" if is_repaired and outcome != "equal" else outcome, seconds


def compare(scan: Scan, expected: Reading | None) -> str:
    """Compare a scan with another reading of its file."""
    if expected is None:
        return "alone"
    array, affine, spacing_mm = expected
    if scan.array.shape != array.shape or not np.allclose(scan.array, array, rtol=1e-5, equal_nan=True):
        return f"broken: other voxels, {scan.array.shape} and {array.shape}"
    if not np.allclose(scan.spacing_mm, spacing_mm, rtol=1e-4):
        return f"broken: spacing {scan.spacing_mm} and {spacing_mm}"
    if not np.allclose(scan.affine, affine, rtol=1e-3, atol=1e-3 * max(spacing_mm)):
        return f"broken: affine {scan.affine.tolist()} and {affine.tolist()}"
    return "equal"


def read_nibabel(path: Path) -> Reading | None:
    """Read a NIfTI file with nibabel; None if it refuses the file."""
    try:
        image: Any = nib.load(path)
        array = np.asarray(image.dataobj)
        affine, spacing = image.affine, image.header.get_zooms()[:3]
    except Exception:  # noqa: BLE001 - nibabel raises many kinds
        return None
    array = array.reshape((*array.shape, 1, 1)[:3]) if array.ndim < 3 or set(array.shape[3:]) == {1} else array
    return array, affine, tuple(map(float, (*spacing, *np.linalg.norm(affine[:3, :3], axis=0)[len(spacing) :])))


def read_pydicom(path: Path) -> Reading | None:
    """Read one slice with pydicom; None if it refuses the file.

    ITK takes a spacing of 1 for a kind of image that it does not know.
    """
    import pydicom

    warnings.simplefilter("ignore")  # the caller restores the filters
    try:
        found = pydicom.dcmread(path)
        array = found.pixel_array.T[..., None] * float(found.get("RescaleSlope", 1))
        rows, columns = map(float, found.PixelSpacing)
        right, down = np.reshape(found.ImageOrientationPatient, (2, 3)).astype(float)
        thickness = float(found.get("SpacingBetweenSlices", found.SliceThickness))
        origin = np.array(found.ImagePositionPatient, float)
    except Exception:  # noqa: BLE001 - pydicom raises many kinds
        return None
    lps = np.eye(4)
    lps[:3] = np.column_stack([right * columns, down * rows, np.cross(right, down) * thickness, origin])
    spacing = columns, rows, thickness
    return array + float(found.get("RescaleIntercept", 0)), np.diag([-1.0, -1, 1, 1]) @ lps, spacing


def read_itk(path: Path) -> Reading | None:
    """Read a file with ITK; None if it refuses the file."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError:
        return None
    if image.GetDimension() == 2:
        image = SimpleITK.JoinSeries(image)
    if path.suffix == ".png":
        image.SetSpacing((1.0, 1.0, 1.0))  # the resolution for printing is no spacing
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        return None
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1]) @ lps, image.GetSpacing()


class Reference:
    """ITK in a process that is replaced when it ends."""

    def __enter__(self) -> "Reference":
        self._pool = self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def read(self, path: Path) -> Reading | None:
        """Read a file with ITK; None if it cannot."""
        try:
            return self._pool.submit(read_itk, path).result()
        except BrokenProcessPool:
            self._pool = self._start()
            return None

    @staticmethod
    def _start() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_silence)


def _silence() -> None:
    """Drop what MetaIO and teem print."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


if __name__ == "__main__":
    sys.exit(main())
