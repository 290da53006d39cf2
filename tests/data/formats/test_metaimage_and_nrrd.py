"""Tests of MetaImage and NRRD against ITK."""

import gzip
import os
import re
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from uumamba.data.open_scan import SCAN_SUFFIXES
from uumamba.data.scan import read_image
from uumamba.runtime.errors import CaseError

DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def make_image(dtype: str = "int16", shape: tuple[int, ...] = (5, 6, 7)) -> SimpleITK.Image:
    """Make an oblique image with the shape in z, y, x."""
    values = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    image = SimpleITK.GetImageFromArray(values)
    turned = SimpleITK.Euler3DTransform()
    turned.SetRotation(0.1, -0.2, 0.7)
    image.SetDirection(turned.GetMatrix())
    image.SetSpacing((1.25, 1.5, 8.0))
    image.SetOrigin((3.0, -4.0, 5.5))
    return image


def assert_equals_itk(path: Path, *, exact: bool = True) -> None:
    """Compare a reading with ITK's, voxel for voxel."""
    scan, image = read_image(path, keep_integers=True), SimpleITK.ReadImage(str(path))
    expected = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    assert np.array_equal(scan.array, expected)
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(scan.affine, RAS_OF_LPS @ lps, rtol=0, atol=1e-5)
    np.testing.assert_allclose(scan.spacing_mm, image.GetSpacing(), rtol=1e-6)


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr", ".seg.nrrd"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_dtype_and_compression_is_read_as_by_itk(tmp_path: Path, suffix: str, compress: bool, dtype: str) -> None:
    path = tmp_path / f"scan{suffix}"
    SimpleITK.WriteImage(make_image(dtype), str(path), useCompression=compress)
    assert_equals_itk(path)
    assert path.name.endswith(SCAN_SUFFIXES)


def edit(path: Path, pattern: str, replacement: str) -> Path:
    """Replace text of a header once, in the bytes of the file."""
    content, count = re.subn(pattern.encode(), replacement.encode(), path.read_bytes(), count=1)
    assert count == 1, pattern
    path.write_bytes(content)
    return path


def write_image(folder: Path, suffix: str, *, compress: bool = False) -> Path:
    path = folder / f"scan{suffix}"
    SimpleITK.WriteImage(make_image(), str(path), useCompression=compress)
    return path


def test_big_endian_voxels_other_spaces_and_other_field_names_are_read_as_by_itk(tmp_path: Path) -> None:
    mha = edit(write_image(tmp_path, ".mha"), "MSB = False", "MSB = True")
    for old, new in (("Offset = ", "Origin = "), ("TransformMatrix", "Orientation")):
        edit(mha, old, new)
        assert_equals_itk(mha)
    nrrd = edit(write_image(tmp_path, ".nrrd"), "endian: little", "endian: big")
    for space in ("right-anterior-superior", "LAS", "left-posterior-superior"):
        edit(nrrd, "space: .*", f"space: {space}")
        edit(nrrd, "\n\n", "\n# a comment: of a program\nmodality:=MR\n\n")
        if space != "LAS":  # ITK takes left-anterior-superior for LPS
            assert_equals_itk(nrrd)
    first = read_image(edit(nrrd, "space: .*", "space: LAS")).affine
    assert np.allclose(np.diag([-1, 1, 1, 1]) @ first, read_image(edit(nrrd, "space: .*", "space: RAS")).affine)


def test_the_distance_of_voxels_is_read_as_by_itk_where_their_size_is_given_too(tmp_path: Path) -> None:
    size, comments = "ElementSize = 1.25 1.5 5", "Comment = a\nComment = b"  # slices of 5 mm with gaps
    path = edit(write_image(tmp_path, ".mha"), "ElementType", f"{size}\n{comments}\nDistanceUnits = mm\nElementType")
    assert_equals_itk(path)
    assert read_image(edit(path, "ElementSpacing = .*\n", "")).spacing_mm == (1.25, 1.5, 5.0)
    assert_equals_itk(edit(write_image(tmp_path, ".nrrd"), "kinds", 'space units: "mm" "mm" "mm"\nkinds'))


def test_a_header_size_of_the_voxels_file_is_skipped(tmp_path: Path) -> None:
    path = write_image(tmp_path, ".mhd")
    expected = read_image(path).array
    voxels = path.with_suffix(".raw")
    voxels.write_bytes(b"notes" * 3 + voxels.read_bytes())
    for size in (15, -1):
        edit(path, "(HeaderSize.*\n)?ElementDataFile", f"HeaderSize = {size}\nElementDataFile")
        assert np.array_equal(read_image(path).array, expected)
    path = write_image(tmp_path, ".nhdr")
    voxels.write_bytes(b"notes" * 3 + voxels.read_bytes())
    for size in (15, -1):
        edit(path, "(byte skip.*\n)?data file", f"byte skip: {size}\ndata file")
        assert np.array_equal(read_image(path).array, expected)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
def test_no_flipped_bit_of_compressed_voxels_changes_a_voxel(tmp_path: Path, suffix: str) -> None:
    path = write_image(tmp_path, suffix, compress=True)
    content, whole = path.read_bytes(), read_image(path).array
    begin = {".nii.gz": 0, ".mha": content.find(b"LOCAL\n") + 6, ".nrrd": content.find(b"\n\n") + 2}[suffix]
    draws = np.random.default_rng(0)
    for position in draws.choice(8 * (len(content) - begin), 200, replace=False).tolist():
        flipped = bytearray(content)
        flipped[begin + position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        with suppress(CaseError):
            assert np.array_equal(read_image(path).array, whole), position  # such as the time in gzip's header


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("compress", [False, True])
def test_voxels_that_a_header_does_not_announce_give_a_warning(tmp_path: Path, suffix: str, compress: bool) -> None:
    path = tmp_path / f"scan{suffix}"
    SimpleITK.WriteImage(make_image(), str(path), compress)
    edit(path, "6 5\n", "6 3\n")
    with pytest.warns(UserWarning, match=f"scan{suffix} has other bytes than zeros after its voxels"):
        assert read_image(path).array.shape == (7, 6, 3)


def test_zeros_after_the_voxels_are_padding(tmp_path: Path) -> None:
    path = write_image(tmp_path, ".mha")
    write_bytes(path, path.read_bytes() + bytes(512))
    assert_equals_itk(path)


# Files that are refused, by the edit of the header, the key and a part of what was found.

Make = Callable[[Path], Path]


def of(suffix: str, pattern: str, replacement: str) -> Make:
    return lambda folder: edit(write_image(folder, suffix), pattern, replacement)


def outside(suffix: str, pattern: str, target: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / "deep").mkdir()
        (folder / "passwd").write_bytes(bytes(1000))
        (folder / "deep" / "link.raw").symlink_to("../passwd")
        os.mkfifo(folder / "deep" / "pipe.raw")
        return edit(write_image(folder / "deep", suffix), pattern, target.format(folder=folder))

    return make


def shorter(suffix: str) -> Make:
    """Compress half of the voxels; the compressed data is whole."""

    def make(folder: Path) -> Path:
        path = write_image(folder, suffix)
        content, end = path.read_bytes(), b"LOCAL\n" if suffix == ".mha" else b"\n\n"
        begin = content.find(end) + len(end)
        compress = zlib.compress if suffix == ".mha" else gzip.compress
        path.write_bytes(content[:begin] + compress(content[begin:][:210]))
        pair = ("CompressedData = False", "CompressedData = True") if suffix == ".mha" else ("raw", "gzip")
        return edit(path, *pair)

    return make


SHEARED = " ".join(map(str, (1, 0, 0, np.sqrt(0.5), np.sqrt(0.5), 0, 0, 0, 1)))
REFUSED: dict[str, tuple[Make, str, str]] = {
    "half the voxels in zlib": (shorter(".mha"), "file", "bytes"),
    "half the voxels in gzip": (shorter(".nrrd"), "file", "bytes"),
    "compressed in name only": (of(".mha", "CompressedData = False", "CompressedData = True"), "file", "Error -3"),
    "gzip in name only": (of(".nrrd", "raw", "gzip"), "file", "Error -3"),
    "a list of no files": (of(".mha", "LOCAL", "LIST"), "file", "ElementDataFile 'LIST'"),
    "a pattern of files": (of(".mha", "LOCAL", "a%03d.raw 1 9 1"), "file", "ElementDataFile 'a%03d.raw 1 9 1'"),
    "a list of nrrd": (of(".nrrd", "\n\n", "\ndata file: LIST\n\n"), "file", "data file 'LIST'"),
    "an absolute data file": (outside(".mhd", "scan.raw", "{folder}/passwd"), "file", "ElementDataFile '/"),
    "a data file above": (outside(".mhd", "scan.raw", "../passwd"), "file", "'../passwd'"),
    "a link to a file above": (outside(".mhd", "scan.raw", "link.raw"), "file", "'link.raw'"),
    "a pipe as data file": (outside(".mhd", "scan.raw", "pipe.raw"), "file", "'pipe.raw'"),
    "a data file above of nrrd": (outside(".nhdr", "scan.raw", "../passwd"), "file", "'../passwd'"),
    "a matrix of length 2": (of(".mha", "TransformM.*", "TransformMatrix = 2 0 0 0 2 0 0 0 2"), "affine", "2"),
    "a matrix of eight numbers": (of(".mha", "TransformM.*", "TransformMatrix = 1 0 0 0 1 0 0 0"), "file", ""),
    "axes at 45 degrees": (of(".mha", "TransformM.*", f"TransformMatrix = {SHEARED}"), "affine", "45.0 degrees"),
    "a collapsed matrix": (of(".mha", "TransformM.*", "TransformMatrix = 0 0 0 0 0 0 0 0 0"), "affine", "0 x 0"),
    "nan in the matrix": (of(".mha", "TransformM.*", "TransformMatrix = nan 0 0 0 1 0 0 0 1"), "affine", "nan"),
    "an infinite offset": (of(".mha", "Offset = .*", "Offset = inf 0 0"), "affine", "inf"),
    "no spacing": (of(".mha", "ElementSpacing = .*\n", ""), "spacing_mm", "nan x nan x nan"),
    "a spacing of zero": (of(".mha", "ElementSpacing = .*", "ElementSpacing = 0 1 1"), "spacing_mm", "0 x 1 x 1"),
    "metres": (of(".mha", "ElementSpacing = .*", "ElementSpacing = 0.001 0.001 0.008"), "spacing_mm", "too small"),
    "an axis of nrrd without length": (
        of(".nrrd", r"space directions: \([^)]*\)", "space directions: (0,0,0)"), "spacing_mm", "0 x",
    ),
    "no directions": (of(".nrrd", "space directions: .*\n", ""), "file", "no space directions"),
    "no space": (of(".nrrd", "space: .*\n", ""), "file", "no space"),
    "an unknown space": (of(".nrrd", "space: .*", "space: scanner-xyz"), "file", "'scanner-xyz'"),
    "an origin of two numbers": (of(".nrrd", "space origin: .*", "space origin: (1,2)"), "file", "'(1,2)'"),
    "voxels as text": (of(".mha", "BinaryData = True", "BinaryData = False"), "file", "BinaryData 'False'"),
    "nrrd as text": (of(".nrrd", "raw", "ascii"), "file", "encoding 'ascii'"),
    "an unknown type": (of(".mha", "MET_SHORT", "MET_STRING"), "file", "'MET_STRING'"),
    "an unknown type of nrrd": (of(".nrrd", "type: short", "type: block"), "file", "'block'"),
    "no byte order": (of(".nrrd", "endian: little\n", ""), "file", "no endian"),
    "channels": (
        of(".mha", "ElementDataFile", "ElementNumberOfChannels = 3\nElementDataFile"), "shape", "3 values per voxel",
    ),
    "a negative size": (of(".mha", "DimSize = 7", "DimSize = -7"), "file", "DimSize '-7 6 5'"),
    "no sizes": (of(".nrrd", "sizes: .*", "sizes:"), "file", "sizes ''"),
    "other counts of axes": (of(".mha", "NDims = 3", "NDims = 4"), "file", "NDims '4'"),
    "a thousand axes": (of(".mha", "DimSize = .*", f"DimSize = {'1 ' * 1000}"), "file", "DimSize '1 1"),
    "two spacings": (of(".mha", "(ElementSpacing = ).*", r"\g<0>\n\g<1>1 1 1"), "file", "8' and '1 1 1'"),
    "an origin by two names": (of(".mha", "Offset = .*", r"\g<0>\nPosition = 9 9 9"), "file", "Offset '3 -4 5.5' and"),
    "two spaces": (of(".nrrd", "space: .*", r"\g<0>\nspace: ras"), "file", "'left-posterior-superior' and 'ras'"),
    "centimetres": (of(".mha", "ElementType", "DistanceUnits = cm\nElementType"), "file", "DistanceUnits 'cm'"),
    "centimetres of nrrd": (of(".nrrd", "kinds", 'space units: "cm" "cm" "cm"\nkinds'), "file", "space units"),
    "a slope": (
        of(".mha", "ElementType", "ElementToIntensityFunctionSlope = 2.0\nElementType"), "file", "FunctionSlope '2.0'",
    ),
    "huge sizes": (of(".mha", "DimSize = .*", "DimSize = 999999 999999 999999"), "file", "GiB"),
    "sizes beyond integers": (of(".nrrd", "sizes: .*", f"sizes: {'9' * 40} 6 5"), "file", "sizes '999"),
    "no data file": (of(".mha", "ElementDataFile.*", "Comment = none"), "file", "before ElementDataFile"),
    "no empty line": (of(".nrrd", r"\n\n[\s\S]*", "\n"), "file", "no data file"),
    "no magic": (of(".nrrd", "NRRD0004", "NRRD9999"), "file", "'NRRD9999'"),
    "no empty header": (lambda folder: write_bytes(folder / "scan.nrrd", b""), "file", "the first line ''"),
    "a header without an end": (lambda folder: write_bytes(folder / "scan.mha", b"a = 1\n" * 400_000), "file", ""),
}  # fmt: skip


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("fault", REFUSED)
def test_a_faulty_header_is_refused_with_its_key(tmp_path: Path, fault: str, refused: Any) -> None:
    make, key, got = REFUSED[fault]
    path = make(tmp_path)
    with refused(key, case_id="c7") as error:
        read_image(path, case_id="c7")
    assert got in str(error.value.got)
    assert error.value.fix
    assert len(str(error.value)) < 500


def test_an_assumed_spacing_replaces_a_missing_one_only(tmp_path: Path, refused: Any) -> None:
    path = write_image(tmp_path, ".mha")
    assert read_image(path, assume_spacing_mm=(9, 9, 9)).spacing_mm == (1.25, 1.5, 8.0)
    edit(path, "ElementSpacing = .*\n", "")
    with pytest.warns(UserWarning, match=r"the assumed 2 x 3 x 4 mm is used"):
        scan = read_image(path, assume_spacing_mm=(2, 3, 4))
    assert scan.spacing_mm == (2, 3, 4)
    np.testing.assert_allclose(np.linalg.norm(scan.affine[:3, :3], axis=0), (2, 3, 4))
    collapsed = edit(write_image(tmp_path, ".nrrd"), r"space directions: \([^)]*\)", "space directions: (0,0,0)")
    with refused("spacing_mm") as error:
        read_image(collapsed)
    assert error.value.fix == "correct the header", "its direction is missing, too"
    for wrong in ((0, 1, 1), (1, 1), (1e-4, 1, 1)):
        with refused("assume_spacing_mm", got=wrong):
            read_image(path, assume_spacing_mm=wrong)
