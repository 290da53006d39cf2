"""Of a DICOM study the series of the model is chosen, or several are named."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, SecondaryCaptureImageStorage

from tests.data.formats.dicom_files import make_cine, make_slices, write_slices
from uumamba.data.case_files import ImagePath, find_scans
from uumamba.data.dicom_cine import is_dicom_cine, read_dicom_cine
from uumamba.data.formats.dicom_studies import DicomSeries
from uumamba.data.scan import ScanWarning, read_image
from uumamba.data.series_choice import SeriesWish
from uumamba.runtime.errors import CaseError

MR = SeriesWish(modality="MR")
AXIAL, CORONAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]


def series(number: int, description: str, count: int = 4, **tags: Any) -> list[Dataset]:
    usual = {"Modality": "MR", "SeriesInstanceUID": f"1.2.840.{number}", "SOPInstanceUID": None}
    images = make_slices(count, SeriesNumber=number, SeriesDescription=description, **{**usual, **tags})
    for index, image in enumerate(images):
        image.SOPInstanceUID = f"1.9.{number}.{index}"
    return images


def localizer(number: int = 1) -> list[Dataset]:
    return series(
        number,
        "localizer",
        6,
        ImageOrientationPatient=lambda index: (AXIAL, CORONAL)[index % 2],
        ImagePositionPatient=lambda index: [0, 0, 5 * index],
    )


def report() -> list[Dataset]:
    (image,) = series(90, "report", 1, SOPClassUID=BasicTextSRStorage, Modality="SR")
    for keyword in ("Rows", "PixelData"):
        del image[keyword]
    return [image]


OTHERS: dict[str, list[Dataset]] = {
    "a localizer of several orientations": localizer(),
    "a localizer of one orientation": series(1, "scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    "a single slice": series(1, "four chambers", 1),
    "a single slice of several phases": series(1, "four chambers", ImagePositionPatient=[0, 0, 0]),
    "secondary captures": series(1, "screen", SOPClassUID=SecondaryCaptureImageStorage),
    "a segmentation": series(1, "masks", Modality="SEG"),
    "a CT": series(1, "angiography", Modality="CT"),
    "slices of several sizes": series(1, "mixed", Rows=lambda index: 33 - index % 2),
    "a report": report(),
}


def only(found: Any) -> tuple[str, ImagePath]:
    ((case_id, image),) = found.items()
    return case_id, image


@pytest.mark.parametrize("layout", ["one folder", "sub-folders", "files above sub-folders", "an exported disc"])
@pytest.mark.parametrize("other", OTHERS)
def test_the_fitting_series_of_a_study_is_chosen_and_named(tmp_path: Path, other: str, layout: str) -> None:
    study = tmp_path / "study"
    scan, second = series(5, "short axis"), OTHERS[other]
    (study / "a" / "s1").mkdir(parents=True)
    (study / "a" / "s2").mkdir()
    if layout == "an exported disc":
        (study / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
        (study / "README").write_text("x")
    write_slices(study if layout == "one folder" else study / "a" / "s1", scan, name="IM{}")
    write_slices(study / "a" / "s2" if layout in ("sub-folders", "an exported disc") else study, second, name="X{}.dcm")
    expected = read_image(write_slices(tmp_path / "alone", scan))
    if other == "a report":
        case_id, image = only(find_scans(study, option="-i", series=MR))
    else:
        match = r"used is number 5, short axis, MR, 4 slices, UID 1\.2\.840\.5; left out are number 1, \w+"
        with pytest.warns(ScanWarning, match=match):
            case_id, image = only(find_scans(study, option="-i", series=MR))
    assert case_id in ("study", "a", "s1")
    assert np.array_equal(read_image(image).array, expected.array)


def test_a_series_spread_over_sub_folders_is_one_scan(tmp_path: Path) -> None:
    images = series(5, "short axis", 6)
    expected = read_image(write_slices(tmp_path / "alone", images))
    for index, image in enumerate(images):
        folder = tmp_path / "study" / f"part{index // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        write_slices(folder, [image])
        (folder / "slice0.dcm").rename(folder / f"{index}.dcm")
    case_id, image = only(find_scans(tmp_path / "study", option="-i"))
    assert case_id == "study"
    assert np.array_equal(read_image(image).array, expected.array)


def test_folders_of_one_series_each_are_cases_as_before(tmp_path: Path) -> None:
    for name in ("p1", "p2"):
        images = series(5, "heart", StudyInstanceUID=f"1.{name[1:]}", SeriesInstanceUID=f"1.{name[1:]}.1")
        (tmp_path / "all" / name).mkdir(parents=True)
        write_slices(tmp_path / "all" / name, images)
    found = find_scans(tmp_path / "all", option="-i", series=MR)
    assert found == {"p1": tmp_path / "all" / "p1", "p2": tmp_path / "all" / "p2"}
    assert find_scans(tmp_path / "all" / "p1", option="-i") == {"p1": tmp_path / "all" / "p1"}


def test_folders_with_the_uids_of_another_one_are_cases_of_their_own(tmp_path: Path) -> None:
    """Programs that remove patient data give many patients the same UIDs."""
    for name in ("p1", "p2", "p3"):
        (tmp_path / "all" / name).mkdir(parents=True)
        write_slices(tmp_path / "all" / name, series(5, "heart"))
    assert set(find_scans(tmp_path / "all", option="-i", series=MR)) == {"p1", "p2", "p3"}


def test_a_model_of_ct_gets_the_ct_and_one_without_a_modality_is_told_of_both(tmp_path: Path) -> None:
    study = write_slices(tmp_path / "study", [*series(5, "heart"), *series(6, "thorax", 3, Modality="CT")])
    with pytest.warns(ScanWarning, match="used is number 6, thorax, CT, 3 slices"):
        _, image = only(find_scans(study, option="-i", series=SeriesWish(modality="CT")))
    assert read_image(image).shape[2] == 3
    _, image = only(find_scans(study, option="-i"))
    with pytest.raises(CaseError, match="2 DICOM series"):
        read_image(image)


def two_scans(folder: Path) -> Path:
    images = [*series(5, "short axis"), *series(12, "Mueller whole heart", 3), *localizer()]
    cine = make_cine(3, 5, SeriesNumber=20, SeriesInstanceUID="1.2.840.777", SeriesDescription="cine SAX")
    return write_slices(folder, [*images, *cine])


def test_several_fitting_series_are_named_with_all_that_tells_them_apart(tmp_path: Path) -> None:
    _, image = only(find_scans(two_scans(tmp_path / "study"), option="-i", series=MR))
    with pytest.raises(CaseError, match="choose one with --series UID") as error:
        read_image(image, case_id="study")
    assert error.value.got == (
        "study with 3 DICOM series: number 5, short axis, MR, 4 slices, UID 1.2.840.5; "
        "number 12, without a description, MR, 3 slices, UID 1.2.840.12; "
        "number 20, cine SAX, MR, 3 slices x 5 phases, UID 1.2.840.777"
    ), "a description with the patient's name is not shown"


@pytest.mark.parametrize(
    ("names", "slices"),
    [
        (["1.2.840.5"], 4),
        (["12"], 3),
        (["0.12"], 3),
        (["1.2.840.12"], 3),
        (["short"], 4),
        (["SHORT AXIS"], 4),
        (["no such", "5"], 4),
    ],
)
def test_a_series_is_chosen_by_uid_its_end_number_or_description(
    tmp_path: Path, names: Sequence[str], slices: int
) -> None:
    with pytest.warns(ScanWarning, match="left out are"):
        case_id, image = only(find_scans(two_scans(tmp_path / "study"), option="-i", series=SeriesWish(names, "MR")))
    assert case_id == "study"
    assert read_image(image).shape[2] == slices


@pytest.mark.parametrize("name", ["1.2.840.6", "99", "5.", "", "Mueller"])
def test_a_name_of_no_series_is_refused_with_the_series(tmp_path: Path, name: str, refused: Any) -> None:
    study = two_scans(tmp_path / "study")
    with refused("--series", got=name) as error:
        find_scans(study, option="-i", series=SeriesWish([name], "MR"))
    assert "number 5, short axis, MR, 4 slices, UID 1.2.840.5" in error.value.expected


def test_a_name_of_several_series_leaves_the_choice_among_them(tmp_path: Path) -> None:
    study = write_slices(tmp_path / "study", [*series(5, "SAX a"), *series(6, "SAX b"), *series(7, "other")])
    _, image = only(find_scans(study, option="-i", series=SeriesWish(["sax"])))
    with pytest.raises(CaseError, match=r"2 DICOM series: number 5, SAX a.*number 6, SAX b"):
        read_image(image)


def test_many_series_are_counted_where_a_message_cannot_show_them(tmp_path: Path) -> None:
    images = [image for number in range(30) for image in series(number + 1, f"cine {number}", 2)]
    _, image = only(find_scans(write_slices(tmp_path / "study", images), option="-i"))
    with pytest.raises(CaseError, match=r"30 DICOM series: number 1, cine 0, .*; and \d+ more"):
        read_image(image)


def test_a_damaged_file_of_a_study_is_never_left_out(tmp_path: Path) -> None:
    study = two_scans(tmp_path / "study")
    (study / "slice2.dcm").write_bytes(b"x")
    with pytest.warns(ScanWarning, match="number 5"):
        _, image = only(find_scans(study, option="-i", series=SeriesWish(["5"])))
    with pytest.raises(CaseError, match=r"slice2\.dcm with no DICOM header: damaged"):
        read_image(image)


def test_two_studies_in_one_folder_are_chosen_from_together(tmp_path: Path) -> None:
    study = write_slices(tmp_path / "s", [*series(5, "a"), *series(6, "b", StudyInstanceUID="1.7")])
    case_id, image = only(find_scans(study, option="-i", series=MR))
    assert case_id == "s"
    assert isinstance(image, DicomSeries)
    with pytest.raises(CaseError, match="2 DICOM series"):
        read_image(image)


def test_a_study_of_localizers_only_is_refused_by_its_orientations(tmp_path: Path) -> None:
    _, image = only(find_scans(write_slices(tmp_path / "study", localizer()), option="-i", series=MR))
    with pytest.raises(CaseError, match="ImageOrientationPatient"):
        read_image(image)


def slice_series(place: int, **tags: Any) -> list[Dataset]:
    """Make a cine of one slice, as many scanners store each slice of a short axis."""
    usual = {"SeriesDescription": f"SAX_b{place + 1}", "ImagePositionPatient": [0, 0, 8 * place], "Modality": "MR"}
    trigger = {"TriggerTime": lambda _, phase: phase * (30 + place)}
    number = {"SeriesNumber": place + 30, "SeriesInstanceUID": f"1.2.840.{place + 30}"}
    return make_cine(1, 5, **{**usual, **trigger, **number, **tags})


def write_each(folder: Path, *series: list[Dataset]) -> Path:
    for index, images in enumerate(series):
        (folder / f"s{index}").mkdir(parents=True)
        write_slices(folder / f"s{index}", images)
    return folder


LONG_AXIS = slice_series(8, ImageOrientationPatient=CORONAL, SeriesDescription="2CH")


def test_series_of_one_slice_each_are_joined_to_the_stack_of_the_short_axis(tmp_path: Path) -> None:
    slices = [slice_series(place) for place in range(4)]
    study = write_each(tmp_path / "study", LONG_AXIS, *slices, localizer())
    match = r"used is number 30 and 3 others, SAX_b1, MR, 4 slices x 5 phases, .*; left out are number 1, .*2CH"
    with pytest.warns(ScanWarning, match=match):
        _, image = only(find_scans(study, option="-i", series=MR))
    assert isinstance(image, DicomSeries)
    assert is_dicom_cine(image)
    cine = read_dicom_cine(image, case_id="c")
    for phase, frame in enumerate(cine.frames):
        alone = read_image(write_slices(tmp_path / f"phase{phase}", one_series([each[phase] for each in slices])))
        assert np.array_equal(frame.array, alone.array)
        assert np.array_equal(frame.affine, alone.affine)


def one_series(images: list[Dataset]) -> list[Dataset]:
    for image in images:
        image.SeriesInstanceUID = "1.77"
    return images


def test_joined_slices_with_a_gap_or_a_missing_phase_are_refused(tmp_path: Path) -> None:
    gap = write_each(tmp_path / "gap", *(slice_series(place) for place in (0, 1, 3, 4)))
    short = write_each(tmp_path / "short", slice_series(0)[:4], *map(slice_series, (1, 2, 3)))
    twice = write_each(
        tmp_path / "twice", *map(slice_series, (0, 1, 2)), slice_series(9, ImagePositionPatient=[0, 0, 8])
    )
    for study, match in ((gap, "distances of"), (short, "slice 1 with 4"), (twice, "slice 2 with 10")):
        with pytest.warns(ScanWarning, match="and 3 others"):
            _, image = only(find_scans(study, option="-i", series=MR))
        assert isinstance(image, DicomSeries)
        with pytest.raises(CaseError, match=match):
            read_dicom_cine(image, case_id="c")


def test_single_slices_of_two_kinds_are_no_stack_of_both(tmp_path: Path) -> None:
    maps = [slice_series(place, SeriesInstanceUID=f"1.3.{place}", SeriesDescription="MOLLI") for place in range(3)]
    study = write_each(tmp_path / "study", *map(slice_series, range(3)), *maps)
    _, image = only(find_scans(study, option="-i", series=MR))
    with pytest.raises(CaseError, match="6 DICOM series"):
        read_image(image)
    with pytest.warns(ScanWarning, match="and 2 others, SAX_b1, MR, 3 slices x 5 phases"):
        _, image = only(find_scans(study, option="-i", series=SeriesWish(["SAX"], "MR")))
    assert isinstance(image, DicomSeries)
    assert len(read_dicom_cine(image, case_id="c").frames) == 5


def test_a_stack_in_one_series_comes_before_slices_in_series_of_their_own(tmp_path: Path) -> None:
    study = write_each(tmp_path / "study", series(5, "short axis"), *map(slice_series, range(3)))
    with pytest.warns(ScanWarning, match="used is number 5, short axis"):
        _, image = only(find_scans(study, option="-i", series=MR))
    assert read_image(image).shape[2] == 4
