"""Any folder of scans through preparing, training and evaluation."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from data_prep.acdc import read_acdc
from data_prep.folder.folder_reader import read_folder
from tests.data.formats.dicom_files import make_slices, write_slices
from tests.data_prep.folder_layouts import LAYOUTS, Csv, Decathlon, NnUnet, Pairs, Source
from tests.pipelines.run_files import MakeConfig, Refused, contents, read_json
from uumamba.config import read_config
from uumamba.config.data import DatasetConfig
from uumamba.config.load import validate
from uumamba.data.case import Case, Manifest
from uumamba.data.prepared import PreparedFolder
from uumamba.data.preprocess import PreprocessRecipe
from uumamba.data.scan import read_image
from uumamba.pipelines.datasets import is_dataset, read_labelled_cases
from uumamba.pipelines.evaluate import evaluate_folder
from uumamba.pipelines.jobs import list_jobs
from uumamba.pipelines.prepare import prepare, prepare_dataset
from uumamba.pipelines.run import run
from uumamba.pipelines.train import train

RECIPE = PreprocessRecipe((None, 1.5, 1.5))
SHAPE, AFFINE = (24, 28, 4), np.diag([-1.25, -1.25, 8, 1.0])
PATIENTS = ("patient001", "patient022", "patient046", "patient090")
each_layout = pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: kind.__name__)
MakeSources = Callable[..., list[Source]]


@pytest.fixture
def make_sources(tmp_path: Path) -> MakeSources:
    """``make_sources(3, only=(1, 3))``: noise with a box of each structure; all but the first have only these."""

    def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), path)
        return path

    def make(cases: int, *, only: Sequence[int] = (1, 2, 3), shifted: int | None = None) -> list[Source]:
        sources = []
        for number in range(cases):
            label = np.zeros(SHAPE, np.uint8)
            for value in (1, 2, 3) if number == 0 else only:
                label[5 * value : 5 * value + 4, 8:20, 1:3] = value
            noise = np.random.default_rng(number).integers(1, 900, SHAPE).astype(np.int16)
            moved = AFFINE + 10 * (number == shifted) * np.eye(4, k=3)
            folder = tmp_path / "sources"
            image, reference = folder / f"p{number}.nii.gz", folder / f"p{number}_gt.nii.gz"
            sources.append(Source(f"p{number}", [save(image, noise, AFFINE)], save(reference, label, moved)))
        return sources

    return make


def arrays_of(prepared: Path) -> dict[str, Any]:
    """Read the bytes of each case's arrays, its geometry, and the values of its label."""
    found = {}
    for case in sorted((prepared / "cases").iterdir()):
        stored = read_json(case / "case.json")
        arrays = {name: (case / f"{name}.npy").read_bytes() for name in ("image", "label", "locations")}
        found[case.name] = arrays | {key: stored[key] for key in ("geometry", "label_voxels", "sha256")}
    return found


@pytest.fixture
def eight_cases(acdc_raw: Path) -> list[Case]:
    """Both frames of four real patients."""
    manifest, _ = read_acdc(acdc_raw)
    return [case for case in manifest.cases if case.patient_id in PATIENTS]


@pytest.mark.filterwarnings("ignore::uumamba.data.scan.AcdcSpacingWarning")
def test_the_same_real_cases_are_prepared_byte_equal_from_every_layout(eight_cases: list[Case], tmp_path: Path) -> None:
    manifest = Manifest("ACDC", "cine MRI", {"RV": 1, "MYO": 2, "LV": 3}, tuple(eight_cases))
    assert len(eight_cases) == 8
    prepare(manifest, recipe=RECIPE, out=tmp_path / "ACDC")
    expected = arrays_of(tmp_path / "ACDC")
    sources = [Source(case.case_id, case.images, case.label) for case in eight_cases if case.label]
    for kind in (NnUnet, Decathlon, Pairs, Csv):
        layout, raw, out = kind(), tmp_path / "raw" / kind.__name__, tmp_path / kind.__name__
        layout.write(raw, sources)
        found, errors = layout.read(raw, patient=r"(patient\d+)_.*")
        assert errors == []
        prepare(found, recipe=RECIPE, out=out)
        assert arrays_of(out) == expected
        assert {case.patient_id for case in found.cases} == {*PATIENTS}


def write_dicom(folder: Path, array: np.ndarray, spacing_mm: Sequence[float]) -> None:
    """Write a series in the directions of ACDC's affine."""
    x, y, z = (float(mm) for mm in spacing_mm)
    slices = make_slices(
        array.shape[2],
        dtype=np.int16,
        bits=16,
        Columns=array.shape[0],
        Rows=array.shape[1],
        PixelSpacing=[f"{y:.14g}", f"{x:.14g}"],
        ImagePositionPatient=lambda index: [0, 0, z * index],
        RescaleIntercept=0,
        PixelData=lambda index: np.ascontiguousarray(array[:, :, index].T).tobytes(),
    )
    folder.parent.mkdir(exist_ok=True, parents=True)
    write_slices(folder, slices)


@pytest.mark.filterwarnings("ignore::uumamba.data.scan.AcdcSpacingWarning")
def test_real_cases_as_dicom_folders_give_equal_arrays_and_spacing(eight_cases: list[Case], tmp_path: Path) -> None:
    listed = []
    for case in eight_cases:
        assert case.label is not None
        scan = read_image(case.images[0])
        whole = np.round(scan.array).astype(np.int16)
        image, folder = tmp_path / "nifti" / f"{case.case_id}.nii.gz", tmp_path / "raw" / "dicom" / case.case_id
        image.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(whole, scan.affine), image)
        write_dicom(folder, whole, scan.spacing_mm)
        label = tmp_path / "raw" / "labels" / f"{case.case_id}.nii.gz"
        label.parent.mkdir(exist_ok=True)
        label.symlink_to(case.label)
        listed.append(replace(case, image=image))
    manifest = Manifest("ACDC", "cine MRI", {"RV": 1, "MYO": 2, "LV": 3}, tuple(listed))
    prepare(manifest, recipe=RECIPE, out=tmp_path / "expected")
    found, errors = read_folder(
        tmp_path / "raw", images="dicom/*", labels="labels/*.nii.gz", structures=manifest.structures
    )
    assert errors == []
    prepare(found, recipe=RECIPE, out=tmp_path / "out")
    expected, actual = PreparedFolder(tmp_path / "expected"), PreparedFolder(tmp_path / "out")
    assert len(actual.manifest.cases) == 8
    for case in eight_cases:
        first, second = expected.case(case.case_id), actual.case(case.case_id)
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.label, second.label)
        assert np.array_equal(first.locations, second.locations)
        assert np.abs(np.subtract(first.geometry.spacing_mm, second.geometry.spacing_mm)).max() < 1e-6


@each_layout
def test_a_label_on_another_grid_is_named_and_the_other_cases_are_prepared(
    kind: Any, make_sources: MakeSources, tmp_path: Path
) -> None:
    layout, raw = kind(), tmp_path / "raw"
    layout.write(raw, make_sources(3, shifted=1))
    manifest, errors = layout.read(raw)
    result = prepare(manifest, errors, recipe=RECIPE, out=tmp_path / "out", raw=raw)
    [failure] = result.failures
    assert (failure.case_id, failure.key) == ("p1", "affine")
    assert result.prepared == ("p0", "p2")


def test_a_configuration_names_a_folder_and_its_globs(
    make_sources: MakeSources, tmp_path: Path, tiny_config: MakeConfig
) -> None:
    layout, raw = Pairs(), tmp_path / "raw"
    layout.write(raw, make_sources(3))
    before = contents(raw)
    config = tiny_config(
        "dataset={name: folder, images: images/*_0000.nii.gz, labels: labels/*.nii.gz, patient: '(p.)'}"
    )
    result = prepare_dataset(config, raw=raw, out=tmp_path / "out")
    assert result.prepared == ("p0", "p1", "p2")
    assert contents(raw) == before
    manifest = PreparedFolder(tmp_path / "out").manifest
    assert manifest.structures == {"label_1": 1, "label_2": 2, "label_3": 3}
    assert is_dataset(manifest, "folder")
    assert not is_dataset(manifest, "acdc")
    jobs = list_jobs(config, PreparedFolder(tmp_path / "out"), fold="cv", out=tmp_path / "run")
    assert [job.folder.fold for job in jobs] == ["0", "1", "2"]
    assert sorted(each for job in jobs for each in job.validation_ids) == ["p0", "p1", "p2"]


def test_a_missing_fold_below_the_last_one_is_not_skipped(
    make_sources: MakeSources, tmp_path: Path, tiny_config: MakeConfig, refused: Refused
) -> None:
    Pairs().write(tmp_path / "raw", make_sources(3))
    manifest, _ = Pairs().read(tmp_path / "raw")
    prepare(manifest, recipe=tiny_config().preprocess.build(), out=tmp_path / "out")
    folder = PreparedFolder(tmp_path / "out")
    kept = tuple(case for case in folder.manifest.cases if case.fold != 1)
    folder.manifest = replace(folder.manifest, cases=kept)
    with refused("--fold"):
        list_jobs(tiny_config("dataset.name=folder"), folder, fold="cv", out=tmp_path / "run")


def test_more_devices_than_folds_of_the_data_set_are_refused(
    make_sources: MakeSources, tmp_path: Path, tiny_config: MakeConfig, refused: Refused
) -> None:
    Pairs().write(tmp_path / "raw", make_sources(2))
    manifest, _ = Pairs().read(tmp_path / "raw")
    config = tiny_config("dataset.name=folder")
    prepare(manifest, recipe=config.preprocess.build(), out=tmp_path / "out")
    with refused("--device"):
        list_jobs(
            config, PreparedFolder(tmp_path / "out"), fold="cv", out=tmp_path / "run", device=",".join(["cpu"] * 3)
        )


def test_a_manifest_made_in_python_is_prepared_with_folds_and_trained_and_missing_classes_are_named(
    make_sources: MakeSources, tmp_path: Path, tiny_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = make_sources(3, only=(1, 3))
    cases = tuple(Case(each.case_id, each.case_id, "here", each.images[0], each.label) for each in sources)
    manifest = Manifest("mine", "MRI", {"RV": 1, "MYO": 2, "LV": 3}, cases)
    config = tiny_config(
        "dataset.name=folder", "training.epochs=1", "training.batches_per_epoch=1", "training.patch_size=[16,16]"
    )
    prepare(manifest, recipe=config.preprocess.build(), out=tmp_path / "out")
    folds = {case.case_id: case.fold for case in PreparedFolder(tmp_path / "out").manifest.cases}
    assert sorted(folds.values()) == [0, 1, 2]
    train(config, data=tmp_path / "out", out=tmp_path / "run", fold=str(folds["p0"]))
    printed = capsys.readouterr().err
    assert f"no training case of fold {folds['p0']} has a voxel of MYO\n" in printed
    train(config, data=tmp_path / "out", out=tmp_path / "run", fold=str(folds["p1"]))
    assert "no training case" not in capsys.readouterr().err


def test_one_case_is_prepared_but_a_fold_needs_two_patients(
    make_sources: MakeSources, tmp_path: Path, tiny_config: MakeConfig, refused: Refused
) -> None:
    NnUnet().write(tmp_path / "raw", make_sources(1))
    config = tiny_config("dataset.name=folder")
    assert prepare_dataset(config, raw=tmp_path / "raw", out=tmp_path / "out").prepared == ("p0",)
    for fold in ("0", "cv"):
        with refused("--fold") as error:
            list_jobs(config, PreparedFolder(tmp_path / "out"), fold=fold, out=tmp_path / "run")
        assert "all needs no validation cases" in error.value.fix
    [job] = list_jobs(config, PreparedFolder(tmp_path / "out"), fold="all", out=tmp_path / "run")
    assert job.training_ids == ("p0",)


@pytest.mark.parametrize("folds", [{"a": 0, "b": 1}, {"a": 5}], ids=["two folds", "fold 5"])
def test_a_manifest_with_wrong_folds_is_not_prepared(
    folds: dict[str, int], make_sources: MakeSources, tmp_path: Path, refused: Refused
) -> None:
    [source] = make_sources(1)
    cases = tuple(Case(name, "p", "here", source.images[0], source.label, fold=fold) for name, fold in folds.items())
    with refused(f"{[*folds][-1]}: fold"):
        prepare(Manifest("mine", "MRI", {"RV": 1, "MYO": 2, "LV": 3}, cases), recipe=RECIPE, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [kind for kind in LAYOUTS if kind is not Pairs], ids=lambda kind: kind.__name__)
def test_the_labels_of_a_raw_folder_are_scored(kind: Any, make_sources: MakeSources, tmp_path: Path) -> None:
    layout, raw = kind(), tmp_path / "raw"
    layout.write(raw, make_sources(2))
    labels = tmp_path / "predictions"
    labels.mkdir()
    for name in ("p0", "p1"):
        (labels / f"{name}.nii.gz").symlink_to(layout.label(raw, name))
    manifest, errors = read_labelled_cases(raw)
    assert errors == []
    assert [case.case_id for case in manifest.cases] == ["p0", "p1"]
    scores = evaluate_folder(labels, raw, tmp_path / "out")
    assert {row.dice for row in scores.rows} == {1.0}
    assert len(scores.rows) == 6


def test_nnunet_s_label_folder_and_predictions_with_its_dataset_json_are_folders_of_label_maps(
    make_sources: MakeSources, tmp_path: Path
) -> None:
    layout, raw = NnUnet(), tmp_path / "raw"
    layout.write(raw, make_sources(2))
    (raw / "labelsTr" / "dataset.json").write_bytes((raw / "dataset.json").read_bytes())
    manifest, _ = read_labelled_cases(raw / "labelsTr")
    assert [case.case_id for case in manifest.cases] == ["p0", "p1"]
    assert manifest.structures == {}


def test_a_table_next_to_its_scans_is_read_in_place_of_the_scans(make_sources: MakeSources, tmp_path: Path) -> None:
    sources = make_sources(2)
    folder = sources[0].label.parent
    rows = [f"{each.case_id},{each.images[0].name},{each.label.name}" for each in sources]
    (folder / "cases.csv").write_text("\n".join(["case,image,label", *rows]))
    manifest, _ = read_labelled_cases(folder)
    assert [(case.case_id, case.label) for case in manifest.cases] == [(each.case_id, each.label) for each in sources]


@pytest.mark.parametrize("name", ["acdc_cpu", "imagecas_cpu", "aorta_cpu", "mnms_a_to_d", "demo"])
def test_stored_configurations_of_other_data_sets_have_no_keys_of_a_folder(name: str) -> None:
    config = read_config(name)
    assert config.as_json()["dataset"].keys() == {"name", "domains"}
    assert validate(config.as_json(), source="a checkpoint") == config


def test_a_stored_configuration_of_a_folder_has_the_given_keys_and_reads_back_equal() -> None:
    given = "{name: folder, images: {T1: a/*, T2: b/*}, labels: c/*, structures: {a: 1}, regions: {r: [1, 2]}}"
    config = read_config("demo", [f"dataset={given}"])
    stored = config.as_json()
    assert stored["dataset"].keys() == {"name", "domains", "images", "labels", "structures", "regions"}
    assert validate(stored, source="a checkpoint") == config


@pytest.mark.parametrize("key", ["images", "labels", "case_list", "patient"])
def test_other_data_sets_refuse_the_keys_of_a_folder(key: str, refused: Refused) -> None:
    with refused(f"dataset.{key}", got="a"):
        read_config("demo", [f"dataset.{key}=a"])
    with refused("dataset.layout", got="csv"):
        read_config("demo", ["dataset.layout=csv"])


def test_the_yaml_of_the_manual_is_valid(repository: Path) -> None:
    text = (repository / "docs" / "reference" / "scan_folders.md").read_text(encoding="utf-8")
    sections = [yaml.safe_load(block)["dataset"] for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert len(sections) == 3
    for section in sections:
        assert DatasetConfig.model_validate(section).reader_options().keys() == section.keys() - {"name"}


def test_a_run_reads_the_folder_by_the_keys_of_its_configuration(
    make_sources: MakeSources, tmp_path: Path, tiny_config: MakeConfig, refused: Refused
) -> None:
    Pairs().write(tmp_path / "raw", make_sources(2))
    config = tiny_config("dataset={name: folder, images: images/*.mha, labels: labels/*}")
    verbs: tuple[Callable[..., Any], ...] = (run, prepare_dataset)
    for call in verbs:
        with refused("dataset.images", got="images/*.mha"):
            call(config, raw=tmp_path / "raw", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
