"""Preparation of a manifest's raw scans; a killed call can be repeated."""

import sys
import warnings
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.folds import complete_folds
from data_prep.raw_folder import check_output_folder
from uumamba.config import RunConfig
from uumamba.config.case_split import ALL_CASES
from uumamba.data.case import MANIFEST_NAME, Case, Manifest, Split
from uumamba.data.case_files import lists_case_ids
from uumamba.data.foreground import compute_statistics, store_foreground
from uumamba.data.label_scheme import IGNORED
from uumamba.data.prepared import FOREGROUND_NAME, RECIPE_NAME, is_up_to_date, write_prepared
from uumamba.data.preprocess import Preprocessing, PreprocessRecipe
from uumamba.data.scan import encode_classes, read_case
from uumamba.data.source_key import source_key
from uumamba.pipelines.datasets import RawFolder, record_failures
from uumamba.pipelines.jobs import list_jobs, resolve_config
from uumamba.runtime.case_boundary import attempt, fail_case_on_error
from uumamba.runtime.errors import CaseError, require
from uumamba.runtime.files import lock_folder, make_folder, remove_file, write_json
from uumamba.runtime.observer import to_stderr
from uumamba.runtime.parallel_cases import each_case
from uumamba.runtime.progress_bar import track
from uumamba.runtime.stop import StopRequest
from uumamba.runtime.terminal import is_terminal
from uumamba.runtime.text_files import load_json

_CASES_PER_LINE = 50
_Warned = tuple[tuple[type[Warning], str], ...]
"""Category and text of each warning about a case; a worker process returns them, since it shows no warning."""


@dataclass(frozen=True)
class PrepareResult:
    """Ids of the newly prepared and the reused cases, and the failures."""

    prepared: tuple[str, ...]
    reused: tuple[str, ...]
    failures: tuple[CaseError, ...]


def prepare_dataset(
    config: RunConfig, *, raw: Path | str, out: Path | str, workers: int = 0, progress: bool | None = None
) -> PrepareResult:
    """Prepare the training cases of a run's data set.

    Errors of the whole configuration are raised before, as in :func:`uumamba.pipelines.run.run`.

    Args:
        config: the run.
        raw: the data set as its owner ships it; never written to.
        out: the prepared folder; frames of cines are first cut into ``out/frames``.
        workers: number of worker processes; 0 uses this process.
        progress: a bar; None shows one on a terminal.

    Raises:
        UsageError: one of :func:`uumamba.pipelines.jobs.list_jobs` for fold ``"all"``, before any file is written, or
            of :func:`prepare`.
        StoppedOnRequest: a stop was requested; the next call continues.
    """
    folder = RawFolder(config.dataset.name, raw, out=Path(out), options=config.dataset.reader_options())
    config = resolve_config(config, folder)
    list_jobs(config, folder, fold=ALL_CASES, out=out)
    manifest, bad = folder.read()
    return prepare(
        manifest,
        bad,
        recipe=config.build_recipe(manifest.channels),
        out=out,
        workers=workers,
        raw=raw,
        progress=progress,
    )


def prepare(
    manifest: Manifest,
    bad: Sequence[CaseError] = (),
    *,
    recipe: PreprocessRecipe,
    out: Path | str,
    workers: int = 0,
    raw: Path | str | None = None,
    split: Split = "training",
    progress: bool | None = None,
) -> PrepareResult:
    """Prepare every case of a split and write the data set's manifest.

    Without folds in the manifest, the training cases get those of :func:`data_prep.folds.complete_folds`.

    A case that was made from the same bytes by the same recipe is up to date and is reused. Whenever the process dies,
    every case is complete or absent. ``dataset.json`` is written last, when all cases are complete. It lists the
    prepared cases and those of the other split with their raw paths, without failed cases.

    A recipe may lack CT statistics. Then every training case is read once before, of all folds, as in nnU-Net: the
    validation cases contribute to four numbers and reveal no label. Samples of their foreground are stored in
    ``foreground/``, so that the next call reads only changed cases, and the stored recipe has the statistics. A new or
    changed case changes the statistics and makes every prepared case stale. Without any readable training case there
    are no statistics: every case is a failure, and the recipe of an earlier call is kept.

    Args:
        manifest: the data set, also one that was made in Python.
        bad: failed cases of its reader; they are added to the failures.
        recipe: the preprocessing.
        out: gets ``dataset.json``, ``recipe.json``, ``cases/``, and ``failures.json`` where a case failed.
        workers: number of worker processes, which need an importable main module; 0 uses this process.
        raw: the raw folder; ``out`` may not be inside it.
        split: the split to prepare; cases of the other split are listed but not read.
        progress: a bar; None shows one on a terminal, and elsewhere a line per 50 cases.

    Raises:
        UsageError: the output cannot be a folder, is inside the raw folder, holds another program's ``dataset.json``,
            another process is preparing there, a patient is in two folds, the recipe is for another number of channels,
            or CT statistics are undefined because no training case has foreground.
        StoppedOnRequest: a stop was requested; the next call continues.
    """
    if raw is not None:
        check_output_folder(Path(out), Path(raw), key="--out")
    recipe.split(len(manifest.channels))  # raises for another number of channels
    stored = Path(out) / MANIFEST_NAME
    require(
        not stored.exists() or lists_case_ids(stored),
        "--out",
        got=stored,
        expected="no dataset.json of another program",
        fix="choose another folder",
    )
    manifest = replace(manifest, cases=tuple(complete_folds(manifest.cases)))
    out = make_folder(out)
    with lock_folder(out, doing="preparing"), StopRequest() as stop:
        stage = _Preparation(manifest, out, list(bad), stop, workers, progress)
        complete = recipe if recipe.is_complete else stage.add_statistics(recipe)
        prepared: list[str] = []
        reused: list[str] = []
        if complete is not None:
            _write_recipe(out, complete)
            stale, reused = stage.split_stale(complete, split)
            prepare_one = partial(_prepare_case, out=out, recipe=complete, channels=manifest.channels, **stage.values)
            prepared = stage.work_on(stale, prepare_one, name="prepare", doing="preparing")
        failures = stage.record_failures()
        _write_manifest(out, manifest, split, {*prepared, *reused})
    return PrepareResult(tuple(sorted(prepared)), tuple(sorted(reused)), tuple(failures))


@dataclass
class _Preparation:
    """Cases, settings and failures of one call of :func:`prepare`."""

    manifest: Manifest
    out: Path
    failures: list[CaseError]
    stop: StopRequest
    workers: int
    progress: bool | None
    warned: set[tuple[type[Warning], str]] = field(default_factory=set)

    @property
    def values(self) -> dict[str, Any]:
        """Label values of structures and of ignored voxels, as arguments."""
        return {"structures": dict(self.manifest.structures), "ignore_value": self.manifest.ignore_value}

    def add_statistics(self, recipe: PreprocessRecipe) -> PreprocessRecipe | None:
        """Add the training cases' foreground statistics to a recipe.

        None if no case can be read.
        """
        folder = self.out / FOREGROUND_NAME
        names = self.manifest.channels
        each = recipe.split(len(names))
        of_ct = [index for index, one in enumerate(each) if one.normalisation == "ct"]
        sample = partial(store_foreground, folder=folder, channels=names, sampled=of_ct, **self.values)
        sampled = self.work_on(self.manifest.select(split="training"), sample, name="sample", doing="sampling")
        if self.failures and not sampled:
            return None
        self.record_failures()  # before an error about missing foreground: a failed case may have foreground
        compute = partial(compute_statistics, sampled, folder=folder, clip_percentiles=recipe.clip_percentiles)
        found = {index: compute(row=row) for row, index in enumerate(of_ct)}
        return recipe.with_statistics([found.get(index) for index in range(len(names))])

    def split_stale(self, recipe: PreprocessRecipe, split: Split) -> tuple[list[Case], list[str]]:
        """Return the stale cases and the ids of those up to date.

        Unreadable cases are added to the failures.
        """
        failed = {failure.case_id for failure in self.failures}
        stale: list[Case] = []
        reused: list[str] = []
        cases = self.manifest.select(split=split)
        for count, case in enumerate(track(cases, description="compare", enabled=self.progress)):
            self.stop.raise_if_requested(
                f"after comparing {count} of {len(cases)} cases with their sources; run the same command to continue"
            )
            if case.case_id in failed:
                continue
            check = partial(_is_reusable, out=self.out, recipe=recipe, **self.values)
            found = attempt(check, case, case_id=case.case_id)
            if isinstance(found, CaseError):
                self.failures.append(found)
            elif found:
                reused.append(case.case_id)
            else:
                stale.append(case)
        return stale, reused

    def work_on(self, cases: Sequence[Case], work: Callable[[Case], object], *, name: str, doing: str) -> list[str]:
        """Call ``work`` on each case; return the ids of the successful ones.

        Other cases are added to the failures.
        """
        done: list[str] = []
        items = {case.case_id: case for case in cases}
        shows_bar = is_terminal(sys.stderr) if self.progress is None else self.progress
        outcomes = each_case(partial(_catch_warnings, work), items, workers=self.workers)
        shown = track(outcomes, description=name, total=len(items), enabled=shows_bar)
        for count, (case_id, outcome) in enumerate(shown, start=1):
            if isinstance(outcome, CaseError):
                self.failures.append(outcome)
            else:
                done.append(case_id)
                self._warn_once(outcome)
            if not shows_bar and (count % _CASES_PER_LINE == 0 or count == len(items)):
                to_stderr(f"{name}: {count} of {len(items)} cases")
            self.stop.raise_if_requested(
                f"after {doing} {count} of {len(items)} cases; run the same command to continue"
            )
        return done

    def record_failures(self) -> list[CaseError]:
        """Write ``failures.json``; return the failures sorted by case."""
        ordered = sorted(self.failures, key=lambda failure: failure.case_id)
        record_failures(self.out, ordered)
        return ordered

    def _warn_once(self, warned: _Warned) -> None:
        """Show a worker's warnings, each text once for all workers."""
        for category, text in warned:
            if (category, text) not in self.warned:
                self.warned.add((category, text))
                warnings.warn(text, category, stacklevel=3)


def _catch_warnings(work: Callable[[Case], object], case: Case) -> _Warned:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with fail_case_on_error(case.case_id):
            work(case)
    return tuple((each.category, str(each.message)) for each in caught)


def _is_reusable(case: Case, *, out: Path, **sources: Any) -> bool:
    with fail_case_on_error(case.case_id):
        return is_up_to_date(out, case, **sources)


def _prepare_case(
    case: Case,
    *,
    out: Path,
    recipe: PreprocessRecipe,
    structures: dict[str, int],
    channels: tuple[str, ...],
    ignore_value: int | None,
) -> None:
    key = source_key(case, recipe=recipe, structures=structures, ignore_value=ignore_value)
    image, label = read_case(case, structures=structures, channels=channels, ignore_value=ignore_value)
    ignore_label = None if ignore_value is None else IGNORED
    work = Preprocessing(
        image.array,
        spacing_mm=image.spacing_mm,
        affine=image.affine,
        label=encode_classes(label.array, structures, ignore_value=ignore_value),
        recipe=recipe,
        case_id=case.case_id,
        ignore_label=ignore_label,
    )
    write_prepared(
        out,
        case.case_id,
        image=work.image_slabs(),
        label=work.label_slabs(),
        geometry=work.geometry,
        key=key,
        channels=work.channels,
        ignore_label=ignore_label,
    )


def _write_recipe(out: Path, recipe: PreprocessRecipe) -> None:
    """Store the recipe; remove the manifest if the recipe changed.

    The folder is then unfinished until every case is prepared again.
    """
    path, stored = out / RECIPE_NAME, recipe.to_json()
    try:
        unchanged = load_json(path) == stored
    except (OSError, ValueError):
        unchanged = False
    if not unchanged:
        remove_file(out / MANIFEST_NAME)
        write_json(path, stored)


def _write_manifest(out: Path, manifest: Manifest, split: Split, case_ids: Set[str]) -> None:
    if not case_ids:
        remove_file(out / MANIFEST_NAME)
        return
    kept = tuple(case for case in manifest.cases if case.split != split or case.case_id in case_ids)
    replace(manifest, cases=kept).write(out / MANIFEST_NAME)
