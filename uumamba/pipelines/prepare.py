"""From a manifest of raw scans to a folder of prepared cases; safe to kill and to run again."""

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from uumamba.data.case import MANIFEST_NAME, Case, Manifest, Split
from uumamba.data.foreground import keep_foreground, statistics_of
from uumamba.data.prepared import FOREGROUND_NAME, RECIPE_NAME, is_up_to_date, source_key, write_prepared
from uumamba.data.preprocess import Preprocessing, PreprocessRecipe
from uumamba.data.scan import read_case
from uumamba.pipelines.datasets import refuse_inside_raw
from uumamba.pipelines.failures import record_failures
from uumamba.runtime.errors import CaseError
from uumamba.runtime.files import make_folder, write_json
from uumamba.runtime.locks import lock_folder
from uumamba.runtime.parallel_cases import each_case
from uumamba.runtime.stop import StopRequest

_CASES_A_LINE = 50


@dataclass(frozen=True)
class PrepareResult:
    """Case ids that were prepared now and that stood already, and the cases that failed."""

    prepared: tuple[str, ...]
    reused: tuple[str, ...]
    failures: tuple[CaseError, ...]


_Warned = tuple[tuple[type[Warning], str], ...]
"""What was warned of while a case was read: handed back by the worker, whose own warnings nobody sees."""


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

    A case stands already, and is left alone, when it was made from the same bytes by the same recipe. Whenever the
    process dies, whole cases stand, and ``dataset.json``, written last, appears when all of them do. It lists the
    prepared cases and those of the other split with their raw paths; a case that failed is left out of it.

    Where the recipe leaves the statistics of CT to be found, every training case is read once before, those of all
    folds, as nnU-Net does: what the validation cases add to four numbers is no label of theirs. Samples of their
    foreground stand in ``foreground/``, so that the next call reads only what changed; the recipe that is stored has
    the statistics. A case that joins or is mended changes them, and with them every prepared case. Where no training
    case can be read there are none: every case is a failure, and a recipe that stood is left as it was.

    Args:
        manifest: the data set.
        bad: cases that its reader refused; they join the failures.
        recipe: how to preprocess.
        out: gets ``dataset.json``, ``recipe.json``, ``cases/``, and ``failures.json`` where a case failed.
        workers: processes; 0 works in this one. More need an importable main module, as every spawned process.
        raw: the data set's own folder; ``out`` may not lie in it.
        split: test cases are listed but, unless asked for, never opened.
        progress: a bar; None shows one on a terminal, and elsewhere a line every 50 cases.

    Raises:
        UsageError: the output cannot be a folder, lies in the raw one, another process is preparing there, or
            statistics of CT cannot be found as no training case has foreground.
        StoppedOnRequest: a signal asked for it; the next call goes on from there.
    """
    if raw is not None:
        refuse_inside_raw(Path(out), raw)
    out = make_folder(out)
    structures = dict(manifest.structures)
    with lock_folder(out, doing="preparing"), StopRequest() as stop, _warned_once() as warn:
        each = _Each(stop, warn, workers, progress)
        failures = list(bad)
        whole = recipe if recipe.is_complete else _with_statistics(recipe, manifest, out, structures, each, failures)
        prepared: list[str] = []
        reused: list[str] = []
        if whole is not None:
            _begin(out, whole)
            unread = {failure.case_id for failure in failures}
            cases = [case for case in manifest.select(split=split) if case.case_id not in unread]
            stale, reused = _sort_cases(cases, out, whole, structures, failures)
            work = partial(_prepare_case, out=out, recipe=whole, structures=structures)
            prepared = each.of(stale, work, failures, stage="prepare", doing="preparing")
        failures = _record(out, failures)
        _finish(out, manifest, split, {*prepared, *reused})
    return PrepareResult(tuple(sorted(prepared)), tuple(sorted(reused)), tuple(failures))


@dataclass(frozen=True)
class _Each:
    """How a stage goes over its cases: so many at once, with progress, until a signal asks to stop."""

    stop: StopRequest
    warn: Callable[[_Warned], None]
    workers: int
    progress: bool | None

    def of(
        self,
        cases: Sequence[Case],
        work: Callable[[Case], _Warned],
        failures: list[CaseError],
        *,
        stage: str,
        doing: str,
    ) -> list[str]:
        """Ids of the cases that were worked on; errors of the others join the failures."""
        done: list[str] = []
        items = {case.case_id: case for case in cases}
        with _advance(len(items), self.progress, stage=stage) as advance:
            for count, (case_id, outcome) in enumerate(each_case(work, items, workers=self.workers), start=1):
                if isinstance(outcome, CaseError):
                    failures.append(outcome)
                else:
                    done.append(case_id)
                    self.warn(outcome)
                advance()
                self.stop.raise_if_requested(
                    f"after {doing} {count} of {len(items)} cases; the same command goes on from there"
                )
        return done


def _with_statistics(
    recipe: PreprocessRecipe,
    manifest: Manifest,
    out: Path,
    structures: Mapping[str, int],
    each: _Each,
    failures: list[CaseError],
) -> PreprocessRecipe | None:
    """The recipe with statistics over the foreground of the training cases; None where each of them is a failure."""
    folder = out / FOREGROUND_NAME
    work = partial(_sample_case, folder=folder, structures=structures)
    sampled = each.of(manifest.select(split="training"), work, failures, stage="sample", doing="sampling")
    if failures and not sampled:
        return None
    _record(out, failures)  # before statistics are refused: the cases that would have had foreground may be among them
    found = statistics_of(sampled, folder=folder, clip_percentiles=recipe.clip_percentiles)
    return replace(recipe, ct_statistics=found)


def _record(out: Path, failures: Sequence[CaseError]) -> list[CaseError]:
    """Write ``failures.json``, sorted; the sorted failures."""
    ordered = sorted(failures, key=lambda failure: failure.case_id)
    record_failures(out, ordered)
    return ordered


def _sample_case(case: Case, *, folder: Path, structures: Mapping[str, int]) -> _Warned:
    with _caught() as caught:
        keep_foreground(case, folder=folder, structures=structures)
    return _texts(caught)


def _sort_cases(
    cases: Sequence[Case],
    out: Path,
    recipe: PreprocessRecipe,
    structures: Mapping[str, int],
    failures: list[CaseError],
) -> tuple[list[Case], list[str]]:
    """Which cases need work and which stand already; those that cannot be read join the failures."""
    stale: list[Case] = []
    reused: list[str] = []
    for case in cases:
        try:
            if is_up_to_date(out, case, recipe=recipe, structures=structures):
                reused.append(case.case_id)
            else:
                stale.append(case)
        except CaseError as error:
            failures.append(error)
    return stale, reused


def _prepare_case(case: Case, *, out: Path, recipe: PreprocessRecipe, structures: Mapping[str, int]) -> _Warned:
    with _caught() as caught:
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
    return _texts(caught)


@contextmanager
def _caught() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def _texts(caught: Sequence[warnings.WarningMessage]) -> _Warned:
    return tuple((each.category, str(each.message)) for each in caught)


def _begin(out: Path, recipe: PreprocessRecipe) -> None:
    """Store the recipe; under another one the folder is unfinished until every case is made anew."""
    path, stored = out / RECIPE_NAME, json.loads(json.dumps(recipe.to_json()))
    try:
        unchanged = json.loads(path.read_text(encoding="utf-8")) == stored
    except (OSError, ValueError):
        unchanged = False
    if not unchanged:
        (out / MANIFEST_NAME).unlink(missing_ok=True)
        write_json(path, stored)


def _finish(out: Path, manifest: Manifest, split: Split, standing: Set[str]) -> None:
    if not standing:
        (out / MANIFEST_NAME).unlink(missing_ok=True)
        return
    kept = tuple(case for case in manifest.cases if case.split != split or case.case_id in standing)
    replace(manifest, cases=kept).write(out / MANIFEST_NAME)


@contextmanager
def _warned_once() -> Iterator[Callable[[_Warned], None]]:
    """Pass on what workers warned of, each text once: every worker sees ACDC's headers for a first time."""
    seen: set[tuple[type[Warning], str]] = set()

    def warn(warned: _Warned) -> None:
        for category, text in warned:
            if (category, text) not in seen:
                seen.add((category, text))
                warnings.warn(text, category, stacklevel=3)

    yield warn


@contextmanager
def _advance(total: int, enabled: bool | None, *, stage: str) -> Iterator[Callable[[], None]]:
    """A function to call after each case: moves a bar on a terminal, and writes a line now and then elsewhere."""
    if sys.stderr.isatty() if enabled is None else enabled:
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(stage, total=total)
            yield lambda: bar.advance(task)
        return
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if done % _CASES_A_LINE == 0 or done == total:
            print(f"{stage}: {done} of {total} cases", file=sys.stderr)

    yield advance
