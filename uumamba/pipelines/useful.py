"""Cases that a probe learns slowly are shown more often: found once a fold, kept beside its checkpoints."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from uumamba.config import RunConfig
from uumamba.config.training import UsefulConfig
from uumamba.data.prepared import PreparedFolder
from uumamba.domain_generalization import (
    Probe,
    SlowExamples,
    find_slow,
    read_slow_examples,
    upsampled,
    write_slow_examples,
)
from uumamba.pipelines.models import newest_checkpoint
from uumamba.pipelines.slow_cases import case_answers
from uumamba.runtime.errors import UsageError, UumambaError
from uumamba.runtime.files import make_folder, report_write_errors
from uumamba.runtime.locks import lock_folder
from uumamba.runtime.stop import StopRequest
from uumamba.training import Ranks, Trainer

SLOW_CASES_NAME = "slow_cases.json"
Say = Callable[[str], None]


class _ProbeOver(Exception):
    """Its error slowed, or its epochs are over."""


def fed_cases(
    config: RunConfig,
    folder: PreparedFolder,
    training: Sequence[str],
    *,
    run_dir: Path,
    build_probe: Callable[..., Trainer],
    say: Say,
    ranks: Ranks,
    force: bool = False,
) -> list[str]:
    """The training cases, and those that are learned slowly once more (or as often as ``factor`` says).

    The fold's folder keeps which they are, written whole when all is known: a probe that was interrupted starts anew,
    and a resumed training reads the file. Of several ranks the first looks for them, on its own, and the others wait.

    Args:
        config: the run.
        folder: the prepared cases.
        training: the fold's training cases, in order.
        run_dir: the fold's folder.
        build_probe: makes a trainer that keeps nothing of a configuration, with ``validate`` in place of its own.
        say: told what was found.
        ranks: the processes that train together.
        force: take a kept file that was found with other settings, and say so.

    Raises:
        UsageError: a file of slow cases is of other data or was found with other settings, or a checkpoint is there and
            its file is not.
        UumambaError: the probe diverged.
        StoppedOnRequest: a signal asked for it.
    """
    useful = config.training.useful
    if useful is None:
        return list(training)
    found = ranks.on_rank_zero(
        lambda: list(_find(config, useful, folder, training, run_dir, build_probe, say, force=force).slow)
    )
    return upsampled(training, ranks.broadcast(found), factor=useful.factor)


def refuse_unfit_index(config: RunConfig, folder: PreparedFolder, training: Sequence[str], run_dir: Path) -> None:
    """Refuse at once an index file that a fold would be refused for when its turn comes.

    Raises:
        UsageError: it is not there, is damaged, or is of other cases.
    """
    useful = config.training.useful
    if useful is not None and useful.index_file is not None and not (run_dir / SLOW_CASES_NAME).is_file():
        _read(Path(useful.index_file), folder, training)


def fingerprint_of_cases(folder: PreparedFolder, case_ids: Sequence[str]) -> str:
    """Of the prepared data set and of which of its cases these are; no array is read."""
    return hashlib.sha256(json.dumps([folder.sha256(), list(case_ids)]).encode()).hexdigest()


def _find(
    config: RunConfig,
    useful: UsefulConfig,
    folder: PreparedFolder,
    training: Sequence[str],
    run_dir: Path,
    build_probe: Callable[..., Trainer],
    say: Say,
    *,
    force: bool,
) -> SlowExamples:
    path = run_dir / SLOW_CASES_NAME
    if path.is_file():
        found = _read(path, folder, training)
        different = _differences(found.settings, _asked(useful, config))
        if different and not force:
            raise UsageError(
                f"{path} was found with other settings ({different}); correct training.useful, delete the file to look "
                "anew where no checkpoint is, or go on with these cases by --force."
            )
        if different:
            say(f"going on with {path.name} as it was found, with other settings ({different})")
        return found
    if newest_checkpoint(run_dir) is not None:
        raise UsageError(
            f"{run_dir} holds a checkpoint and no {SLOW_CASES_NAME}, which says what cases it was shown twice; put the "
            "file back, or train in another folder."
        )
    if useful.index_file is not None:
        found = _read(Path(useful.index_file), folder, training)
    else:
        make_folder(run_dir)
        with lock_folder(run_dir, doing="looking for slow cases"):
            found = _probe(config, useful, folder, training, build_probe, say)
    cases = [training[place] for place in found.slow]
    found = replace(found, settings=found.settings | _asked(useful, config) | {"slow_cases": cases})
    with report_write_errors(path):
        write_slow_examples(path, found)
    say(f"{len(cases)} of {len(training)} cases are learned slowly and shown {useful.factor} times ({path.name})")
    return found


def _probe(
    config: RunConfig,
    useful: UsefulConfig,
    folder: PreparedFolder,
    training: Sequence[str],
    build_probe: Callable[..., Trainer],
    say: Say,
) -> SlowExamples:
    probe, stop = Probe(slowing=useful.slowing), StopRequest()

    def look(net: nn.Module) -> dict[str, float]:
        answers = case_answers(
            net,
            folder,
            training,
            patch_size=config.training.patch_size,
            views=useful.views,
            group_by=useful.group_by,
        )
        try:
            reached = probe.add(answers)
        except ValueError as error:
            raise UumambaError(f"The probe for slow cases learned nothing: {error}.") from error
        if reached or len(probe.errors) > useful.most_epochs:  # the first is that of the start
            raise _ProbeOver
        return {"dice": 1 - answers.error}

    def follow(*_: Any) -> None:
        stop.raise_if_requested("while slow cases were looked for, which begins anew with --resume")

    trainer = build_probe(
        _as_probe(config), validate=look, progress=False, log=lambda line: say(f"probe for slow cases, {line}")
    )
    trainer.optimizer.register_step_post_hook(follow)
    with stop, suppress(_ProbeOver):
        look(trainer.net)
        trainer.fit()
    if probe.epoch is None:
        say(
            f"the error of the probe did not slow within {useful.most_epochs} epochs, so slow cases are those of the "
            "last; give training.useful.most_epochs more"
        )
    assert probe.outputs is not None
    found = find_slow(probe.outputs, seed=config.seed)
    if not found.slow:
        say("no group of cases has slow ones, so this is plain training: " + _notes(found))
    epoch = useful.most_epochs if probe.epoch is None else probe.epoch
    fingerprint = fingerprint_of_cases(folder, training)
    return replace(found, epoch=epoch, errors=tuple(probe.errors), fingerprint=fingerprint)


def _as_probe(config: RunConfig) -> RunConfig:
    """The run itself, looked at after each epoch, without the moving average, which would lag behind."""
    training = config.training.model_copy(update={"validate_every": 1, "ema_decay": None})
    return config.model_copy(update={"training": training})


def _read(path: Path, folder: PreparedFolder, training: Sequence[str]) -> SlowExamples:
    return read_slow_examples(path, size=len(training), fingerprint=fingerprint_of_cases(folder, training))


def _asked(useful: UsefulConfig, config: RunConfig) -> dict[str, Any]:
    """What a kept file must have been found with."""
    if useful.index_file is not None:
        return {"index_file": Path(useful.index_file).name}
    asked = useful.model_dump(mode="json", include={"most_epochs", "slowing", "group_by", "views"})
    return {"seed": config.seed, "patch_size": list(config.training.patch_size), **asked}


def _differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{key} is {there.get(key)} there, {asked[key]} here" for key in asked if there.get(key) != asked[key]
    )


def _notes(found: SlowExamples) -> str:
    return "; ".join(f"group {each.group}: {each.note}" for each in found.groups)
