"""Tests of PNG against files written chunk by chunk, Pillow and ITK."""

import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from PIL import Image

from tests.data.formats.png_files import SAMPLES, SIGNATURE, chunk, header, make_png, pack_rows, write_png
from uumamba.data.formats.png import read_pixels
from uumamba.data.open_scan import open_scan
from uumamba.data.scan import ScanWarning, check_same_grid, read_image, read_label, write_label
from uumamba.data.warn import PixelSpacingWarning, warn_of_pixel_spacing
from uumamba.runtime.errors import CaseError

Refused = Any
Array = NDArray[Any]
KINDS = [(0, depth) for depth in (1, 2, 4, 8, 16)] + [(3, depth) for depth in (1, 2, 4, 8)] + [(2, 8), (4, 8), (6, 8)]
DISC = np.hypot(*(np.indices((40, 50)) - 20)) < 15


@pytest.fixture(autouse=True)
def _reset_spacing_warning() -> Iterator[None]:
    warn_of_pixel_spacing.cache_clear()
    yield
    warn_of_pixel_spacing.cache_clear()


def draw_samples(kind: int, depth: int, shape: tuple[int, int] = (11, 13)) -> Array:
    draws = np.random.default_rng(depth)
    samples = draws.integers(0, 2**depth, (*shape, SAMPLES[kind])).astype(np.uint16 if depth == 16 else np.uint8)
    if kind in (4, 6):
        samples[..., -1] = 255
    return samples


@pytest.mark.parametrize("shape", [(11, 13), (1, 1), (2, 3)])
@pytest.mark.parametrize("interlace", [False, True])
@pytest.mark.parametrize(("kind", "depth"), KINDS)
def test_samples_of_each_kind_and_depth_are_read_as_stored(
    tmp_path: Path, kind: int, depth: int, interlace: bool, shape: tuple[int, int]
) -> None:
    samples = draw_samples(kind, depth, shape)
    path = write_png(tmp_path / "a.png", samples, depth, kind, interlace=interlace)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if kind in (4, 6) else "error")
        found = read_pixels(path, case_id="a")
    colours = samples[..., :-1] if kind in (4, 6) else samples
    expected = colours[:, :, None].swapaxes(0, 1)
    assert found.dtype == samples.dtype
    assert np.array_equal(found, np.moveaxis(expected, -1, 0) if expected.shape[-1] > 1 else expected[..., 0])


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_grey_image_of_another_writer_is_read_as_by_itk(tmp_path: Path, dtype: str) -> None:
    rows, columns = np.indices((60, 80))  # smooth, so that rows have filters
    pixels = (rows * columns % 251 + rows * (257 if dtype == "uint16" else 1) % 250).astype(dtype)
    path = tmp_path / "a.png"
    for optimize in (False, True):
        Image.fromarray(pixels).save(path, optimize=optimize)
        scan, image = read_image(path, keep_integers=True), SimpleITK.ReadImage(str(path))
        assert scan.array.dtype == dtype
        assert np.array_equal(scan.array[:, :, 0].T, pixels)
        assert np.array_equal(SimpleITK.GetArrayFromImage(image), pixels)
        flat = SimpleITK.JoinSeries(image)
        lps = np.eye(4)
        lps[:3, :3], lps[:3, 3] = np.reshape(flat.GetDirection(), (3, 3)), flat.GetOrigin()
        assert np.array_equal(scan.affine, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)
        assert scan.spacing_mm == (1.0, 1.0, 1.0)


def test_colours_are_read_as_by_pillow(tmp_path: Path) -> None:
    pixels = draw_samples(2, 8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_pixels(tmp_path / "a.png", case_id="a")[..., 0], pixels.T)
    scan = read_image(tmp_path / "a.png", channels=("red", "green", "blue"))
    assert np.array_equal(scan.array[..., 0], pixels.T)


@pytest.mark.parametrize(
    ("kind", "channels", "fix"),
    [
        (2, ("grey",), "save it in grey"),
        (0, ("red", "green", "blue"), "give a colour image, or a grey image for each channel"),
        (2, ("one", "two"), "give a grey image for each channel"),
        (0, ("one", "two"), "give a grey image for each channel"),
    ],
)
def test_another_number_of_colours_is_refused(
    tmp_path: Path, refused: Refused, kind: int, channels: tuple[str, ...], fix: str
) -> None:
    path = write_png(tmp_path / "a.png", draw_samples(kind, 8), 8, kind)
    with refused("channels", case_id="a.png") as error:
        read_image(path, channels=channels)
    assert error.value.fix.startswith(fix)


def test_one_warning_per_process_says_that_a_pixel_is_taken_for_a_millimetre(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", draw_samples(0, 8))
    with pytest.warns(PixelSpacingWarning, match="1 mm per pixel is assumed") as caught:
        scans = [read_image(path), read_image(path)]
    assert len(caught) == 1
    assert {scan.spacing_mm for scan in scans} == {(1.0, 1.0, 1.0)}


def test_an_assumed_spacing_is_used_unless_the_slice_is_thinner_than_its_pixels(
    tmp_path: Path, refused: Refused
) -> None:
    path = write_png(tmp_path / "a.png", draw_samples(0, 8))
    with pytest.warns(ScanWarning, match="the assumed 0.5 x 0.25 x 2 mm is used"):
        scan = read_image(path, assume_spacing_mm=(0.5, 0.25, 2.0))
    assert scan.spacing_mm == (0.5, 0.25, 2.0)
    assert np.array_equal(scan.affine, np.diag([-0.5, -0.25, 2.0, 1.0]))
    with refused("assume_spacing_mm", got=(2.0, 2.0, 1.0)):
        read_image(path, assume_spacing_mm=(2.0, 2.0, 1.0))


def test_a_picture_may_have_more_pixels_than_a_patient_millimetres(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", np.arange(3000, dtype=np.uint8)[None])
    assert read_image(path).array.shape == (3000, 1, 1)


def test_metadata_does_not_change_the_samples(tmp_path: Path) -> None:
    samples = draw_samples(0, 8)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # rotate by 90 degrees for display
    chunks = (
        chunk(b"gAMA", (45455).to_bytes(4))
        + chunk(b"tRNS", b"\0\5")
        + chunk(b"pHYs", (2835).to_bytes(4) * 2 + b"\1")
        + chunk(b"eXIf", rotated.tobytes()[6:])
        + chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(10**8)))
    )
    path = write_png(tmp_path / "a.png", samples, before=chunks)
    scan = read_image(path, keep_integers=True)
    assert np.array_equal(scan.array[:, :, 0].T, samples[..., 0])
    assert scan.spacing_mm == (1.0, 1.0, 1.0)


def test_indices_of_a_palette_are_labels_but_no_image(tmp_path: Path, refused: Refused) -> None:
    indices = draw_samples(3, 2)[..., 0]
    write_png(tmp_path / "a.png", indices, 2, 3)
    label = read_label(tmp_path / "a.png", structures={"RV": 1, "MYO": 2, "LV": 3})
    assert np.array_equal(label.array[:, :, 0].T, indices)
    with refused("image", got="indices of a palette", case_id="a.png"):
        read_image(tmp_path / "a.png")


def test_a_mask_of_0_and_255_and_one_of_a_single_bit_have_these_values(tmp_path: Path, refused: Refused) -> None:
    Image.fromarray(DISC.astype(np.uint8) * 255).save(tmp_path / "grey.png")
    Image.fromarray(DISC).save(tmp_path / "bits.png")
    assert np.array_equal(read_label(tmp_path / "grey.png", structures={"disc": 255}).array[:, :, 0].T == 255, DISC)
    assert np.array_equal(read_label(tmp_path / "bits.png", structures={"disc": 1}).array[:, :, 0].T == 1, DISC)
    for name, value, found in (("grey", 1, "255"), ("bits", 255, "1")):
        with refused("label", got=found):
            read_label(tmp_path / f"{name}.png", structures={"disc": value})


def test_an_alpha_channel_is_dropped_with_a_warning_if_constant(tmp_path: Path, refused: Refused) -> None:
    samples = draw_samples(4, 8)
    path = write_png(tmp_path / "a.png", samples, 8, 4)
    with pytest.warns(ScanWarning, match="a.png: its constant alpha channel is dropped"):
        assert np.array_equal(read_image(path).array[:, :, 0].T, samples[..., 0])
    samples[3, 4, 1] = 7
    with refused("image", got="an alpha channel from 7 to 255"):
        read_image(write_png(path, samples, 8, 4))


def test_a_label_in_colours_is_refused(tmp_path: Path, refused: Refused) -> None:
    path = write_png(tmp_path / "a.png", draw_samples(2, 8), 8, 2)
    with refused("channels", got="a.png in colour (3 channels)", case_id="case"):
        read_label(path, structures={"one": 1}, case_id="case")


GREY = draw_samples(0, 8)
HEIGHT, WIDTH = GREY.shape[:2]
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "an empty file": (lambda: b"", "file"),
    "another format": (lambda: b"GIF89a" + bytes(100), "file"),
    "a header with a wrong checksum": (lambda: SIGNATURE + header(WIDTH, HEIGHT, crc=1) + make_png(GREY)[33:], "file"),
    "an unknown depth": (lambda: SIGNATURE + header(5, 5, depth=3), "file"),
    "an unknown kind": (lambda: SIGNATURE + header(5, 5, kind=5), "file"),
    "an unknown interlacing": (lambda: SIGNATURE + header(5, 5, interlace=2), "file"),
    "no column": (lambda: SIGNATURE + header(0, 5), "file"),
    "colours of 16 bits": (lambda: make_png(draw_samples(2, 16), 16, 2), "file"),
    "grey and alpha of 16 bits": (lambda: make_png(draw_samples(4, 16), 16, 4), "file"),
    "more pixels than memory": (lambda: SIGNATURE + header(2**20, 2**20), "file"),
    "several frames": (lambda: make_png(GREY, before=chunk(b"acTL", bytes(7) + b"\2" + bytes(4))), "shape"),
    "an unknown critical chunk": (lambda: make_png(GREY, before=chunk(b"ABCD")), "file"),
    "two headers": (lambda: make_png(GREY, before=header(WIDTH, HEIGHT)), "file"),
    "a wrong checksum": (lambda: make_png(GREY, after=chunk(b"tEXt", b"a\0b", crc=1)), "file"),
    "no pixels": (lambda: SIGNATURE + header(5, 5) + chunk(b"IEND"), "file"),
    "a missing row": (lambda: make_png(GREY, pixels=pack_rows(GREY[:-1], 8)), "file"),
    "a row too many": (lambda: make_png(GREY, pixels=pack_rows(np.vstack([GREY, GREY[:1]]), 8)), "file"),
    "uncompressed pixels": (lambda: SIGNATURE + header(5, 5) + chunk(b"IDAT", bytes(40)) + chunk(b"IEND"), "file"),
    "an unknown filter": (lambda: make_png(GREY, pixels=b"\7" + pack_rows(GREY, 8)[1:]), "file"),
    "a bomb": (lambda: make_png(GREY, pixels=bytes(10**8)), "file"),
    "no end": (lambda: make_png(GREY)[:-12], "file"),
    "half of a chunk": (lambda: make_png(GREY)[:70], "file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, refused: Refused) -> None:
    make, key = BAD[name]
    (tmp_path / "a.png").write_bytes(make())
    with refused(key, case_id="case"):
        read_image(tmp_path / "a.png", case_id="case")


def test_no_flipped_bit_changes_a_sample(tmp_path: Path) -> None:
    samples = draw_samples(0, 4, (5, 6))
    content = make_png(samples, 4)
    path = tmp_path / "a.png"
    for position in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(CaseError, match="Fix: "):
            read_image(path)


def test_a_file_that_is_cut_off_is_refused_from_its_length(tmp_path: Path, refused: Refused) -> None:
    path = write_png(tmp_path / "a.png", draw_samples(0, 8))
    assert open_scan(path).read_grid().array.shape == (13, 11, 1)
    path.write_bytes(path.read_bytes()[:-20])
    with refused("file"):
        open_scan(path).read_grid()


def test_bytes_after_the_end_give_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(make_png(GREY) + bytes(100))
    expected = read_image(path).array
    path.write_bytes(make_png(GREY) + b"notes")
    with pytest.warns(ScanWarning, match="a.png has other bytes than zeros after its end"):
        assert np.array_equal(read_image(path).array, expected)


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.bmp", "a.tif"])
def test_other_pictures_are_refused_with_the_advice_to_convert_them(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"picture")
    with pytest.raises(CaseError, match="convert the picture to PNG"):
        read_image(tmp_path / name)


@pytest.mark.parametrize(("structures", "dtype"), [({"one": 1, "two": 2}, "uint8"), ({"one": 7, "two": 700}, "uint16")])
def test_a_label_map_is_written_and_read_back_on_the_grid_of_its_picture(
    tmp_path: Path, structures: dict[str, int], dtype: str
) -> None:
    like = read_image(write_png(tmp_path / "a.png", draw_samples(0, 8)))
    classes = np.random.default_rng(0).integers(0, 3, like.array.shape).astype(np.uint8)
    write_label(tmp_path / "out.png", classes, like, structures=structures)
    values = np.array([0, *structures.values()], dtype=dtype)[classes]
    found = read_label(tmp_path / "out.png", structures=structures)
    assert found.array.dtype == dtype
    assert np.array_equal(found.array, values)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), values[:, :, 0].T)
    assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "out.png"))), values[..., 0].T)
    check_same_grid(like, found, case_id="a")


def test_a_png_holds_one_slice_only(tmp_path: Path, refused: Refused) -> None:
    nib.save(nib.Nifti1Image(np.ones((4, 5, 2), np.int16), np.eye(4)), tmp_path / "a.nii")
    with refused("path"):
        write_label(tmp_path / "out.png", np.zeros((4, 5, 2), np.uint8), read_image(tmp_path / "a.nii"))


def test_a_label_as_nifti_fits_its_picture_on_the_same_grid_only(tmp_path: Path, refused: Refused) -> None:
    image = read_image(write_png(tmp_path / "a.png", draw_samples(0, 8)))
    label = SimpleITK.JoinSeries(SimpleITK.ReadImage(str(tmp_path / "a.png")) * 0)
    SimpleITK.WriteImage(label, str(tmp_path / "a.nii.gz"))  # as ITK converts a picture
    check_same_grid(image, read_label(tmp_path / "a.nii.gz", structures={}), case_id="a")
    nib.save(nib.Nifti1Image(np.zeros(image.array.shape, np.uint8), np.eye(4)), tmp_path / "b.nii.gz")
    with refused("affine"):
        check_same_grid(image, read_label(tmp_path / "b.nii.gz", structures={}), case_id="a")
