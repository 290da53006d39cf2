"""Forty-two kinds of bad inputs, in every format that can carry them.

Each row has the number of the kind, a verdict, and for refusals the key of the error. ``refuse``: this case fails, with
a cure; ``repair``: it is read with a warning that names the repair; ``accept``: it is read without a warning.
"""

import gzip
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from tests.data.test_nifti import edit_header
from uumamba.data.case import Case, Manifest
from uumamba.data.preprocess import CtStatistics, PreprocessRecipe, preprocess
from uumamba.data.scan import ScanWarning, read_case, read_image, read_label
from uumamba.runtime.errors import CaseError, InputError

FILES = (".nii", ".nii.gz", ".mha", ".nrrd")
COMPRESSED = (".nii.gz", ".mha", ".nrrd")
SPACING = (1.5, 1.5, 8.0)
VOXELS: NDArray[Any] = np.random.default_rng(0).integers(1, 200, (7, 6, 5)).astype(np.int16)
STRUCTURES = {"RV": 1, "MYO": 2, "LV": 3}

Array = NDArray[Any]
Make = Callable[[Path], Any]


@dataclass(frozen=True)
class Row:
    """One bad input.

    Args:
        kind: number and words of the kind.
        verdict: ``refuse``, ``repair`` or ``accept``.
        make: function from an empty folder to the argument of ``read``.
        key: key of the error, or a part of the warning.
        read: function that reads what ``make`` returned.
        check: function that is given the result, and must be true.
    """

    kind: str
    verdict: str
    make: Make
    key: str = ""
    read: Callable[[Any], Any] = read_image
    check: Callable[[Any], bool] = lambda scan: True


def write(folder: Path, suffix: str, array: Array = VOXELS, affine: Array | None = None, name: str = "a") -> Path:
    """Write a scan of any format with an affine in RAS+."""
    affine = np.diag([*SPACING, 1.0]) if affine is None else affine
    path = folder / f"{name}{suffix}"
    if suffix.startswith(".nii"):
        nib.save(nib.Nifti1Image(array, affine), path)
        return path
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    if suffix == ".nrrd":
        return write_nrrd(path, array, lps)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    kinds = {"int16": "SHORT", "uint16": "USHORT", "uint8": "UCHAR", "float32": "FLOAT", "float64": "DOUBLE"}
    fields = {
        "ObjectType": "Image",
        "NDims": array.ndim,
        "BinaryData": "True",
        "CompressedData": "False",
        "TransformMatrix": format_numbers(np.eye(array.ndim) if array.ndim != 3 else (lps[:3, :3] / spacing).T),
        "Offset": format_numbers(np.zeros(array.ndim) if array.ndim != 3 else lps[:3, 3]),
        "ElementSpacing": format_numbers((*spacing, 1, 1)[: array.ndim]),
        "DimSize": " ".join(map(str, array.shape)),
        "ElementType": f"MET_{kinds[str(array.dtype)]}",
        "ElementDataFile": "LOCAL",
    }
    head = "".join(f"{key} = {value}\n" for key, value in fields.items())
    path.write_bytes(head.encode() + array.tobytes(order="F"))
    return path


def write_nrrd(path: Path, array: Array, lps: Array) -> Path:
    vectors = [f"({','.join(map(repr, map(float, lps[:3, axis])))})" for axis in range(3)]
    kinds = {"int16": "short", "uint16": "ushort", "uint8": "uchar", "float32": "float", "float64": "double"}
    fields = {
        "type": kinds[str(array.dtype)],
        "dimension": array.ndim,
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, array.shape)),
        "space directions": " ".join([*vectors, *["none"] * (array.ndim - 3)][: array.ndim]),
        "space origin": f"({','.join(map(repr, map(float, lps[:3, 3])))})",
        "endian": "little",
        "encoding": "raw",
    }
    head = "NRRD0004\n" + "".join(f"{key}: {value}\n" for key, value in fields.items()) + "\n"
    path.write_bytes(head.encode() + array.tobytes(order="F"))
    return path


def format_numbers(values: Any) -> str:
    return " ".join(repr(float(value)) for value in np.ravel(values))


def edit(path: Path, pattern: str, replacement: str) -> Path:
    content, count = re.subn(pattern.encode(), replacement.encode(), path.read_bytes(), count=1)
    assert count == 1, pattern
    path.write_bytes(content)
    return path


def compress(path: Path) -> Path:
    """Write a file again with compressed voxels."""
    if path.suffix != ".gz":
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(path), useCompression=True)
    return path


def change(path: Path, edited: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(edited(path.read_bytes()))
    return path


def set_spacing(path: Path, first: float) -> Path:
    """Set the spacing of the first axis in the header alone."""
    if path.suffix == ".mha":
        return edit(path, "ElementSpacing = 1.5", f"ElementSpacing = {first}")
    if path.suffix == ".nrrd":
        return edit(path, r"\(-1.5,", f"({first},")
    fields = {"srow_x": (first, 0, 0, 0)} if np.isfinite(first) and first else {}
    return edit_header(path, pixdim=(1, first, 1.5, 8, 1, 1, 1, 1), **fields)


def set_sizes(path: Path, sizes: tuple[int, int, int]) -> Path:
    if path.suffix == ".mha":
        return edit(path, "DimSize = .*", f"DimSize = {' '.join(map(str, sizes))}")
    if path.suffix == ".nrrd":
        return edit(path, "sizes: .*", f"sizes: {' '.join(map(str, sizes))}")
    return edit_header(path, dim=(3, *sizes, 1, 1, 1, 1))


def shear(degrees: float) -> Array:
    affine = np.diag([*SPACING, 1.0])
    affine[:2, 1] = 1.5 * np.sin(np.radians(degrees)), 1.5 * np.cos(np.radians(degrees))
    return affine


def orientations() -> Iterator[Array]:
    """Yield the affines of the 48 orders and directions of axes."""
    for order in np.array(np.meshgrid(*[range(3)] * 3)).reshape(3, -1).T:
        for signs in np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T:
            if len({*order.tolist()}) == 3:
                affine = np.eye(4)
                affine[:3, :3] = np.eye(3)[:, order] * signs * np.array(SPACING)
                yield affine


def body(value: float = np.nan, *, inside: bool = False) -> Array:
    voxels = np.zeros((20, 20, 8), np.float32)
    voxels[5:15, 5:15] = 100
    voxels[(9, 9, 3) if inside else (0, 0, 0)] = value
    return voxels


def pair(folder: Path, suffix: str, label: Array, affine: Array | None = None) -> Case:
    image = write(folder, suffix)
    return Case("c7", "c7", "", image, write(folder, suffix, label, affine, name="b"))


def read_pair(case: Case) -> Any:
    return read_case(case, structures=STRUCTURES)[1]


def read_map(path: Path) -> Any:
    return read_label(path, structures=STRUCTURES)


def moved(millimetres: float) -> Array:
    affine = np.diag([*SPACING, 1.0])
    affine[0, 3] = millimetres
    return affine


LABEL = (VOXELS % 4).astype(np.uint8)
CT = PreprocessRecipe(
    spacing_mm=(None, None, None), normalisation="ct", ct_statistics=CtStatistics(-1000, 1000, 0.0, 300.0)
)


def prepare_ct(image: Array) -> Any:
    return preprocess(image, spacing_mm=SPACING, recipe=CT, case_id="c7")


def make_ct(*, shift: int = 0, padding: int | None = None) -> Array:
    """Make a body at 40 HU in air."""
    voxels = np.full((20, 20, 8), -1000, np.int32)
    voxels[5:15, 5:15] = 40
    if padding is not None:
        voxels[:2] = padding
    return voxels + shift


def bad_name(name: str) -> Make:
    return lambda folder: Manifest("m", "CT", {"one": 1}, (Case(name, "p", "", folder / "a.nii.gz"),))


def make_special(path: Path, make: Callable[[Path], Any]) -> Path:
    make(path)
    return path


def dangle(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def make_bomb(path: Path) -> Path:
    """Add 4 MiB of zeros to the compressed voxels."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(gzip.decompress(content) + bytes(2**22)))
        return path
    end = b"LOCAL\n" if path.suffix == ".mha" else b"\n\n"
    begin = content.find(end) + len(end)
    bits = 15 if path.suffix == ".mha" else 31
    packer = zlib.compressobj(6, zlib.DEFLATED, bits)
    voxels = zlib.decompress(content[begin:], bits) + bytes(2**22)
    path.write_bytes(content[:begin] + packer.compress(voxels) + packer.flush())
    return path


def read_all(paths: list[Path]) -> list[Any]:
    return [read_image(path) for path in paths]


def are_orientations(scans: list[Any]) -> bool:
    return len(scans) == 48 and all(
        np.allclose(scan.affine, affine) for scan, affine in zip(scans, orientations(), strict=True)
    )


def write_cut(folder: Path, suffix: str, share: float) -> Path:
    return change(write(folder, suffix), lambda stored: stored[: int(share * len(stored))])


def flip_checksum(path: Path) -> Path:
    return change(path, lambda stored: stored[:-6] + bytes([stored[-6] ^ 1]) + stored[-5:])


def write_orientations(folder: Path, suffix: str) -> list[Path]:
    return [write(folder, suffix, affine=each, name=f"a{number}") for number, each in enumerate(orientations())]


def spoil_magic(path: Path) -> Path:
    edits = {".nrrd": ("NRRD", "NRRX"), ".mha": ("DimSize", "Dimsize")}
    return edit(path, *edits[path.suffix]) if path.suffix in edits else edit_header(path, magic=b"ni1")


def has_values(expected: Array) -> Callable[[Any], bool]:
    return lambda scan: np.array_equal(scan.array, expected)


def has_shape(*shape: int) -> Callable[[Any], bool]:
    return lambda scan: scan.array.shape == shape


def is_repaired(scan: Any) -> bool:
    return bool(scan.array.min() == 0 and np.isfinite(scan.array).all())


def list_file_rows(suffix: str) -> Iterator[Row]:
    """List the kinds of damaged files that a format can carry."""
    write_one: Callable[[Path], Path] = partial(write, suffix=suffix)

    yield Row("1 no bytes", "refuse", lambda folder: change(write_one(folder), lambda stored: b""), "file")
    for share in (0.1, 0.5, 0.99):
        yield Row(f"2 cut at {share:.0%}", "refuse", partial(write_cut, suffix=suffix, share=share), "file")
    if suffix in COMPRESSED:
        yield Row("3 wrong checksum", "refuse", lambda folder: flip_checksum(compress(write_one(folder))), "file")
        yield Row("9 more data", "refuse", lambda folder: make_bomb(compress(write_one(folder))), "file")
    if suffix == ".nii.gz":
        opposite = "not compressed, contrary to its name"
        yield Row("4 not compressed", "repair", lambda folder: change(write_one(folder), gzip.decompress), opposite)
    if suffix == ".nii":
        opposite = "is compressed, contrary to its name"
        yield Row("5 compressed", "repair", lambda folder: change(write_one(folder), gzip.compress), opposite)
    yield Row("6 more voxels in the header", "refuse", lambda folder: set_sizes(write_one(folder), (7, 6, 50)), "file")
    yield Row("7 wrong magic", "refuse", lambda folder: spoil_magic(write_one(folder)), "file")
    huge = (32767, 32767, 32767)
    yield Row("8 huge sizes", "refuse", lambda folder: set_sizes(write_one(folder), huge), "file")
    key = "shape" if suffix.startswith(".nii") else "file"
    yield Row("8 a negative size", "refuse", lambda folder: set_sizes(write_one(folder), (7, -6, 5)), key)
    for name, make in (("folder", Path.mkdir), ("pipe", os.mkfifo), ("dangling link", dangle)):
        yield Row(f"10 a {name}", "refuse", lambda folder, make=make: make_special(folder / f"a{suffix}", make), "file")
    sizes = (4000, 4000, 4000)
    yield Row("29 more memory than allowed", "refuse", lambda folder: set_sizes(write_one(folder), sizes), "file")
    for name in ("ä ö", "-a", "two words"):
        yield Row(f"41 the name {name!r}", "accept", partial(write, suffix=suffix, name=name))


def list_grid_rows(suffix: str) -> Iterator[Row]:
    """List the kinds of grids, of images and of labels on them."""

    def on(affine: Array) -> Make:
        return partial(write, suffix=suffix, affine=affine)

    def spaced(first: float) -> Make:
        return lambda folder: set_spacing(write(folder, suffix), first)

    def labelled(label: Array, affine: Array | None = None) -> Make:
        return partial(pair, suffix=suffix, label=label, affine=affine)

    yield Row("11 sheared by 5 degrees", "refuse", on(shear(5)), "affine")
    yield Row("11 sheared by half a degree", "repair", on(shear(0.5)), "0.50 degrees off")
    yield Row("12 axes 1e-4 off", "accept", on(shear(np.degrees(1e-4))))
    for value in (0.0, np.nan, np.inf) if suffix.startswith(".nii") else (0.0, np.nan):
        yield Row(f"15 a spacing of {value}", "refuse", spaced(value), "spacing_mm")
    yield Row("16 a negative determinant", "accept", on(np.diag([-1.5, 1.5, 8.0, 1.0])))
    every = partial(write_orientations, suffix=suffix)
    yield Row("17 all 48 orientations", "accept", every, read=read_all, check=are_orientations)
    yield Row("18 metres as millimetres", "refuse", spaced(0.0015), "spacing_mm")
    yield Row("19 label of another shape", "refuse", labelled(LABEL[:-1]), "label", read_pair)
    yield Row("20 label 50 mm off", "refuse", labelled(LABEL, moved(50)), "affine", read_pair)
    yield Row("20 label 0.4 voxels off", "repair", labelled(LABEL, moved(0.6)), "0.40 voxels apart", read_pair)
    yield Row("21 label flipped", "refuse", labelled(LABEL, np.diag([-1.5, 1.5, 8.0, 1.0])), "affine", read_pair)


def list_voxel_rows(suffix: str) -> Iterator[Row]:
    """List the kinds of shapes and values."""

    def of(array: Array) -> Make:
        return partial(write, suffix=suffix, array=array)

    is_nifti = suffix.startswith(".nii")
    yield Row("23 a cine", "refuse", of(np.stack([VOXELS] * 3, axis=3)), "shape")
    if suffix != ".nrrd":
        yield Row("22 a 2-D image", "accept", of(VOXELS[:, :, 0]), check=has_shape(7, 6, 1))
    if is_nifti:
        yield Row("24 one frame", "repair", of(VOXELS[..., None]), "is read as (7, 6, 5)", check=has_values(VOXELS))
    else:
        yield Row("24 one frame", "accept", of(VOXELS[..., None]), check=has_values(VOXELS))
    yield Row("25 five axes", "refuse", of(np.ones((4, 4, 4, 2, 2), np.int16)), "shape")
    yield Row("26 one slice", "accept", of(VOXELS[:, :, :1]), check=has_shape(7, 6, 1))
    yield Row("28 one voxel", "accept", of(VOXELS[:1, :1, :1]), check=has_shape(1, 1, 1))
    yield Row("30 NaN in air", "repair", of(body()), "outside the body", check=is_repaired)
    yield Row("30 NaN in the body", "refuse", of(body(inside=True)), "image")
    yield Row("30 2 % NaN", "refuse", of(np.where(np.arange(400) < 8, np.nan, 1.0).reshape(8, 10, 5)), "image")
    yield Row("34 1e300", "repair", of(np.where(VOXELS > 198, 1e300, 1.0)), "clipped to float32")
    saturated = np.where(VOXELS > 150, 65535, VOXELS).astype(np.uint16)
    yield Row("36 saturated", "accept", of(saturated), check=has_values(saturated))
    empty = np.zeros((4, 4, 4), np.uint8)
    yield Row("38 an empty label", "accept", of(empty), "", read_map, has_values(empty))
    yield Row("39 an unknown value", "refuse", of(LABEL + np.uint8(4)), "label", read_map)
    yield Row("40 values of 0.9999", "accept", of(LABEL * 0.9999), "", read_map, has_values(LABEL))
    for value in (255.0, -1.0, 0.9):
        yield Row(f"40 the value {value}", "refuse", of(np.where(LABEL == 1, value, 0.0)), "label", read_map)


def list_nifti_rows(suffix: str) -> Iterator[Row]:
    """List the kinds that need fields of NIfTI headers."""

    def field(**fields: Any) -> Make:
        return lambda folder: edit_header(write(folder, suffix), **fields)

    yield Row("13 sform against qform", "refuse", field(qform_code=1, quatern_d=1.0), "affine")
    yield Row("13 affine against pixdim", "refuse", field(pixdim=(1, 1.5, 1.5, 5, 1, 1, 1, 1)), "spacing_mm")
    yield Row("14 no codes", "refuse", field(sform_code=0, qform_code=0), "affine")
    yield Row("15 NaN in the affine", "refuse", field(srow_x=(np.nan, 0, 0, 0)), "affine")
    yield Row("18 metres", "repair", lambda folder: in_unit(folder, suffix, 1, 1e-3), "converted to millimetres")
    yield Row("18 microns", "repair", lambda folder: in_unit(folder, suffix, 3, 1e3), "converted to millimetres")
    yield Row("18 an unknown unit", "accept", field(xyzt_units=0))
    colours = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    yield Row("25 colours", "refuse", lambda folder: write(folder, suffix, colours), "dtype")
    for slope in (0.0, np.nan):
        yield Row(f"33 a slope of {slope}", "accept", field(scl_slope=slope), check=has_values(VOXELS))
    yield Row("37 complex voxels", "refuse", lambda folder: write(folder, suffix, VOXELS.astype(np.complex64)), "dtype")


def in_unit(folder: Path, suffix: str, code: int, factor: float) -> Path:
    path = write(folder, suffix, affine=np.diag([*np.multiply(SPACING, factor), 1.0]))
    return edit_header(path, xyzt_units=code)


OTHERS = (
    Row("31 a constant image", "refuse", lambda folder: np.zeros((20, 20, 8), np.int16), "image", prepare_ct),
    Row("32 unsigned units of CT", "repair", lambda folder: make_ct(shift=1024), "1024", prepare_ct),
    Row("35 padding of CT", "repair", lambda folder: make_ct(padding=-3024), "is set to air", prepare_ct),
    *(
        Row(f"41 the id {name!r}", "refuse", bad_name(name), "m: case_id", lambda _: None)
        for name in ("../a", "", "a/b")
    ),
)
NIFTI = (".nii", ".nii.gz")
LISTS = (
    *((list_rows, FILES) for list_rows in (list_file_rows, list_grid_rows, list_voxel_rows)),
    (list_nifti_rows, NIFTI),
)
ROWS = [
    *(
        pytest.param(row, id=f"{suffix} {row.kind}")
        for each, names in LISTS
        for suffix in names
        for row in each(suffix)
    ),
    *(pytest.param(row, id=row.kind) for row in OTHERS),
]


@pytest.mark.parametrize("row", ROWS)
def test_a_bad_input_is_refused_repaired_or_accepted(row: Row, tmp_path: Path) -> None:
    found: Any = None
    error: InputError | None = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = row.read(row.make(tmp_path))
        except InputError as raised:
            error = raised
    repairs = [str(each.message) for each in caught if issubclass(each.category, ScanWarning)]
    if row.verdict == "refuse":
        assert error is not None
        assert error.key == row.key
        assert error.fix if isinstance(error, CaseError) else row.kind.startswith("41")
        return
    assert error is None
    assert row.check(found)
    assert len(repairs) == (row.verdict == "repair"), repairs
    assert all(row.key in repair for repair in repairs)


def test_every_kind_of_file_has_a_row() -> None:
    numbers = {int(row.values[0].kind.split()[0]) for row in ROWS}
    assert numbers >= {*range(1, 42)} - {27}  # 27, smaller than a patch, is a test of the predictor
