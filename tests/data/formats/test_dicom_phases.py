"""A DICOM cine is its phases, each read as a series of its own; incomplete and mixed ones are refused."""

import locale
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread
from pydicom.dataset import Dataset

from tests.data.formats.dicom_files import compress, make_cine, make_enhanced, make_slices, write_slices
from uumamba.data.cine import Cine
from uumamba.data.dicom_cine import is_dicom_cine, read_dicom_cine
from uumamba.data.formats.dicom_studies import DicomSeries
from uumamba.data.scan import read_image

SLICES, PHASES = 3, 4


@pytest.fixture
def keep_locale() -> Iterator[None]:
    """SimpleITK, the reference, leaves the process in the C locale."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


def shuffle(images: list[Dataset]) -> list[Dataset]:
    order = np.random.default_rng(1).permutation(len(images))
    return [images[index] for index in order]


def without(images: list[Dataset], *indices: int) -> list[Dataset]:
    return [image for index, image in enumerate(images) if index not in indices]


def check_phases(cine: Cine, images: list[Dataset], folder: Path, phases: int = PHASES) -> None:
    """Compare each phase with a folder that holds only its files."""
    assert len(cine.frames) == phases
    for phase, frame in enumerate(cine.frames):
        alone = read_image(write_slices(folder / str(phase), images[phase::phases]))
        assert np.array_equal(frame.array, alone.array)
        assert np.array_equal(frame.affine, alone.affine)
        assert frame.spacing_mm == alone.spacing_mm


ORDERS: dict[str, dict[str, Any]] = {
    "trigger times": {"InstanceNumber": lambda place, phase: 99 - 4 * place - phase},
    "temporal positions": {"TriggerTime": None, "TemporalPositionIdentifier": lambda _, phase: phase + 1},
    "times of acquisition": {
        "TriggerTime": 0,
        "InstanceNumber": 1,
        "AcquisitionTime": lambda place, phase: f"10{place:02}{phase:02}.5",
    },
    "instance numbers": {"TriggerTime": None, "AcquisitionTime": lambda place, _: f"10{place:02}00"},
}


@pytest.mark.parametrize("order", ORDERS)
def test_each_phase_is_the_series_of_its_files(tmp_path: Path, order: str) -> None:
    images = make_cine(SLICES, PHASES, **ORDERS[order])
    folder = write_slices(tmp_path / "cine", shuffle(images))
    assert is_dicom_cine(folder)
    cine = read_dicom_cine(folder, case_id="c")
    check_phases(cine, images, tmp_path)
    expected = pytest.approx([phase * 42.0 for phase in range(PHASES)]) if order == "trigger times" else None
    assert cine.times_ms == expected, "the mean over slices of 40, 42 and 44 ms per phase"


def test_an_enhanced_cine_is_the_cine_of_its_frames(tmp_path: Path) -> None:
    images = make_cine(SLICES, PHASES, RescaleIntercept=0)
    enhanced = make_enhanced(images)
    for index, (group, image) in enumerate(zip(enhanced.PerFrameFunctionalGroupsSequence, images, strict=True)):
        trigger, content = Dataset(), Dataset()
        trigger.NominalCardiacTriggerDelayTime = float(image.TriggerTime)
        content.TemporalPositionIndex = index % PHASES + 1
        group.CardiacSynchronizationSequence, group.FrameContentSequence = [trigger], [content]
    del enhanced.TriggerTime
    file = write_slices(tmp_path / "one", [enhanced]) / "slice0.dcm"
    assert is_dicom_cine(file)
    cine = read_dicom_cine(file, case_id="c")
    check_phases(cine, images, tmp_path)
    assert cine.times_ms == pytest.approx([0, 42, 84, 126])


def test_one_slice_of_several_phases_is_a_cine(tmp_path: Path) -> None:
    images = make_cine(1, PHASES)
    cine = read_dicom_cine(write_slices(tmp_path / "cine", images), case_id="c")
    check_phases(cine, images, tmp_path)
    assert cine.frames[0].spacing_mm[2] == 8


def test_chosen_files_are_a_cine_without_the_others_of_their_folder(tmp_path: Path) -> None:
    images = make_cine(SLICES, PHASES)
    folder = write_slices(tmp_path / "cine", images)
    files = tuple(folder / f"slice{index}.dcm" for index in range(8))
    cine = read_dicom_cine(DicomSeries(folder, files), case_id="c")
    assert [frame.shape[2] for frame in cine.frames] == [2] * PHASES


@pytest.mark.parametrize("kind", ["still", "still with a double slice", "two series", "damaged", "text", "localizer"])
def test_other_folders_are_no_cines(tmp_path: Path, kind: str) -> None:
    images = make_slices(5)
    if kind == "still with a double slice":
        images = make_slices(5, ImagePositionPatient=lambda index: [0, 0, (0, 6, 6, 12, 18)[index]])
    elif kind == "two series":
        images = make_cine(SeriesInstanceUID=lambda place, _: f"1.{place}")
    elif kind == "localizer":
        images = make_cine(ImageOrientationPatient=lambda _, phase: ([1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1])[phase % 2])
    folder = write_slices(tmp_path / "series", images)
    if kind in ("damaged", "text"):
        folder = write_slices(tmp_path / "cine", make_cine())
        file = folder / "slice3.dcm"
        file.write_bytes(file.read_bytes()[:200] if kind == "damaged" else b"text")
    assert not is_dicom_cine(folder)
    assert not is_dicom_cine(tmp_path / "a.nii.gz")
    assert not is_dicom_cine((folder, folder))


FAULTS: dict[str, tuple[Callable[[], list[Dataset]], str, str]] = {
    "a missing frame": (
        lambda: without(make_cine(5, 20), 47),
        "shape",
        r"different numbers of phases: slice 3 with 19, expected 20 phases, as in 4 of 5 slices",
    ),
    "a frame twice": (
        lambda: [*make_cine(), make_cine()[5]],
        "shape",
        r"different numbers of phases: slice 2 with 5, expected 4 phases",
    ),
    "all frames twice": (
        lambda: [*make_cine(), *make_cine()],
        "shape",
        r"two frames at one position with one TriggerTime: \w+\.dcm and \w+\.dcm",
    ),
    "all frames twice, without times": (
        lambda: [*make_cine(TriggerTime=None), *make_cine(TriggerTime=None)],
        "shape",
        "two frames at one position with one InstanceNumber",
    ),
    "nothing that orders the frames": (
        lambda: make_cine(TriggerTime=None, InstanceNumber=1),
        "shape",
        "two frames at one position with one number or time",
    ),
    "another missing phase in each of two slices": (
        lambda: without(make_cine(5, 20), 3, 30, 45, 65, 85),
        "shape",
        r"slice \d with TriggerTime .* phase \d+, expected about",
    ),
    "other temporal positions in one slice": (
        lambda: make_cine(TriggerTime=None, TemporalPositionIdentifier=lambda place, phase: phase + (place == 1)),
        "shape",
        "slice 2 with TemporalPositionIdentifier",
    ),
    "magnitude and velocity": (
        lambda: make_cine(ImageType=lambda _, phase: ["ORIGINAL", "PRIMARY", "MP"[phase % 2]]),
        "file",
        "frames at one position with ImageType",
    ),
    "inversion times": (
        lambda: make_cine(InversionTime=lambda _, phase: 100 + 80 * phase),
        "file",
        "InversionTime 100.0 and 180.0 and 260.0, expected frames that differ in time only",
    ),
    "a missing slice": (lambda: without(make_cine(5), *range(8, 12)), "spacing_mm", "distances of 5.00 to 10.00 mm"),
    "several orientations": (
        lambda: make_cine(ImageOrientationPatient=lambda place, _: [1, 0, 0, 0, *((0, 1) if place == 1 else (1, 0))]),
        "file",
        "ImageOrientationPatient",
    ),
    "a phase moved in its plane": (
        lambda: make_cine(ImagePositionPatient=lambda place, phase: [0.4 * (phase == 2), 0, 5 * place]),
        "affine",
        "phase 3 0.80 voxels from phase 1, expected all phases at the same positions",
    ),
    "several sizes of pixels": (
        lambda: make_cine(PixelSpacing=lambda place, _: [1, 1 + (place == 2)]),
        "file",
        "PixelSpacing",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_cine_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    make, key, match = FAULTS[fault]
    folder = write_slices(tmp_path / "cine", shuffle(make()))
    with pytest.raises(ValueError, match=match) as error:
        read_dicom_cine(folder, case_id="c7")
    assert (error.value.key, error.value.case_id) == (key, "c7")
    assert error.value.fix


def test_a_cine_larger_than_the_limit_is_refused(tmp_path: Path, refused: Any) -> None:
    folder = write_slices(tmp_path / "cine", make_cine())
    with refused("file", case_id="c"):
        read_dicom_cine(folder, case_id="c", max_bytes=SLICES * 33 * 40 * 4 * 2)


@pytest.mark.usefixtures("keep_locale")
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # UIDs of these files have leading zeros
@pytest.mark.parametrize(("study", "slices"), [("SCD0000101", 12), ("SCD0000301", 10)])
def test_a_real_cine_is_read_as_by_simpleitk_from_files_sorted_by_pydicom(
    find_real: Callable[[str], Path], study: str, slices: int
) -> None:
    folder = find_real(f"sunnybrook/dicoms/{study}")
    assert is_dicom_cine(folder)
    cine = read_dicom_cine(folder, case_id=study)
    assert len(cine.frames) == 2
    headers = [dcmread(file, stop_before_pixels=True) for file in folder.iterdir()]
    along = np.cross(*np.reshape([float(each) for each in headers[0].ImageOrientationPatient], (2, 3)))
    for index, frame in enumerate(cine.frames):
        phases = {(header.InstanceNumber - 1) % 20 for header in headers}
        phase = [header for header in headers if (header.InstanceNumber - 1) % 20 == sorted(phases)[index]]
        phase.sort(key=lambda header: along @ np.array(header.ImagePositionPatient, dtype=float))
        image = SimpleITK.ReadImage([header.filename for header in phase])
        assert frame.shape == (256, 256, slices)
        assert np.array_equal(frame.array, SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0))
        ras_mm = np.array(image.TransformIndexToPhysicalPoint((255, 255, slices - 1))) * (-1, -1, 1)
        found_mm = frame.affine @ (255, 255, slices - 1, 1)
        np.testing.assert_allclose(found_mm[:3], ras_mm, atol=0.01)
        times = [float(header.TriggerTime) for header in phase]
        assert cine.times_ms is not None
        assert cine.times_ms[index] == pytest.approx(np.mean(times))


def test_all_phases_of_a_compressed_cine_are_decoded_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_cine(2, PHASES)
    expected = read_dicom_cine(write_slices(tmp_path / "plain", images), case_id="c")
    started: list[subprocess.Popen[bytes]] = []

    class CountedPopen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", CountedPopen)
    packed = [compress(image, "JPEG2000", tmp_path / "scratch.dcm") for image in images]
    cine = read_dicom_cine(write_slices(tmp_path / "packed", packed), case_id="c")
    assert len(started) == 1
    assert started[0].returncode is not None
    for frame, plain in zip(cine.frames, expected.frames, strict=True):
        assert np.array_equal(frame.array, plain.array)
