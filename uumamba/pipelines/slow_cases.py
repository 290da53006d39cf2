"""USEFUL for cases: slowly learned cases are drawn more often.

A probe, which is a short training, finds slow cases once per fold.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from uumamba.config import RunConfig
from uumamba.data.case import Manifest
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
from uumamba.pipelines.datasets import RawFolder
from uumamba.pipelines.run_layout import newest_checkpoint
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.files import lock_folder, make_folder, report_write_errors
from uumamba.runtime.network import finest_logits
from uumamba.runtime.observer import Observer, RunView
from uumamba.runtime.stop import StopRequest
from uumamba.training import Ranks, Trainer
from uumamba.training.display import LineDisplay

SLOW_CASES_NAME = "slow_cases.json"
GroupBy = Literal["phase", "domain", "group"]
Say = Callable[[str], None]


class PerViewNet(nn.Module):
    """Network for ``(batch, channels, views, *patch)``, applied to each view.

    Args:
        net: maps patches to logits, or to a list of logits, finest first.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """Return the finest logits ``(batch, classes, views, *patch)``."""
        finest = finest_logits(self.net(image.movedim(2, 1).flatten(0, 1)))
        return finest.unflatten(0, (len(image), -1)).movedim(1, 2)


def probe_cases(
    net: nn.Module,
    folder: PreparedFolder,
    case_ids: Sequence[str],
    *,
    patch_size: Sequence[int],
    views: int,
    neighbour_slices: int = 0,
    group_by: GroupBy | None = None,
) -> ProbeOutputs:
    """Segment fixed patches of each case.

    The patches are the same in every call and for every seed. For the result see
    :func:`uumamba.domain_generalization.probe_segmentation`.

    Args:
        net: maps patches to logits.
        folder: the prepared folder.
        case_ids: the cases, in order.
        patch_size: size of the patches.
        views: number of patches per case.
        neighbour_slices: as for :class:`uumamba.data.dataset.PatchDataset`.
        group_by: slow cases are found within each phase, domain or group; None makes one group of all cases.

    Raises:
        UsageError: no case has a value of ``group_by``.
    """
    names = group_names(folder.manifest, case_ids, group_by)
    groups = sorted({*names}, key=str)
    views_of_cases = case_views(folder, case_ids, patch_size=patch_size, views=views, neighbour_slices=neighbour_slices)
    return probe_segmentation(
        PerViewNet(net),
        views_of_cases,
        groups=[groups.index(name) for name in names],
        ignore_label=folder.manifest.labels.ignore_label,
    )


def group_names(manifest: Manifest, case_ids: Sequence[str], group_by: GroupBy | None) -> list[str | None]:
    """List each case's phase, domain or group; None without ``group_by``.

    Raises:
        UsageError: no case has a value of ``group_by``.
    """
    names = [None if group_by is None else getattr(manifest.by_id(case_id), group_by) for case_id in case_ids]
    require(
        group_by is None or any(names),
        "training.useful.group_by",
        got=group_by,
        expected=f"null or a property of the cases of {manifest.name}",
    )
    return names


class SlowCases:
    """Slowly learned cases of one fold, found by the probe of ``training.useful``.

    The probe stores the cases in ``slow_cases.json`` of the fold folder when it ends. An interrupted probe starts
    again; a resumed training reads the file.

    Args:
        config: the run, with ``training.useful``.
        folder: the cases; only prepared ones can be segmented.
        training: the fold's training cases, in order.
        run_dir: the fold folder.
    """

    def __init__(
        self, config: RunConfig, folder: RawFolder | PreparedFolder, training: Sequence[str], run_dir: Path
    ) -> None:
        assert config.training.useful is not None
        self.config, self.useful = config, config.training.useful
        self.folder, self.training, self.run_dir = folder, training, run_dir
        self.path = run_dir / SLOW_CASES_NAME

    def read(self, *, force: bool = False) -> SlowExamples | None:
        """Read the stored file or the index file; None without either.

        Of raw cases the file's hash is unknown, and only the names of its slow cases are compared.

        Raises:
            UsageError: a file is missing, damaged, of other cases or of other settings; or without a file no case has a
                value of ``group_by``.
        """
        if self.path.is_file():
            found = self._read_file(self.path)
            different, settings = self._find_other_settings(found), self._settings()
            require(
                force or not different,
                "training.useful",
                got={key: settings[key] for key in different},
                expected=f"{different}, the settings of {self.path}",
                fix="correct the settings, delete the file if there is no checkpoint, or keep its cases with --force",
            )
            return found
        require(
            newest_checkpoint(self.run_dir) is None,
            str(self.path),
            got="no file",
            expected="the slow cases of the checkpoint in this folder",
            fix="restore the file, or train in another folder",
        )
        if self.useful.index_file is not None:
            return self._read_file(Path(self.useful.index_file))
        group_names(self.folder.manifest, self.training, self.useful.group_by)
        return None

    def find(self, build_probe: Callable[..., Trainer], say: Say, *, force: bool = False) -> SlowExamples:
        """Read the slow cases of the fold, or find and store them.

        For the arguments see :func:`training_case_ids`.
        """
        found = self.read(force=force)
        if found is not None and self.path.is_file():
            if different := self._find_other_settings(found):
                say(f"continuing with the slow cases of {self.path.name}, found with other settings: {different}")
            return found
        if found is None:
            make_folder(self.run_dir)
            with lock_folder(self.run_dir, doing="finding slow cases"):
                found = self._probe(build_probe, say)
        cases = [self.training[place] for place in found.slow]
        found = replace(found, settings=found.settings | self._settings() | {"slow_cases": cases})
        with report_write_errors(self.path):
            write_slow_examples(self.path, found)
        say(
            f"{len(cases)} of {len(self.training)} cases are learned slowly and drawn {self.useful.factor} times as "
            f"often ({self.path.name})"
        )
        return found

    def _probe(self, build_probe: Callable[..., Trainer], say: Say) -> SlowExamples:
        useful, probe, stop, folder = self.useful, Probe(slowing=self.useful.slowing), StopRequest(), self.folder
        assert isinstance(folder, PreparedFolder), "scans are prepared before they are segmented"

        def evaluate(net: nn.Module) -> dict[str, float]:
            outputs = probe_cases(
                net,
                folder,
                self.training,
                patch_size=self.config.training.patch_size,
                views=useful.views,
                neighbour_slices=self.config.training.neighbour_slices,
                group_by=useful.group_by,
            )
            try:
                elbow_reached = probe.add(outputs)
            except UsageError as error:
                raise UsageError(
                    "training.useful",
                    got=f"a probe with {error.key} {error.got}",
                    expected=error.expected,
                    fix="lower the learning rate, or set training.useful=null",
                ) from error
            if elbow_reached or len(probe.errors) > useful.most_epochs:  # the first error is that of the start
                raise _ProbeEnd
            return {"dice": 1 - outputs.error}

        # Evaluated after each epoch; the moving average would lag behind.
        training = self.config.training.model_copy(update={"validate_every": 1, "ema_decay": None})
        config = self.config.model_copy(update={"training": training})
        display = LineDisplay(lambda line: say(f"probe for slow cases, {line}"))
        trainer = build_probe(config, validate=evaluate, observers=(display, _EndOnRequest(stop)))
        with stop, suppress(_ProbeEnd):
            evaluate(trainer.net)
            trainer.fit()
        epoch = useful.most_epochs if probe.epoch is None else probe.epoch
        if probe.epoch is None:
            say(
                f"the error of the probe did not slow within {epoch} epochs, so the last epoch gives the slow cases; "
                "increase training.useful.most_epochs"
            )
        assert probe.outputs is not None
        found = find_slow(probe.outputs, seed=self.config.seed)
        if not found.slow:
            notes = "; ".join(f"group {each.group}: {each.note}" for each in found.groups)
            say(f"no group has slow cases, so this is plain training: {notes}")
        return replace(found, epoch=epoch, errors=tuple(probe.errors), fingerprint=self._fingerprint(folder))

    def _read_file(self, path: Path) -> SlowExamples:
        if isinstance(self.folder, PreparedFolder):
            return read_slow_examples(path, size=len(self.training), fingerprint=self._fingerprint(self.folder))
        found = read_slow_examples(path)
        others = sorted({*found.settings.get("slow_cases", ())}.difference(self.training))
        require(
            not others,
            str(path),
            got=", ".join(others),
            expected="slow cases among the training cases of this data set",
            fix="find the slow examples again",
        )
        return found

    def _find_other_settings(self, found: SlowExamples) -> dict[str, Any]:
        """Return the file's settings that differ from the configuration."""
        return {
            key: found.settings.get(key) for key, value in self._settings().items() if found.settings.get(key) != value
        }

    def _fingerprint(self, folder: PreparedFolder) -> str:
        """Hash the prepared data set and the training cases' ids.

        No array is read.
        """
        return hashlib.sha256(json.dumps([folder.sha256(), list(self.training)]).encode()).hexdigest()

    def _settings(self) -> dict[str, Any]:
        """Return the settings that a stored file must have."""
        if self.useful.index_file is not None:
            return {"index_file": Path(self.useful.index_file).name}
        probe = self.useful.model_dump(mode="json", include={"most_epochs", "slowing", "group_by", "views"})
        return {"seed": self.config.seed, "patch_size": list(self.config.training.patch_size), **probe}


class _EndOnRequest(Observer):
    """Observer that ends the probe after a step with a stop request."""

    may_fail = False

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop

    def on_step(self, run: RunView) -> None:
        self.stop.raise_if_requested("during the probe for slow cases, which starts again with --resume")


class _ProbeEnd(Exception):
    """End of the probe: the elbow, or the last of its epochs."""


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
    """List the training cases, with slow cases ``factor`` times.

    Rank 0 finds the slow cases and broadcasts them.

    Args:
        config: the run.
        folder: the prepared cases.
        training: the fold's training cases, in order.
        run_dir: the fold folder.
        build_probe: builds a trainer without a folder; its ``validate`` replaces the fold's validation.
        say: called with a sentence on the result.
        ranks: the processes that train together.
        force: use and report a stored file with other settings.

    Raises:
        UsageError: the file of slow cases is of other data or other settings, or missing although there is a
            checkpoint; or the probe diverged.
        StoppedOnRequest: a stop was requested.
    """
    useful = config.training.useful
    if useful is None:
        return list(training)
    cases = SlowCases(config, folder, training, run_dir)
    found = ranks.on_rank_zero(lambda: list(cases.find(build_probe, say, force=force).slow))
    return upsampled(training, ranks.broadcast(found), factor=useful.factor)
