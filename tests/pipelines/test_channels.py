"""Images of two channels, from raw files to a report."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from data_prep import assign_folds
from data_prep.reader import Read, Reader
from tests.pipelines.run_files import LAST, MakeConfig, Refused, failed_in, job_of, read_json, save_nifti
from uumamba.cli import main
from uumamba.config.registry import KINDS
from uumamba.data.case import Case, Manifest
from uumamba.evaluation.scores import read_scores
from uumamba.inference import Predictor
from uumamba.pipelines import load_predictor
from uumamba.pipelines.models import load_initial_weights
from uumamba.pipelines.predict import predict
from uumamba.pipelines.prepare import prepare
from uumamba.pipelines.train import train
from uumamba.training import read_checkpoint

NAMES, SPACING_MM = ("T1", "FLAIR"), (3.0, 3.0, 8.0)
PATIENTS = "abcde"
OVERRIDES = ("dataset.name=pairs", "training.patch_size=[32,32]", "augment.mirror_axes=[]")


def read_pairs(raw: Path) -> Read:
    """List ``images/a_0000.nii.gz`` and ``images/a_0001.nii.gz`` with ``labels/a.nii.gz``, and so on."""
    folds = assign_folds(dict.fromkeys(PATIENTS, ""))
    cases = [
        Case(
            name,
            name,
            "pairs",
            tuple(raw / "images" / f"{name}_{index:04d}.nii.gz" for index in range(2)),
            raw / "labels" / f"{name}.nii.gz",
            folds[name],
        )
        for name in PATIENTS
    ]
    return Manifest("Pairs", NAMES, {"lesion": 1}, tuple(cases)), []


PAIRS = Reader(read_pairs, "Pairs", re.compile(r"images/\w_\d{4}\.nii\.gz"))


@pytest.fixture(autouse=True)
def pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the data set's registry line."""
    monkeypatch.setitem(KINDS["dataset"].parts, "pairs", f"{__name__}:PAIRS")


@pytest.fixture(scope="module")
def pair_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five patients with a lesion that only the second channel shows; the first shows a ball elsewhere."""
    raw = tmp_path_factory.mktemp("pairs")
    for number, name in enumerate(PATIENTS):
        _, y, x = np.mgrid[:3, :40, :40]
        lesion = np.hypot(y - 12 - 3 * number, x - 24 + 2 * number) < 7
        ball = np.hypot(y - 26 + 2 * number, x - 12 - 3 * number) < 7
        for channel, shown in enumerate((ball, lesion)):
            noise = np.random.default_rng((number, channel)).normal(20, 5, lesion.shape)
            values = (60 * shown + noise).T.astype(np.int16)
            save_nifti(raw / "images" / f"{name}_{channel:04d}.nii.gz", values, SPACING_MM)
        save_nifti(raw / "labels" / f"{name}.nii.gz", lesion.T.astype(np.uint8), SPACING_MM)
    return raw


@pytest.fixture(scope="module")
def pair_prepared(pair_raw: Path, tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    recipe = tiny_config("preprocess.normalisation=auto").preprocess.build(NAMES)
    assert prepare(*read_pairs(pair_raw), recipe=recipe, out=folder).prepared == tuple(PATIENTS)
    return folder


@pytest.fixture(scope="module")
def pair_run(pair_prepared: Path, tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fold 0 of a network that sees both channels and their neighbouring slices."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(KINDS["dataset"].parts, "pairs", f"{__name__}:PAIRS")
        train(tiny_config(*OVERRIDES, "training.neighbour_slices=1"), data=pair_prepared, out=folder)
    return folder


def read_voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def merge(raw: Path, name: str) -> np.ndarray:
    return np.stack([read_voxels(raw / "images" / f"{name}_{index:04d}.nii.gz") for index in range(2)], axis=-1)


@pytest.mark.slow
def test_a_lesion_of_the_second_channel_is_found_by_a_run_from_the_command_line(
    pair_raw: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    longer = ("training.epochs=6", "training.batches_per_epoch=25", "training.batch_size=6", "optim.base.lr=0.01")
    config, out, device = tmp_path / "mine.yaml", tmp_path / "out", ["--device", "cpu"]
    config.write_text(yaml.safe_dump(tiny_config(*OVERRIDES, *longer).as_json()))
    with pytest.raises(SystemExit, match="0"):
        main(["run", str(config), "--raw", str(pair_raw), "--out", str(out), "--workers", "0", *device])
    [row] = read_scores(out / "scores.csv")
    assert row.dice is not None
    assert row.dice > 0.9
    assert "is not drawn" not in (out / "report.html").read_text()
    again = tmp_path / "again"
    with pytest.raises(SystemExit, match="0"):
        main(["predict", str(out), "--input", str(pair_raw / "images"), "--out", str(again), *device])
    [label_map] = (out / "predictions").glob("*.nii.gz")
    assert label_map.read_bytes() == (again / label_map.name).read_bytes()
    scores = ["--labels", str(pair_raw / "labels"), "--out", str(tmp_path / "scores")]
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", "--predictions", str(again), *scores])
    assert {each.case_id for each in read_scores(tmp_path / "scores" / "scores.csv")} == {*PATIENTS}


def test_a_network_sees_every_channel_with_its_neighbouring_slices(pair_run: Path, pair_raw: Path) -> None:
    checkpoint, predictor = read_checkpoint(pair_run / LAST), load_predictor(pair_run)
    first = next(value for value in checkpoint.net.values() if value.ndim == 4)
    assert first.shape[1] == 2 * 3
    assert checkpoint.config["channels"] == [*NAMES]
    assert predictor.channels == NAMES
    image = np.moveaxis(merge(pair_raw, "a"), -1, 0)
    assert predictor(image, spacing_mm=SPACING_MM).label.shape == (40, 40, 3)


def test_files_a_4d_file_a_manifest_and_a_list_of_paths_give_the_same_bytes(
    pair_run: Path, pair_raw: Path, tmp_path: Path
) -> None:
    files = [pair_raw / "images" / f"a_{index:04d}.nii.gz" for index in range(2)]
    save_nifti(tmp_path / "4d" / "a.nii.gz", merge(pair_raw, "a"), SPACING_MM)
    listed = read_pairs(pair_raw)[0]
    listed.write(tmp_path / "list.json")
    single = replace(listed, cases=(replace(listed.by_id("a"), image=tmp_path / "4d" / "a.nii.gz"),))
    single.write(tmp_path / "single.json")
    ways: dict[str, Any] = {
        "folder": [pair_raw / "images"],
        "files": files,
        "one": files[:1],
        "4d": [tmp_path / "4d"],
        "manifest": [tmp_path / "list.json"],
        "single": [tmp_path / "single.json"],
        "list": [files],
    }
    found = {}
    for name, inputs in ways.items():
        result = predict(pair_run, inputs, out=tmp_path / "out" / name, case_ids=["a"], save_probabilities=True)
        assert not result.failures, name
        found[name] = [(tmp_path / "out" / name / end / "a.nii.gz").read_bytes() for end in ("", "probabilities")]
    assert all(each == found["list"] for each in found.values())
    assert nib.load(tmp_path / "out" / "list" / "probabilities" / "a.nii.gz").shape == (40, 40, 3, 2)
    assert {path.name for path in (tmp_path / "out" / "folder").glob("*.gz")} == {f"{name}.nii.gz" for name in PATIENTS}


def test_a_missing_channel_is_named_and_other_cases_are_predicted(
    pair_run: Path, pair_raw: Path, tmp_path: Path
) -> None:
    for index in range(2):
        save_nifti(tmp_path / "in" / f"whole_{index:04d}.nii.gz", merge(pair_raw, "a")[..., index], SPACING_MM)
    save_nifti(tmp_path / "in" / "half_0000.nii.gz", merge(pair_raw, "a")[..., 0], SPACING_MM)
    save_nifti(tmp_path / "in" / "rest_0001.nii.gz", merge(pair_raw, "a")[..., 1], SPACING_MM)
    save_nifti(tmp_path / "in" / "flat.nii.gz", merge(pair_raw, "a")[..., 1], SPACING_MM)
    result = predict(pair_run, [tmp_path / "in"], out=tmp_path / "out")
    assert [path.name for path in result.written] == ["whole.nii.gz"]
    assert failed_in(tmp_path / "out") == ["flat", "half", "rest"]
    assert {error.case_id: error.key for error in result.failures} == {
        "flat": "shape",
        "half": "channel 1 (FLAIR)",
        "rest": "channel 0 (T1)",
    }
    assert "half_0001.nii.gz" in str(result.failures[1])


@pytest.mark.parametrize("names", [("FLAIR", "T1"), ("T1", "T2"), "T1", ("T1", "FLAIR", "T2")])
def test_a_manifest_with_other_channels_than_the_models_is_refused(
    pair_run: Path, pair_raw: Path, tmp_path: Path, names: Any, refused: Refused
) -> None:
    replace(read_pairs(pair_raw)[0], modality=names).write(tmp_path / "list.json")
    with refused("--input") as error:
        predict(pair_run, [tmp_path / "list.json"], out=tmp_path / "out")
    assert error.value.expected == "channel 0 (T1), channel 1 (FLAIR)"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["channel_names", "modality"])
def test_a_folder_of_scans_that_names_the_models_channels_in_another_order_is_refused(
    key: str, pair_run: Path, pair_raw: Path, tmp_path: Path, refused: Refused
) -> None:
    listed = json.dumps({key: {"0": "FLAIR", "1": "T1"}})
    save_nifti(tmp_path / "imagesTs" / "a.nii.gz", merge(pair_raw, "a")[..., ::-1], SPACING_MM)
    for folder in (tmp_path / "imagesTs", tmp_path):
        (folder / "dataset.json").write_text(listed)
        with refused("--input") as error:
            predict(pair_run, [tmp_path / "imagesTs"], out=tmp_path / "out")
        assert error.value.expected == "channel 0 (T1), channel 1 (FLAIR)"
        (folder / "dataset.json").write_text("{}")
    assert predict(pair_run, [tmp_path / "imagesTs"], out=tmp_path / "out").written


def test_more_channels_than_the_models_are_refused(
    pair_run: Path, tiny_run: Path, pair_raw: Path, tmp_path: Path, refused: Refused
) -> None:
    for index in range(3):
        save_nifti(tmp_path / "in" / f"a_{index:04d}.nii.gz", merge(pair_raw, "a")[..., 0], SPACING_MM)
    with refused("--input", got=str(tmp_path / "in" / "a_0002.nii.gz")):
        predict(pair_run, [tmp_path / "in"], out=tmp_path / "out")
    with refused("--input", got=f"a_0000 and a_0001 in {tmp_path / 'in'}"):
        predict(tiny_run, [tmp_path / "in"], out=tmp_path / "out")
    with refused("--input"):
        read_pairs(pair_raw)[0].write(tmp_path / "list.json")
        predict(tiny_run, [tmp_path / "list.json"], out=tmp_path / "out")
    paths = [tmp_path / "in" / f"a_{index:04d}.nii.gz" for index in range(3)]
    with refused("--input", got="a_0001.nii.gz, a_0000.nii.gz"):
        predict(pair_run, [paths[1::-1]], out=tmp_path / "out")
    for model, given in ((pair_run, paths), (tiny_run, paths[:2])):
        [failure] = predict(model, [given], out=tmp_path / "out").failures
        assert (failure.case_id, failure.key) == ("a", "image")


@pytest.mark.parametrize("shape", [(3, 40, 40, 3), (40, 40, 3), (2, 40, 40)])
def test_an_array_with_other_channels_than_the_models_is_refused(
    pair_run: Path, shape: Sequence[int], refused: Refused
) -> None:
    with refused("image", got=f"the shape {tuple(shape)}") as error:
        load_predictor(pair_run)(np.ones(shape), spacing_mm=SPACING_MM)
    assert "T1, FLAIR" in error.value.expected


def test_a_model_of_one_channel_takes_an_array_with_and_without_its_axis(tiny_run: Path, refused: Refused) -> None:
    predictor, scan = load_predictor(tiny_run), np.random.default_rng(0).normal(size=(60, 60, 4))
    predictions = [predictor(image, spacing_mm=(3, 3, 10)).label for image in (scan, scan[None])]
    assert np.array_equal(*predictions)
    with refused("image", got="the shape (2, 60, 60, 4)"):
        predictor(np.stack([scan, scan]), spacing_mm=(3, 3, 10))


def test_a_predictor_from_python_checks_channels_only_where_it_knows_them(pair_run: Path) -> None:
    nets = load_predictor(pair_run).nets
    image = np.zeros((6, 3, 32, 32), np.float32)
    assert Predictor(nets, patch_size=(32, 32))(image).label.shape == (3, 32, 32)


def test_a_run_is_not_started_from_a_model_of_another_number_of_channels(
    pair_prepared: Path, pair_run: Path, tiny_prepared: Path, tiny_run: Path, tiny_config: MakeConfig, refused: Refused
) -> None:
    out = pair_run.parent / "never"
    with refused("--init", got=f"{tiny_run} of channel 0 (image)") as error:
        train(tiny_config(*OVERRIDES), data=pair_prepared, out=out, init=str(tiny_run))
    assert "2 channels" in error.value.expected
    with refused("--init", got=f"{pair_run} of channel 0 (T1), channel 1 (FLAIR)"):
        train(tiny_config(), data=tiny_prepared, out=out, init=str(pair_run))
    assert not out.exists()


def test_a_run_is_not_started_from_a_model_of_the_same_channels_in_another_order(
    pair_run: Path, tiny_config: MakeConfig, refused: Refused
) -> None:
    net = tiny_config(*OVERRIDES, "training.neighbour_slices=1").build_net(classes=2, channels=2)
    with refused("--init", got=f"{pair_run} of channel 0 (T1), channel 1 (FLAIR)"):
        load_initial_weights(net, pair_run, channels=NAMES[::-1])
    assert load_initial_weights(net, pair_run, channels=("PD", "T2")) == []


def test_prepared_cases_of_4d_files_equal_those_of_separate_files(
    pair_raw: Path, pair_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    manifest, _ = read_pairs(pair_raw)
    cases = [
        replace(
            case,
            image=save_nifti(tmp_path / "4d" / f"{case.case_id}.nii.gz", merge(pair_raw, case.case_id), SPACING_MM),
        )
        for case in manifest.cases
    ]
    recipe = tiny_config().preprocess.build(NAMES)
    prepare(replace(manifest, cases=tuple(cases)), recipe=recipe, out=tmp_path / "out")
    for name in ("image.npy", "label.npy", "locations.npy"):
        for case_id in PATIENTS:
            path = Path("cases", case_id, name)
            assert (tmp_path / "out" / path).read_bytes() == (pair_prepared / path).read_bytes()
    assert np.load(pair_prepared / "cases" / "a" / "image.npy").shape[0] == 2


def test_a_case_with_a_missing_or_surplus_channel_is_a_failure_and_others_are_prepared(
    pair_raw: Path, tiny_config: MakeConfig, tmp_path: Path, refused: Refused
) -> None:
    manifest, _ = read_pairs(pair_raw)
    images = {case.case_id: case.images for case in manifest.cases}
    changed = {"a": images["a"][:1], "b": (*images["b"], images["b"][0]), "c": (images["c"][0], tmp_path / "gone.nii")}
    cases = tuple(replace(case, image=changed.get(case.case_id, case.image)) for case in manifest.cases)
    recipe = tiny_config().preprocess.build()
    result = prepare(replace(manifest, cases=cases), recipe=recipe, out=tmp_path)
    assert result.prepared == ("d", "e")
    assert {each.case_id: each.key for each in result.failures} == {
        "a": "shape",
        "b": "image",
        "c": "file",
    }
    with refused("normalisation", got=("zscore", "none", "none")):
        prepare(manifest, recipe=replace(recipe, normalisation=("zscore", "none", "none")), out=tmp_path)


def test_ct_statistics_are_computed_for_each_channel_of_ct(
    pair_raw: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    manifest = replace(read_pairs(pair_raw)[0], modality=("PET", "CT"))
    recipe = tiny_config("preprocess.normalisation=auto").preprocess.build(manifest.channels)
    prepare(manifest, recipe=recipe, out=tmp_path)
    stored = read_json(tmp_path / "recipe.json")
    assert stored["normalisation"] == ["zscore", "ct"]
    first, second = stored["ct_statistics"]
    assert first is None
    lesions = [
        merge(pair_raw, name)[..., 1][read_voxels(pair_raw / "labels" / f"{name}.nii.gz") == 1] for name in PATIENTS
    ]
    assert second["mean_hu"] == pytest.approx(np.concatenate(lesions).mean())
    assert prepare(manifest, recipe=recipe, out=tmp_path).reused == tuple(PATIENTS)


def test_auto_is_resolved_for_the_data_sets_channels_and_stored(
    pair_raw: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    manifest = replace(read_pairs(pair_raw)[0], modality=("T1", "noNorm"))
    config = tiny_config(*OVERRIDES, "preprocess.normalisation=auto")
    prepare(manifest, recipe=config.preprocess.build(manifest.channels), out=tmp_path)
    assert job_of(config, tmp_path).config.as_json()["preprocess"]["normalisation"] == ["zscore", "none"]
    kept = np.load(tmp_path / "cases" / "a" / "image.npy")[1]
    assert kept.max() > 60, "the values of the second channel are kept"
