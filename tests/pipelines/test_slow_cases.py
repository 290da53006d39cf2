"""Training with slow cases twice: probe, stored file, resume and refusals."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.pipelines.run_files import MakeConfig, Refused, StateOf, job_of, read_json, rows_of, train_arguments
from uumamba.config import RunConfig
from uumamba.data.dataset import case_views
from uumamba.data.prepared import PreparedFolder
from uumamba.domain_generalization import ProbeOutputs
from uumamba.pipelines import slow_cases
from uumamba.pipelines.build import build_trainer
from uumamba.pipelines.slow_cases import SLOW_CASES_NAME, PerViewNet, probe_cases, training_case_ids
from uumamba.pipelines.train import train
from uumamba.runtime.errors import UsageError
from uumamba.runtime.ranks import Alone
from uumamba.runtime.stop import StoppedOnRequest
from uumamba.training import ALONE, Trainer

USEFUL = "training.useful={most_epochs: 2, group_by: phase, views: 2}"
THREE_VIEWS = USEFUL.replace("views: 2", "views: 3")


@pytest.fixture(scope="module")
def folder(tiny_prepared: Path) -> PreparedFolder:
    return PreparedFolder(tiny_prepared)


@pytest.fixture(scope="module")
def training(folder: PreparedFolder) -> list[str]:
    """Training cases of fold 0."""
    return [case.case_id for case in folder.manifest.select(split="training", without_fold=0)]


@pytest.fixture(scope="module")
def useful_run(tiny_prepared: Path, tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run of fold 0 with its slow cases twice."""
    out = tmp_path_factory.mktemp("useful")
    train(tiny_config(USEFUL), data=tiny_prepared, out=out)
    return out


def stored(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(run / "fold_0" / SLOW_CASES_NAME)
    return content


def outputs(error: float, cases: int) -> ProbeOutputs:
    """Make probe outputs; the second half of the cases is slow."""
    losses = torch.arange(cases).ge(cases // 2).double()
    return ProbeOutputs(losses[:, None], losses, torch.zeros(cases, dtype=torch.int64), error, "", 1)


def test_views_are_always_the_same_contain_foreground_and_differ_from_each_other(folder: PreparedFolder) -> None:
    ids = [case.case_id for case in folder.manifest.cases[:3]]
    first, again = (list(case_views(folder, ids, patch_size=(32, 32), views=4)) for _ in range(2))
    for one, other, case_id in zip(first, again, ids, strict=True):
        assert one["case_id"] == [case_id]
        assert one["image"].shape == one["label"].shape == (1, 1, 4, 32, 32)
        assert torch.equal(one["image"], other["image"])
        assert one["label"][0, 0].flatten(1).any(1).all()
        assert not torch.equal(one["image"][:, :, 0], one["image"][:, :, 1])
    alone = next(iter(case_views(folder, ids[1:], patch_size=(32, 32), views=4)))
    assert torch.equal(alone["image"], first[1]["image"]), "independent of the other cases"


def test_each_view_is_segmented_separately_by_the_finest_logits() -> None:
    net, image = nn.Conv2d(1, 3, 3).double(), torch.randn(2, 1, 4, 8, 8).double()
    segmented = PerViewNet(net)(image)
    assert segmented.shape == (2, 3, 4, 6, 6)
    for view in range(4):
        torch.testing.assert_close(segmented[:, :, view], net(image[:, :, view]))

    class Deep(nn.Module):
        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            return [net(image), net(image)[..., ::2, ::2]]

    assert torch.equal(PerViewNet(Deep())(image), segmented)


def test_cases_are_grouped_by_phase_or_all_together(folder: PreparedFolder, refused: Refused) -> None:
    cases = folder.manifest.cases[:4]
    net = nn.Conv2d(1, 4, 1)
    segment = partial(probe_cases, net, folder, [case.case_id for case in cases], patch_size=(32, 32), views=2)
    assert segment(group_by="phase").groups.tolist() == [["ED", "ES"].index(str(case.phase)) for case in cases]
    assert segment().groups.tolist() == [0] * 4
    assert net.training, "training mode is kept"
    no_phase = PreparedFolder(folder.path)
    cases = tuple(replace(case, phase=None) for case in folder.manifest.cases)
    object.__setattr__(no_phase, "manifest", replace(folder.manifest, cases=cases))
    with refused("training.useful.group_by", got="phase"):
        probe_cases(net, no_phase, [cases[0].case_id], patch_size=(32, 32), views=1, group_by="phase")


def test_the_file_has_the_slow_cases_of_each_phase_with_seed_and_settings(
    useful_run: Path, training: list[str]
) -> None:
    found = stored(useful_run)
    assert [training[place] for place in found["slow"]] == found["settings"]["slow_cases"] != []
    assert [group["size"] for group in found["groups"]] == [len(training) // 2] * 2
    assert (found["seed"], found["size"], found["epoch"]) == (0, len(training), 2)
    assert found["settings"] | {"most_epochs": 2, "views": 2, "group_by": "phase"} == found["settings"]
    assert len(found["errors"]) == 3


def test_training_starts_from_scratch_and_draws_slow_cases_twice_as_often(
    useful_run: Path,
    folder: PreparedFolder,
    training: list[str],
    tiny_config: MakeConfig,
    tmp_path: Path,
    state_of: StateOf,
) -> None:
    cases = [*training, *stored(useful_run)["settings"]["slow_cases"]]
    run_dir = tmp_path / "run" / "fold_0"
    build_trainer(job_of(tiny_config(), folder), folder, run_dir=run_dir, cases=cases).fit()
    assert state_of(tmp_path / "run") == state_of(useful_run)
    assert not list((useful_run / "fold_0").glob(".unfinished*"))


def test_an_index_file_gives_the_same_training_without_a_probe(
    useful_run: Path, tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path, state_of: StateOf
) -> None:
    index = useful_run / "fold_0" / SLOW_CASES_NAME
    run = tmp_path / "run"
    train(tiny_config(f"training.useful={{index_file: {index}}}"), data=tiny_prepared, out=run)
    assert state_of(run) == state_of(useful_run)
    assert stored(run)["slow"] == stored(useful_run)["slow"]
    assert stored(run)["settings"]["index_file"] == SLOW_CASES_NAME


def test_a_stopped_probe_stores_nothing_and_starts_again(
    useful_run: Path,
    tiny_prepared: Path,
    tiny_config: MakeConfig,
    tmp_path: Path,
    state_of: StateOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probe, run = slow_cases.probe_cases, tmp_path / "run"

    def probe_and_stop(net: nn.Module, *args: Any, **options: Any) -> ProbeOutputs:
        signal.raise_signal(signal.SIGTERM)
        return probe(net, *args, **options)

    begin = partial(train, tiny_config(USEFUL), data=tiny_prepared, out=run, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(slow_cases, "probe_cases", probe_and_stop)
        with pytest.raises(StoppedOnRequest):
            begin()
    assert not (run / "fold_0" / SLOW_CASES_NAME).exists()
    begin()
    assert stored(run) == stored(useful_run)
    assert state_of(run) == state_of(useful_run)


def test_a_resumed_training_reads_the_file_and_equals_one_that_never_stopped(
    useful_run: Path, tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path, state_of: StateOf
) -> None:
    fold = tmp_path / "run" / "fold_0"
    fold.mkdir(parents=True)
    shutil.copy(useful_run / "fold_0" / SLOW_CASES_NAME, fold)
    shutil.copy(useful_run / "fold_0" / "previous.safetensors", fold / "last.safetensors")  # as after a kill
    before = (fold / SLOW_CASES_NAME).stat().st_ino
    train(tiny_config(USEFUL), data=tiny_prepared, out=tmp_path / "run", resume=True)
    assert state_of(tmp_path / "run") == state_of(useful_run)
    assert (fold / SLOW_CASES_NAME).stat().st_ino == before, "not written again"


def test_the_probe_ends_where_its_error_slows_and_reports_an_error_that_never_does(
    folder: PreparedFolder,
    training: list[str],
    tiny_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config("training.useful={most_epochs: 6}", "training.epochs=6", "training.batches_per_epoch=1")
    job = job_of(config, folder)

    def build(config: RunConfig, **options: Any) -> Trainer:
        return build_trainer(replace(job, config=config), folder, run_dir=None, **options)

    said: list[str] = []

    def find(errors: list[float], name: str) -> dict[str, Any]:
        left, run = iter(errors), tmp_path / name
        monkeypatch.setattr(slow_cases, "probe_cases", lambda *_, **__: outputs(next(left), len(training)))
        options = {"run_dir": run / "fold_0", "build_probe": build, "say": said.append, "ranks": ALONE}
        assert training_case_ids(config, folder, training, **options) == [*training, *training[len(training) // 2 :]]
        return stored(run)

    assert find([0.9, 0.6, 0.3, 0.29, 0.1], "elbow")["epoch"] == 3
    assert not any("did not slow" in line for line in said)
    assert find([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], "none")["epoch"] == 6
    assert any("did not slow within 6 epochs" in line for line in said)


def test_probe_outputs_that_are_not_finite_are_refused_and_equal_ones_reported(
    folder: PreparedFolder,
    training: list[str],
    tiny_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
) -> None:
    said: list[str] = []
    begin = partial(
        training_case_ids,
        tiny_config(USEFUL),
        folder,
        training,
        run_dir=tmp_path,
        build_probe=lambda config, **options: build_trainer(job_of(config, folder), folder, run_dir=None, **options),
        say=said.append,
        ranks=ALONE,
    )
    good = outputs(0.5, len(training))
    monkeypatch.setattr(slow_cases, "probe_cases", lambda *_, **__: replace(good, losses=good.losses / 0))
    with refused("training.useful"):
        begin()
    monkeypatch.setattr(slow_cases, "probe_cases", lambda *_, **__: replace(good, vectors=good.vectors * 0))
    assert begin() == training
    assert any("this is plain training" in line for line in said)


def test_files_of_other_settings_or_cases_and_a_checkpoint_without_a_file_are_refused(
    useful_run: Path, tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path, refused: Refused
) -> None:
    run = Path(shutil.copytree(useful_run, tmp_path / "run"))
    begin = partial(train, data=tiny_prepared, out=run, resume=True)
    with refused("config", got={"training.useful.views": 3}):
        begin(tiny_config(THREE_VIEWS))
    for name in ("last", "previous"):  # as a run that was stopped after its probe
        (run / "fold_0" / f"{name}.safetensors").rename(tmp_path / name)
    with refused("training.useful", got={"views": 3}):
        begin(tiny_config(THREE_VIEWS))
    for name in ("last", "previous"):
        (tmp_path / name).rename(run / "fold_0" / f"{name}.safetensors")
    with pytest.raises(UsageError, match=r"training\.useful"):
        begin(tiny_config())
    (run / "fold_0" / SLOW_CASES_NAME).unlink()
    with refused(str(run / "fold_0" / SLOW_CASES_NAME), got="no file"):
        begin(tiny_config(USEFUL))
    index, out = useful_run / "fold_0" / SLOW_CASES_NAME, tmp_path / "other"
    for file, fold in ((index, "cv"), (tmp_path / "absent.json", "0")):
        with pytest.raises(UsageError):
            train(tiny_config(f"training.useful={{index_file: {file}}}"), data=tiny_prepared, out=out, fold=fold)
    assert not out.exists()


def test_with_force_the_stored_cases_are_kept_and_their_settings_reported(
    useful_run: Path, tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(useful_run, tmp_path / "run"))
    train(tiny_config(THREE_VIEWS, "training.epochs=3"), data=tiny_prepared, out=run, resume=True, force=True)
    assert "found with other settings: {'views': 2}" in " ".join(capsys.readouterr().err.split())
    assert stored(run) == stored(useful_run)
    assert len(rows_of(run)) == 3


def test_rank_0_finds_the_slow_cases_and_the_others_receive_them(
    folder: PreparedFolder, training: list[str], tiny_config: MakeConfig, tmp_path: Path
) -> None:
    class Second(Alone):
        rank, count, first = 1, 2, False

        def on_rank_zero(self, work: Callable[[], Any]) -> None:
            """Leave the work to rank 0."""

        def broadcast(self, tree: Any) -> Any:
            assert tree is None
            return [1]

    options: dict[str, Any] = {"run_dir": tmp_path, "build_probe": print, "say": print, "ranks": Second()}
    found = training_case_ids(tiny_config(USEFUL), folder, training, **options)
    assert found == [*training, training[1]]


@pytest.mark.slow
def test_two_processes_find_the_slow_cases_of_one_process(
    useful_run: Path, tiny_prepared: Path, tiny_overrides: tuple[str, ...], tmp_path: Path
) -> None:
    command = ["-m", "uumamba", *train_arguments(tiny_prepared, tmp_path / "run", (*tiny_overrides, USEFUL))]
    own = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, *command], cwd=tmp_path, env=own, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    found, expected = stored(tmp_path / "run"), stored(useful_run)
    assert (found["slow"], found["settings"]) == (expected["slow"], expected["settings"])
    assert found["errors"] == pytest.approx(expected["errors"]), "two processes round differently"


def test_settings_without_effect_or_time_are_refused_by_the_configuration(tiny_config: MakeConfig) -> None:
    for overrides in ((USEFUL, "training.sampling.classes=of_data_set"), ("training.useful={most_epochs: 3}",)):
        with pytest.raises(UsageError):
            tiny_config(*overrides)
    assert tiny_config("training.useful={most_epochs: 3, index_file: a.json}").training.useful is not None
