"""Jobs of a run: their cases and folders, and every error before a file is written."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any
from unittest.mock import ANY

import pytest

from tests.pipelines.run_files import MakeConfig, Refused
from uumamba.config.registry import KINDS
from uumamba.data.case import Manifest
from uumamba.data.prepared import PreparedFolder
from uumamba.domain_generalization import GroupSplit, SlowExamples, write_slow_examples
from uumamba.pipelines.datasets import RawFolder
from uumamba.pipelines.jobs import list_jobs
from uumamba.pipelines.prepare import prepare_dataset
from uumamba.pipelines.run import run
from uumamba.pipelines.slow_cases import SLOW_CASES_NAME
from uumamba.pipelines.train import train
from uumamba.runtime.errors import UsageError
from uumamba.runtime.ranks import Alone

VERBS = ("prepare", "run", "train")
BITS = "{weight_bits: 3, act_bits: null, first_last_bits: null, start_step: 100}"
Do = Callable[..., Any]


@pytest.fixture
def do(tiny_raw: Path, tiny_prepared: Path, tmp_path: Path) -> Do:
    """``do("train", config, fold="cv")``: a verb with its data and an output that does not exist."""
    out = tmp_path / "out"
    verbs: dict[str, Do] = {
        "prepare": partial(prepare_dataset, raw=tiny_raw, out=out),
        "run": partial(run, raw=tiny_raw, out=out),
        "train": partial(train, data=tiny_prepared, out=out),
    }
    return lambda verb, config, **options: verbs[verb](config, **options)


@pytest.fixture
def tree(tiny_raw: Path, tiny_prepared: Path, tmp_path: Path) -> Callable[[], set[Path]]:
    """``tree()``: every path in the folders that verbs read and write."""
    return lambda: {path for root in (tiny_raw, tiny_prepared, tmp_path) for path in root.rglob("*")}


def test_a_job_per_seed_and_fold_has_its_cases_configuration_and_folder(
    tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    folder = PreparedFolder(tiny_prepared)
    jobs = list_jobs(tiny_config(), folder, fold="cv", seeds=[7, 1], out=tmp_path / "run")
    assert [job.folder.title for job in jobs] == [f"seed {seed}, fold {fold}" for seed in (7, 1) for fold in range(5)]
    assert [job.config.seed for job in jobs] == [7] * 5 + [1] * 5
    everything = {case.case_id for case in folder.manifest.select(split="training")}
    assert sorted(name for job in jobs[:5] for name in job.validation_ids) == sorted(everything)
    for job in jobs:
        assert {*job.training_ids} == everything - {*job.validation_ids}
    [job] = list_jobs(tiny_config("seed=3"), folder, fold="all", out=tmp_path / "run")
    assert (job.config.seed, job.folder.name, len(job.training_ids), job.validation_ids) == (3, "fold_all", 10, ())
    assert not (tmp_path / "run").exists()


def test_raw_and_prepared_cases_give_the_same_jobs_which_pickle(
    tiny_raw: Path, tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    config, raw = tiny_config("track=[tensorboard]"), RawFolder("phantom", tiny_raw, out=tmp_path / "out")
    cases = (raw, PreparedFolder(tiny_prepared))
    from_raw, from_prepared = (list_jobs(config, each, fold="cv", out=tmp_path / "run") for each in cases)
    assert from_raw == from_prepared
    again = pickle.loads(pickle.dumps(from_raw))  # as for a process on another device
    assert again == from_raw
    assert again[0].config.track == ("tensorboard",)


def write_index(path: Path, *slow: str) -> Path:
    """Write an index file of four cases of which two are slow."""
    groups = (GroupSplit(0, 4, 2, 0.9, 0.1),)
    write_slow_examples(path, SlowExamples((1, 3), 4, groups, 0, "other", settings={"slow_cases": list(slow)}))
    return path


# Every verb raises each error of the configuration with the same key and value.


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("override", "key", "got"),
    [
        ("seeed=1", "seeed", "an unknown key"),
        ("training.epoch=1", "training.epoch", "an unknown key"),
        ("optim.base.learning_rate=1", "optim.base.learning_rate", "an unknown key"),
        ("training.useful={factr: 2}", "training.useful.factr", "an unknown key"),
        ("net.name=UMamba", "net.name", "UMamba"),
        ("optim.base.name=Adamm", "optim.base.name", "Adamm"),
        ("dataset.name=brats", "dataset.name", "brats"),
        ("training.epochs=-1", "training.epochs", -1),
        ("optim.base.lr=-1", "optim.base.lr", -1),
        ("optim.rho=.nan", "optim.rho", ANY),
        ("training.ema_decay=.nan", "training.ema_decay", ANY),
        (f"quantization={BITS}", "quantization.start_step", 100),
        ("training.sampling.class_weights={Kidney: 2}", "training.sampling.class_weights", "Kidney"),
        ("dataset.domains={leave_out: D}", "dataset.domains", "D"),
        ("dataset.domains={leave_out: acdc}", "dataset.domains.leave_out", ANY),
        ("augment.swap_sides=true", "augment.swap_sides", True),
        ("training.useful={index_file: absent.json}", "absent.json", "no file"),
    ],
)
def test_every_verb_raises_an_error_of_the_configuration_before_a_file_is_written(
    verb: str,
    override: str,
    key: str,
    got: Any,
    do: Do,
    tree: Callable[[], set[Path]],
    tiny_config: MakeConfig,
    refused: Refused,
) -> None:
    before = tree()
    with refused(key, got=got):
        do(verb, tiny_config(override))
    assert tree() == before


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_raises_a_missing_package_before_a_file_is_written(
    verb: str,
    do: Do,
    tree: Callable[[], set[Path]],
    tiny_config: MakeConfig,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("uumamba.config.track.find_spec", lambda name: None)
    before = tree()
    with refused("track", got="mlflow"):
        do(verb, tiny_config("track=[mlflow]"))
    assert tree() == before


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_raises_an_index_file_of_other_cases_before_a_file_is_written(
    verb: str, do: Do, tree: Callable[[], set[Path]], tiny_config: MakeConfig, tmp_path: Path, refused: Refused
) -> None:
    index = write_index(tmp_path / SLOW_CASES_NAME, "patient001_frame01", "another")
    before = tree()
    with refused(str(index)):
        do(verb, tiny_config(f"training.useful={{index_file: {index}}}"))
    assert tree() == before


# Options of training.


STYLE = "domain_generalization={name: UDIM, perturbation: {name: style}}"
FREEZING = ("optim={name: SAGM, base: {name: AdamW}}", "quantization={calibration_batches: 2, gaqat: {every: 2}}")


class Two(Alone):
    """Rank 0 of two processes, as far as jobs know them."""

    count = 2


@pytest.mark.parametrize("verb", ["run", "train"])
@pytest.mark.parametrize(
    ("override", "options", "key", "got"),
    [
        ("training.batch_size=3", {"ranks": Two()}, "training.batch_size", 3),
        ("training.channels_last=true", {}, "training.channels_last", True),
        ("training.epochs=1", {"device": "cpu,cpu"}, "--device", "cpu,cpu"),
        ("training.epochs=1", {"fold": "7"}, "--fold", "7"),
        ("training.epochs=1", {"seeds": [-1]}, "--seeds", [-1]),
    ],
)
def test_options_of_training_are_checked_before_a_file_is_written(
    verb: str,
    override: str,
    options: dict[str, Any],
    key: str,
    got: Any,
    do: Do,
    tree: Callable[[], set[Path]],
    tiny_config: MakeConfig,
    refused: Refused,
) -> None:
    before = tree()
    with refused(key, got=got):
        do(verb, tiny_config(override), **options)
    assert tree() == before


@pytest.mark.parametrize("verb", ["run", "train"])
def test_ranks_that_would_freeze_different_scales_are_refused_before_a_file_is_written(
    verb: str, do: Do, tree: Callable[[], set[Path]], tiny_config: MakeConfig, refused: Refused
) -> None:
    before = tree()
    with refused("optim.perturbation", got="rank"):
        do(verb, tiny_config(*FREEZING), ranks=Two())
    assert tree() == before


@pytest.mark.parametrize("verb", VERBS)
def test_a_network_without_a_head_for_udim_is_refused_before_a_file_is_written(
    verb: str,
    do: Do,
    tree: Callable[[], set[Path]],
    tiny_config: MakeConfig,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(KINDS["net"].parts, "Rectified", "tests.config.test_domain_generalization:Rectified")
    before = tree()
    with refused("net.name", got="Rectified"):
        do(verb, tiny_config("net={name: Rectified, spatial_dims: 2}", STYLE))
    assert tree() == before


@pytest.mark.parametrize(
    ("init", "override", "key"),
    [
        ("absent", "seed=1", "--init"),
        ("run", "net.features=[4,8,16]", "--init"),
        ("run", "net.name=ResEncUNet", "--init"),
        ("many", "seed=1", "--init"),
    ],
)
def test_initial_weights_that_are_missing_or_do_not_fit_are_refused_before_a_file_is_written(
    init: str,
    override: str,
    key: str,
    tiny_run: Path,
    tmp_path: Path,
    do: Do,
    tree: Callable[[], set[Path]],
    tiny_config: MakeConfig,
) -> None:
    models = {"absent": tmp_path / "absent", "run": tiny_run, "many": tmp_path / "many"}
    for fold in ("fold_0", "fold_1"):
        copytree(tiny_run / "fold_0", models["many"] / fold)
    before = tree()
    with pytest.raises(UsageError) as error:
        do("train", tiny_config(override), init=str(models[init]))
    assert error.value.key == key
    assert error.value.fix or error.value.expected
    assert tree() == before


@pytest.mark.parametrize(("verb", "key"), [("prepare", "--raw"), ("run", "--raw"), ("train", "--data")])
def test_a_data_set_without_training_cases_is_refused_by_its_folder(
    verb: str,
    key: str,
    do: Do,
    tree: Callable[[], set[Path]],
    tiny_config: MakeConfig,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Manifest, "select", lambda self, **chosen: ())
    before = tree()
    with refused(key) as error:
        do(verb, tiny_config())
    assert "no training case" in error.value.got
    assert tree() == before


def test_a_fold_without_a_side_is_refused_but_fold_all_needs_no_validation(
    tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path, refused: Refused
) -> None:
    folder = PreparedFolder(tiny_prepared)
    folder.manifest = replace(folder.manifest, cases=folder.manifest.select(split="training", fold=0))
    for fold, training, validation in (("0", 0, 2), ("1", 2, 0)):
        with refused("--fold") as error:
            list_jobs(tiny_config(), folder, fold=fold, out=tmp_path)
        assert str(error.value.got).startswith(f"{fold} with {training} training and {validation} validation cases")
    [job] = list_jobs(tiny_config(), folder, fold="all", out=tmp_path)
    assert len(job.training_ids) == 2


def test_groups_that_no_case_has_are_refused_for_raw_and_prepared_cases(
    tiny_raw: Path, tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path, refused: Refused
) -> None:
    config = tiny_config("training.useful={most_epochs: 2, group_by: group}")
    folder, raw = PreparedFolder(tiny_prepared), RawFolder("phantom", tiny_raw, out=tmp_path)
    without = replace(folder.manifest, cases=tuple(replace(case, group=None) for case in folder.manifest.cases))
    folder.manifest = without
    vars(raw)["listed"] = (without, [])
    for cases in (raw, folder):
        with refused("training.useful.group_by", got="group"):
            list_jobs(config, cases, fold="0", out=tmp_path / "run")


@pytest.mark.parametrize("fold", ["0", "1"])
def test_another_configuration_and_a_checkpoint_without_resume_are_refused_before_any_fold_is_trained(
    fold: str,
    tiny_run: Path,
    tiny_prepared: Path,
    tiny_config: MakeConfig,
    refused: Refused,
) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    with refused("config", got={"optim.rho": 0.1}):
        train(tiny_config("optim.rho=0.1"), data=tiny_prepared, out=tiny_run, fold=fold, resume=True)
    with refused(str(tiny_run / "fold_0"), got="a checkpoint"):
        train(tiny_config(), data=tiny_prepared, out=tiny_run, fold="cv")
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")} == before
