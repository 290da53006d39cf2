"""Training that shows slow cases twice: found by a probe from the same start, kept, reused, and refused where unfit."""

import json
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

from uumamba.config import RunConfig
from uumamba.config.load import validate
from uumamba.data.prepared import PreparedFolder
from uumamba.domain_generalization import ProbeOutputs
from uumamba.pipelines import useful
from uumamba.pipelines.build import build_trainer
from uumamba.pipelines.split import split_cases
from uumamba.pipelines.train import train
from uumamba.pipelines.useful import SLOW_CASES_NAME, fed_cases
from uumamba.runtime.errors import UsageError, UumambaError
from uumamba.runtime.ranks import Alone
from uumamba.runtime.seeds import seed_everything
from uumamba.runtime.stop import StoppedOnRequest
from uumamba.training import ALONE

MakeConfig = Callable[..., RunConfig]
StateOf = Callable[[Path], dict[str, Any]]
USEFUL = "training.useful={most_epochs: 2, group_by: phase, views: 2}"


@pytest.fixture(scope="module")
def useful_run(tiny_prepared: Path, tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fold 0, with its slow cases twice."""
    out = tmp_path_factory.mktemp("useful")
    train(tiny_config(USEFUL), data=tiny_prepared, out=out)
    return out


def kept(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "fold_0" / SLOW_CASES_NAME).read_text(encoding="utf-8"))
    return content


def answers(error: float, cases: int) -> ProbeOutputs:
    """Of a training in which the later half of the cases is slow."""
    losses = torch.arange(cases).ge(cases // 2).double()
    return ProbeOutputs(losses[:, None], losses, torch.zeros(cases, dtype=torch.int64), error, "", 1)


def test_the_file_names_the_slow_cases_of_each_phase_with_seed_settings_and_data(
    useful_run: Path, tiny_prepared: Path
) -> None:
    folder, found = PreparedFolder(tiny_prepared), kept(useful_run)
    training, _ = split_cases(folder.manifest, "0")
    assert [training[place] for place in found["slow"]] == found["settings"]["slow_cases"] != []
    assert [group["size"] for group in found["groups"]] == [len(training) // 2] * 2
    assert (found["seed"], found["size"], found["epoch"]) == (0, len(training), 2)
    assert found["settings"] | {"most_epochs": 2, "views": 2, "group_by": "phase"} == found["settings"]
    assert found["fingerprint"] == useful.fingerprint_of_cases(folder, training)
    assert len(found["errors"]) == 3


def test_training_starts_from_scratch_and_draws_slow_cases_twice_as_often(
    useful_run: Path, tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path, state_of: StateOf
) -> None:
    folder = PreparedFolder(tiny_prepared)
    training, _ = split_cases(folder.manifest, "0")
    fed = [*training, *kept(useful_run)["settings"]["slow_cases"]]
    build_trainer(tiny_config(), folder, fold="0", run_dir=tmp_path / "run" / "fold_0", cases=fed).fit()
    assert state_of(tmp_path / "run") == state_of(useful_run)
    assert not list((useful_run / "fold_0").glob(".unfinished*"))


def test_slow_cases_that_were_found_before_give_the_same_training_without_a_probe(
    useful_run: Path,
    tiny_prepared: Path,
    tiny_config: MakeConfig,
    tmp_path: Path,
    state_of: StateOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(useful, "_probe")
    index = useful_run / "fold_0" / SLOW_CASES_NAME
    train(tiny_config(f"training.useful={{index_file: {index}}}"), data=tiny_prepared, out=tmp_path / "run")
    assert state_of(tmp_path / "run") == state_of(useful_run)
    assert kept(tmp_path / "run")["slow"] == kept(useful_run)["slow"]
    assert kept(tmp_path / "run")["settings"]["index_file"] == SLOW_CASES_NAME


@pytest.mark.slow
def test_a_probe_that_is_stopped_keeps_nothing_and_begins_anew(
    useful_run: Path,
    tiny_prepared: Path,
    tiny_config: MakeConfig,
    tmp_path: Path,
    state_of: StateOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look = useful.case_answers

    def look_and_stop(net: nn.Module, *args: Any, **options: Any) -> ProbeOutputs:
        signal.raise_signal(signal.SIGTERM)
        return look(net, *args, **options)

    begin = partial(train, tiny_config(USEFUL), data=tiny_prepared, out=tmp_path / "run", resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(useful, "case_answers", look_and_stop)
        with pytest.raises(StoppedOnRequest, match="SIGTERM while slow cases were looked for, which begins anew with"):
            begin()
    assert not (tmp_path / "run" / "fold_0" / SLOW_CASES_NAME).exists()
    begin()
    assert kept(tmp_path / "run") == kept(useful_run)
    assert state_of(tmp_path / "run") == state_of(useful_run)


@pytest.mark.slow
def test_a_training_that_goes_on_reads_the_file_and_ends_like_one_that_never_stopped(
    useful_run: Path,
    tiny_prepared: Path,
    tiny_config: MakeConfig,
    tmp_path: Path,
    state_of: StateOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    (run / "fold_0").mkdir(parents=True)
    for name in ("previous.safetensors", SLOW_CASES_NAME):  # as after a kill in the second epoch
        shutil.copy(useful_run / "fold_0" / name, run / "fold_0" / name)
    (run / "fold_0" / "previous.safetensors").rename(run / "fold_0" / "last.safetensors")
    monkeypatch.delattr(useful, "_probe")
    train(tiny_config(USEFUL), data=tiny_prepared, out=run, resume=True)
    assert state_of(run) == state_of(useful_run)


def test_the_probe_ends_where_its_error_falls_slowly_and_says_so_where_it_never_does(
    tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("training.useful={most_epochs: 6}", "training.epochs=6", "training.batches_per_epoch=1")
    folder = PreparedFolder(tiny_prepared)
    training, _ = split_cases(folder.manifest, "0")
    begin = partial(build_trainer, folder=folder, fold="0", run_dir=None)
    said: list[str] = []

    def found(errors: list[float], name: str) -> dict[str, Any]:
        left = iter(errors)
        monkeypatch.setattr(useful, "case_answers", lambda *_, **__: answers(next(left), len(training)))
        run_dir = tmp_path / name / "fold_0"
        fed = fed_cases(config, folder, training, run_dir=run_dir, build_probe=begin, say=said.append, ranks=ALONE)
        assert fed == [*training, *training[len(training) // 2 :]]
        return kept(tmp_path / name)

    assert found([0.9, 0.6, 0.3, 0.29, 0.1], "knee")["epoch"] == 3
    assert not any("did not slow" in line for line in said)
    assert found([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], "none")["epoch"] == 6
    assert any("did not slow within 6 epochs" in line for line in said)


def test_a_probe_without_a_finite_answer_and_cases_that_are_all_alike_have_their_sentence(
    tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = tiny_config(USEFUL), PreparedFolder(tiny_prepared)
    training, _ = split_cases(folder.manifest, "0")
    said: list[str] = []
    begin = partial(
        fed_cases,
        config,
        folder,
        training,
        run_dir=tmp_path,
        build_probe=partial(build_trainer, folder=folder, fold="0", run_dir=None),
        say=said.append,
        ranks=ALONE,
    )
    good = answers(0.5, len(training))
    bad = replace(good, losses=good.losses / 0)
    monkeypatch.setattr(useful, "case_answers", lambda *_, **__: bad)
    with pytest.raises(UumambaError, match=r"The probe for slow cases learned nothing: .* not finite"):
        begin()
    alike = replace(good, vectors=good.vectors * 0)
    monkeypatch.setattr(useful, "case_answers", lambda *_, **__: alike)
    assert begin() == training
    assert any("this is plain training: group 0: all outputs are equal" in line for line in said)


def test_a_file_of_other_settings_or_cases_and_a_checkpoint_without_one_are_refused(
    useful_run: Path, tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(useful_run, tmp_path / "run"))
    begin = partial(train, data=tiny_prepared, out=run, resume=True)
    with pytest.raises(UsageError, match=r"other settings \(views is 2 there, 3 here\); .* by --force"):
        begin(tiny_config(USEFUL.replace("views: 2", "views: 3")))
    with pytest.raises(UsageError, match=r"config: got .*training\.useful': None"):
        begin(tiny_config())
    (run / "fold_0" / SLOW_CASES_NAME).unlink()
    with pytest.raises(UsageError, match=r"holds a checkpoint and no slow_cases\.json, .* put the file back"):
        begin(tiny_config(USEFUL))
    index = useful_run / "fold_0" / SLOW_CASES_NAME
    other = tiny_config(f"training.useful={{index_file: {index}}}")
    with pytest.raises(UsageError, match=r"slow_cases\.json: got .* expected those of this data set"):
        train(other, data=tiny_prepared, out=tmp_path / "other", fold="cv")
    with pytest.raises(UsageError, match=r"absent\.json: got no file"):
        train(tiny_config("training.useful={index_file: absent.json}"), data=tiny_prepared, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_forced_on_it_keeps_the_slow_cases_that_it_was_begun_with_and_says_so(
    useful_run: Path, tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(useful_run, tmp_path / "run"))
    train(
        tiny_config(USEFUL.replace("views: 2", "views: 3"), "training.epochs=3"),
        data=tiny_prepared,
        out=run,
        resume=True,
        force=True,
    )
    assert "going on with slow_cases.json as it was found, with other settings (views is 2 there, 3 here)" in " ".join(
        capsys.readouterr().err.split()
    )
    assert kept(run) == kept(useful_run)
    assert len((run / "fold_0" / "metrics.jsonl").read_text().splitlines()) == 3


def test_groups_that_no_case_has_are_refused(tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path) -> None:
    folder = PreparedFolder(tiny_prepared)
    training, _ = split_cases(folder.manifest, "0")
    cases = tuple(replace(case, phase=None) for case in folder.manifest.cases)
    object.__setattr__(folder, "manifest", replace(folder.manifest, cases=cases))
    seed_everything(0)
    with pytest.raises(UsageError, match=r"group_by is phase, and no case of phantom has one; set it to null"):
        useful.case_answers(nn.Identity(), folder, training, patch_size=(48, 48), views=1, group_by="phase")


def test_the_first_rank_looks_and_the_others_take_what_it_found(
    tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Second(Alone):
        rank, count, first = 1, 2, False

        def on_rank_zero(self, work: Callable[[], Any]) -> None:
            """Another process does it."""

        def broadcast(self, tree: Any) -> Any:
            assert tree is None
            return [1]

    monkeypatch.delattr(useful, "_find")
    config, folder = tiny_config(USEFUL), PreparedFolder(tiny_prepared)
    training, _ = split_cases(folder.manifest, "0")
    fed = fed_cases(config, folder, training, run_dir=tmp_path, build_probe=print, say=print, ranks=Second())  # type: ignore[arg-type] # neither is called
    assert fed == [*training, training[1]]


@pytest.mark.slow
def test_two_processes_train_with_the_slow_cases_of_one(
    useful_run: Path, tiny_prepared: Path, tiny_overrides: tuple[str, ...], tmp_path: Path
) -> None:
    settings = [word for key in (*tiny_overrides, USEFUL) for word in ("--set", key)]
    given = ["-m", "uumamba", "train", "demo", "--data", str(tiny_prepared), "--out", str(tmp_path / "run"), *settings]
    own = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, *given], cwd=tmp_path, env=own, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    found, expected = kept(tmp_path / "run"), kept(useful_run)
    assert found["slow"] == expected["slow"]
    assert found["settings"] == expected["settings"]
    assert found["errors"] == pytest.approx(expected["errors"]), "other threads round otherwise"
    assert (tmp_path / "run" / "fold_0" / "last.safetensors").is_file()


def test_configurations_that_slow_cases_have_no_effect_in_or_no_time_for_are_refused(tiny_config: MakeConfig) -> None:
    with pytest.raises(UsageError, match=r"draws a class and then one of the cases that hold it, .* to of_case, or"):
        tiny_config(USEFUL, "training.sampling.classes=of_data_set")
    with pytest.raises(UsageError, match=r"useful.most_epochs is 3 and epochs 2, .* to a tenth of epochs"):
        tiny_config("training.useful={most_epochs: 3}")
    assert tiny_config("training.useful={most_epochs: 3, index_file: a.json}").training.useful is not None


def test_a_configuration_from_before_the_key_has_no_slow_cases(tiny_config: MakeConfig) -> None:
    stored = tiny_config().as_json()
    assert stored["training"].pop("useful") is None
    assert validate(stored, source="a checkpoint") == tiny_config()
