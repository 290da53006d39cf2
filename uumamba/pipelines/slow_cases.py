"""USEFUL for cases: those that a probe learns slowly, found once a fold, are shown more often."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from uumamba.config import RunConfig
from uumamba.data.dataset import case_views
from uumamba.data.prepared import PreparedFolder
from uumamba.domain_generalization import (
    Probe,
    ProbeOutputs,
    SlowExamples,
    find_slow,
    probe_segmentation,
    read_slow_examples,
    upsampled,
    write_slow_examples,
)
from uumamba.pipelines.run_layout import newest_checkpoint
from uumamba.runtime.errors import UumambaError, require
from uumamba.runtime.files import make_folder, report_write_errors
from uumamba.runtime.locks import lock_folder
from uumamba.runtime.network import finest_logits
from uumamba.runtime.stop import StopRequest
from uumamba.training import Ranks, Trainer

SLOW_CASES_NAME = "slow_cases.json"
GroupBy = Literal["phase", "domain", "group"]
Say = Callable[[str], None]


class PerViewNet(nn.Module):
    """Network for ``(batch, channels, views, *patch)`` that segments every view separately.

    Args:
        net: patches to logits, or to a list of them, finest first.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``(batch, classes, views, *patch)``."""
        finest = finest_logits(self.net(image.movedim(2, 1).flatten(0, 1)))
        return finest.unflatten(0, (len(image), -1)).movedim(1, 2)


def probe_cases(
    net: nn.Module,
    folder: PreparedFolder,
    case_ids: Sequence[str],
    *,
    patch_size: Sequence[int],
    views: int,
    group_by: GroupBy | None = None,
) -> ProbeOutputs:
    """Segment fixed patches of each case; see :func:`uumamba.domain_generalization.probe_segmentation`.

    The patches are the same in every call, whatever the run's seed.

    Args:
        net: patches to logits.
        folder: the prepared folder.
        case_ids: the cases, in order.
        patch_size: of the patches.
        views: patches a case.
        group_by: slow cases are found within each phase, domain or group; None looks among all together.

    Raises:
        UsageError: no case has what they are to be grouped by.
    """
    names = [None if group_by is None else getattr(folder.manifest.by_id(case_id), group_by) for case_id in case_ids]
    expected = f"null, since no case of {folder.manifest.name} has a {group_by}"
    require(group_by is None or any(names), "training.useful.group_by", got=group_by, expected=expected)
    numbers = {name: number for number, name in enumerate(sorted({*names}, key=str))}
    shown = case_views(folder, case_ids, patch_size=patch_size, views=views)
    return probe_segmentation(PerViewNet(net), shown, groups=[numbers[name] for name in names])


class SlowCases:
    """Slow cases of one fold, by the ``training.useful`` of its configuration.

    The fold's folder stores them in ``slow_cases.json``, written whole at the end: an interrupted probe starts again,
    and a resumed training reads the file.

    Args:
        config: the run, with ``training.useful``.
        folder: the prepared cases.
        training: the fold's training cases, in order.
        run_dir: the fold's folder.
    """

    def __init__(self, config: RunConfig, folder: PreparedFolder, training: Sequence[str], run_dir: Path) -> None:
        assert config.training.useful is not None
        self.config, self.useful = config, config.training.useful
        self.folder, self.training, self.run_dir = folder, training, run_dir
        self.path = run_dir / SLOW_CASES_NAME

    def check_index(self) -> None:
        """Raise early if an index file is missing, damaged, or of other cases.

        Raises:
            UsageError: the fold could not use it.
        """
        if self.useful.index_file is not None and not self.path.is_file():
            self._read(Path(self.useful.index_file))

    def find(self, build_probe: Callable[..., Trainer], say: Say, *, force: bool = False) -> SlowExamples:
        """Read the slow cases of the fold, or find and store them; see :func:`training_case_ids`."""
        if self.path.is_file():
            return self._read_own(say, force=force)
        require(
            newest_checkpoint(self.run_dir) is None,
            str(self.path),
            got="no file",
            expected="the slow cases that the checkpoint in this folder was trained with",
            fix="put the file back, or train in another folder",
        )
        if self.useful.index_file is not None:
            found = self._read(Path(self.useful.index_file))
        else:
            make_folder(self.run_dir)
            with lock_folder(self.run_dir, doing="looking for slow cases"):
                found = self._probe(build_probe, say)
        cases = [self.training[place] for place in found.slow]
        found = replace(found, settings=found.settings | self._settings() | {"slow_cases": cases})
        with report_write_errors(self.path):
            write_slow_examples(self.path, found)
        say(
            f"{len(cases)} of {len(self.training)} cases are learned slowly and shown {self.useful.factor} times "
            f"({self.path.name})"
        )
        return found

    def _read_own(self, say: Say, *, force: bool) -> SlowExamples:
        found, asked = self._read(self.path), self._settings()
        before = {key: found.settings.get(key) for key in asked}
        different = {key: value for key, value in before.items() if value != asked[key]}
        require(
            force or not different,
            "training.useful",
            got={key: asked[key] for key in different},
            expected=f"{different}, with which {self.path} was made",
            fix="correct it, delete the file if there is no checkpoint, or keep these cases with --force",
        )
        if different:
            say(f"continuing with the slow cases of {self.path.name}, found with other settings: {different}")
        return found

    def _probe(self, build_probe: Callable[..., Trainer], say: Say) -> SlowExamples:
        useful, probe, stop = self.useful, Probe(slowing=self.useful.slowing), StopRequest()

        def look(net: nn.Module) -> dict[str, float]:
            outputs = probe_cases(
                net,
                self.folder,
                self.training,
                patch_size=self.config.training.patch_size,
                views=useful.views,
                group_by=useful.group_by,
            )
            try:
                reached = probe.add(outputs)
            except ValueError as error:
                raise UumambaError(f"The probe for slow cases learned nothing: {error}") from error
            if reached or len(probe.errors) > useful.most_epochs:  # the first error is that of the start
                raise _ProbeOver
            return {"dice": 1 - outputs.error}

        def stop_if_requested(*_: Any) -> None:
            stop.raise_if_requested("during the probe for slow cases, which starts again with --resume")

        # Evaluated after each epoch, without the moving average, which would lag behind.
        training = self.config.training.model_copy(update={"validate_every": 1, "ema_decay": None})
        config = self.config.model_copy(update={"training": training})
        trainer = build_probe(
            config, validate=look, progress=False, log=lambda line: say(f"probe for slow cases, {line}")
        )
        trainer.optimizer.register_step_post_hook(stop_if_requested)
        with stop, suppress(_ProbeOver):
            look(trainer.net)
            trainer.fit()
        epoch = useful.most_epochs if probe.epoch is None else probe.epoch
        if probe.epoch is None:
            say(
                f"the error of the probe did not slow within {epoch} epochs, so slow cases are those of the last; "
                "increase training.useful.most_epochs"
            )
        assert probe.outputs is not None
        found = find_slow(probe.outputs, seed=self.config.seed)
        if not found.slow:
            notes = "; ".join(f"group {each.group}: {each.note}" for each in found.groups)
            say(f"no group of cases has slow ones, so this is plain training: {notes}")
        return replace(found, epoch=epoch, errors=tuple(probe.errors), fingerprint=self._fingerprint())

    def _read(self, path: Path) -> SlowExamples:
        return read_slow_examples(path, size=len(self.training), fingerprint=self._fingerprint())

    def _fingerprint(self) -> str:
        """Hash of the prepared data set and of the training cases' ids; no array is read."""
        return hashlib.sha256(json.dumps([self.folder.sha256(), list(self.training)]).encode()).hexdigest()

    def _settings(self) -> dict[str, Any]:
        """Settings that a stored file must have been made with."""
        if self.useful.index_file is not None:
            return {"index_file": Path(self.useful.index_file).name}
        asked = self.useful.model_dump(mode="json", include={"most_epochs", "slowing", "group_by", "views"})
        return {"seed": self.config.seed, "patch_size": list(self.config.training.patch_size), **asked}


class _ProbeOver(Exception):
    """End of the probe: its error slowed, or its epochs are over."""


def training_case_ids(
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
    """List the training cases, and the slow ones once more (or ``factor - 1`` times).

    Of several ranks, rank 0 finds them, alone, and the others wait.

    Args:
        config: the run.
        folder: the prepared cases.
        training: the fold's training cases, in order.
        run_dir: the fold's folder.
        build_probe: makes a trainer of a configuration that stores nothing, with ``validate`` in place of its own.
        say: called with what was found.
        ranks: the processes that train together.
        force: use a stored file that was found with other settings, and report it.

    Raises:
        UsageError: the file of slow cases is of other data or was found with other settings, or it is missing although
            there is a checkpoint.
        UumambaError: the probe diverged.
        StoppedOnRequest: a signal requested it.
    """
    useful = config.training.useful
    if useful is None:
        return list(training)
    cases = SlowCases(config, folder, training, run_dir)
    found = ranks.on_rank_zero(lambda: list(cases.find(build_probe, say, force=force).slow))
    return upsampled(training, ranks.broadcast(found), factor=useful.factor)
