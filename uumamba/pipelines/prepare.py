"""Prepared cases from a manifest of raw scans; safe to kill and to run again."""

import json
import sys
import warnings
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from uumamba.data.case import MANIFEST_NAME, Case, Manifest, Split
from uumamba.data.foreground import compute_statistics, store_foreground
from uumamba.data.prepared import FOREGROUND_NAME, RECIPE_NAME, is_up_to_date, source_key, write_prepared
from uumamba.data.preprocess import Preprocessing, PreprocessRecipe
from uumamba.data.scan import read_case
from uumamba.pipelines.datasets import check_outside_raw, record_failures
from uumamba.runtime.errors import CaseError
from uumamba.runtime.files import make_folder, write_json
from uumamba.runtime.locks import lock_folder
from uumamba.runtime.parallel_cases import each_case
from uumamba.runtime.stop import StopRequest

_CASES_A_LINE = 50
_Warned = tuple[tuple[type[Warning], str], ...]
"""Category and text of each warning about a case, returned by the worker, whose own warnings nobody sees."""


@dataclass(frozen=True)
class PrepareResult:
    """Ids of the cases prepared now and of those reused, and the failed cases."""

    prepared: tuple[str, ...]
    reused: tuple[str, ...]
    failures: tuple[CaseError, ...]


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
    """Prepare every case of a split and list the data set.

    A case that was made from the same bytes by the same recipe is up to date and is reused. Whenever the process dies,
    every case is whole or absent, and ``dataset.json``, written last, appears when all are whole. It lists the prepared
    cases and those of the other split with their raw paths, without failed cases.

    For a recipe without CT statistics, every training case is read once before, those of all folds, as nnU-Net does:
    the validation cases add to four numbers and reveal no label. Samples of their foreground are stored in
    ``foreground/``, so that the next call reads only changed cases, and the stored recipe has the statistics. A new or
    changed case changes the statistics, and with them every prepared case. Where no training case can be read, there
    are none: every case is a failure, and a recipe of an earlier call stays as it is.

    Args:
        manifest: the data set.
        bad: cases that its reader refused; they join the failures.
        recipe: how to preprocess.
        out: gets ``dataset.json``, ``recipe.json``, ``cases/``, and ``failures.json`` where a case failed.
        workers: processes; 0 works in this one. More need an importable main module, as every spawned process does.
        raw: the data set's own folder; ``out`` may not be inside it.
        split: test cases are listed but not read, unless requested here.
        progress: a bar; None shows one on a terminal, and elsewhere a line every 50 cases.

    Raises:
        UsageError: the output cannot be a folder, is inside the raw one, another process is preparing there, or CT
            statistics cannot be found because no training case has foreground.
        StoppedOnRequest: a signal requested it; the next call continues there.
    """
    if raw is not None:
        check_outside_raw(Path(out), raw)
    out = make_folder(out)
    with lock_folder(out, doing="preparing"), StopRequest() as stop:
        stage = _Preparation(manifest, out, list(bad), stop, workers, progress)
        whole = recipe if recipe.is_complete else stage.find_statistics(recipe)
        prepared: list[str] = []
        reused: list[str] = []
        if whole is not None:
            _write_recipe(out, whole)
            stale, reused = stage.split_stale(whole, split)
            prepare_one = partial(_prepare_case, out=out, recipe=whole, structures=dict(manifest.structures))
            prepared = stage.work_on(stale, prepare_one, name="prepare", doing="preparing")
        failures = stage.record_failures()
        _write_manifest(out, manifest, split, {*prepared, *reused})
    return PrepareResult(tuple(sorted(prepared)), tuple(sorted(reused)), tuple(failures))


@dataclass
class _Preparation:
    """Cases, settings and failures of one call."""

    manifest: Manifest
    out: Path
    failures: list[CaseError]
    stop: StopRequest
    workers: int
    progress: bool | None
    warned: set[tuple[type[Warning], str]] = field(default_factory=set)

    def find_statistics(self, recipe: PreprocessRecipe) -> PreprocessRecipe | None:
        """Add statistics of the training cases' foreground to a recipe; None where no case can be read."""
        folder = self.out / FOREGROUND_NAME
        sample = partial(store_foreground, folder=folder, structures=dict(self.manifest.structures))
        sampled = self.work_on(self.manifest.select(split="training"), sample, name="sample", doing="sampling")
        if self.failures and not sampled:
            return None
        self.record_failures()  # before an error about missing foreground: the failed cases may be the ones with some
        found = compute_statistics(sampled, folder=folder, clip_percentiles=recipe.clip_percentiles)
        return replace(recipe, ct_statistics=found)

    def split_stale(self, recipe: PreprocessRecipe, split: Split) -> tuple[list[Case], list[str]]:
        """Split the readable cases into stale ones and the ids of those up to date; the others join the failures."""
        failed = {failure.case_id for failure in self.failures}
        stale: list[Case] = []
        reused: list[str] = []
        for case in self.manifest.select(split=split):
            if case.case_id in failed:
                continue
            try:
                if is_up_to_date(self.out, case, recipe=recipe, structures=dict(self.manifest.structures)):
                    reused.append(case.case_id)
                else:
                    stale.append(case)
            except CaseError as error:
                self.failures.append(error)
        return stale, reused

    def work_on(self, cases: Sequence[Case], work: Callable[[Case], object], *, name: str, doing: str) -> list[str]:
        """Work on each case; return the ids of the successes, errors of the others join the failures."""
        done: list[str] = []
        items = {case.case_id: case for case in cases}
        shows_bar = sys.stderr.isatty() if self.progress is None else self.progress
        with Progress(console=Console(stderr=True), disable=not shows_bar) as bar:
            task = bar.add_task(name, total=len(items))
            outcomes = each_case(partial(_catch_warnings, work), items, workers=self.workers)
            for count, (case_id, outcome) in enumerate(outcomes, start=1):
                if isinstance(outcome, CaseError):
                    self.failures.append(outcome)
                else:
                    done.append(case_id)
                    self._warn_once(outcome)
                bar.advance(task)
                if not shows_bar and (count % _CASES_A_LINE == 0 or count == len(items)):
                    print(f"{name}: {count} of {len(items)} cases", file=sys.stderr)
                self.stop.raise_if_requested(
                    f"after {doing} {count} of {len(items)} cases; run the same command to continue"
                )
        return done

    def record_failures(self) -> list[CaseError]:
        """Write ``failures.json``, sorted; return the sorted failures."""
        ordered = sorted(self.failures, key=lambda failure: failure.case_id)
        record_failures(self.out, ordered)
        return ordered

    def _warn_once(self, warned: _Warned) -> None:
        """Repeat the workers' warnings, each text once: every worker reads ACDC's headers for a first time."""
        for category, text in warned:
            if (category, text) not in self.warned:
                self.warned.add((category, text))
                warnings.warn(text, category, stacklevel=3)


def _catch_warnings(work: Callable[[Case], object], case: Case) -> _Warned:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work(case)
    return tuple((each.category, str(each.message)) for each in caught)


def _prepare_case(case: Case, *, out: Path, recipe: PreprocessRecipe, structures: dict[str, int]) -> None:
    key = source_key(case, recipe=recipe, structures=structures)
    image, label = read_case(case, structures=structures)
    work = Preprocessing(
        image.array,
        spacing_mm=image.spacing_mm,
        affine=image.affine,
        label=label.array,
        recipe=recipe,
        case_id=case.case_id,
    )
    write_prepared(
        out,
        case.case_id,
        image=work.image_slabs(),
        label=work.label_slabs(),
        geometry=work.geometry,
        key=key,
    )


def _write_recipe(out: Path, recipe: PreprocessRecipe) -> None:
    """Store the recipe; after a change the folder is unfinished until every case is prepared again."""
    path, stored = out / RECIPE_NAME, json.loads(json.dumps(recipe.to_json()))
    try:
        unchanged = json.loads(path.read_text(encoding="utf-8")) == stored
    except (OSError, ValueError):
        unchanged = False
    if not unchanged:
        (out / MANIFEST_NAME).unlink(missing_ok=True)
        write_json(path, stored)


def _write_manifest(out: Path, manifest: Manifest, split: Split, whole: Set[str]) -> None:
    if not whole:
        (out / MANIFEST_NAME).unlink(missing_ok=True)
        return
    kept = tuple(case for case in manifest.cases if case.split != split or case.case_id in whole)
    replace(manifest, cases=kept).write(out / MANIFEST_NAME)
