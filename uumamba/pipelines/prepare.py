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
from uumamba.data.prepared import RECIPE_NAME, is_prepared, source_key, write_prepared
from uumamba.data.preprocess import PreprocessRecipe, preprocess
from uumamba.data.scan import check_same_grid, read_image, read_label
from uumamba.errors import CaseError
from uumamba.files import make_folder, write_json
from uumamba.pipelines.datasets import refuse_inside_raw
from uumamba.pipelines.failures import record_failures
from uumamba.pipelines.parallel import each_case
from uumamba.training.folder_lock import locked
from uumamba.training.stop_request import StopRequest

_CASES_A_LINE = 50


@dataclass(frozen=True)
class PrepareResult:
    """Case ids that were prepared now and that stood already, and the cases that failed."""

    prepared: tuple[str, ...]
    reused: tuple[str, ...]
    failures: tuple[CaseError, ...]


@dataclass(frozen=True)
class _Stale:
    """A case to prepare, and the key of the bytes that it is made from."""

    case_id: str
    image: Path
    label: Path
    key: str


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
        UsageError: the output cannot be a folder, lies in the raw one, or another process is preparing there.
        StoppedOnRequest: a signal asked for it; the next call goes on from there.
    """
    if raw is not None:
        refuse_inside_raw(Path(out), raw)
    out = make_folder(out)
    with locked(out, doing="preparing"), StopRequest() as stop:
        _begin(out, recipe)
        structures = dict(manifest.structures)
        stale, reused, failures = _sort_cases(manifest.select(split=split), out, recipe, structures)
        work = partial(_prepare_case, out=out, recipe=recipe, structures=structures)
        prepared, failed = _prepare_cases(work, stale, stop, workers=workers, progress=progress)
        failures = sorted([*bad, *failures, *failed], key=lambda failure: failure.case_id)
        record_failures(out, failures)
        _finish(out, manifest, split, {*prepared, *reused})
    return PrepareResult(tuple(sorted(prepared)), tuple(sorted(reused)), tuple(failures))


def _prepare_cases(
    work: Callable[[_Stale], _Warned],
    stale: Mapping[str, _Stale],
    stop: StopRequest,
    *,
    workers: int,
    progress: bool | None,
) -> tuple[list[str], list[CaseError]]:
    """Prepare one case after the other, or so many at once; ids of those that were, and errors of those that failed."""
    prepared: list[str] = []
    failed: list[CaseError] = []
    with _warned_once() as warn, _advance(len(stale), progress) as advance:
        for case_id, outcome in each_case(work, stale, workers=workers):
            if isinstance(outcome, CaseError):
                failed.append(outcome)
            else:
                prepared.append(case_id)
                warn(outcome)
            advance()
            done = len(prepared) + len(failed)
            stop.follow(f"after preparing {done} of {len(stale)} cases; the same command goes on from there")
    return prepared, failed


def _sort_cases(
    cases: Sequence[Case], out: Path, recipe: PreprocessRecipe, structures: Mapping[str, int]
) -> tuple[dict[str, _Stale], list[str], list[CaseError]]:
    """Which cases need work, which stand already, and which cannot be read or lack a label."""
    stale: dict[str, _Stale] = {}
    reused: list[str] = []
    failures: list[CaseError] = []
    for case in cases:
        try:
            if case.label is None:
                raise CaseError(case.case_id, "it has no label", "add its label, or leave it out of the training cases")
            key = source_key(case, recipe=recipe, structures=structures)
        except CaseError as error:
            failures.append(error)
            continue
        if is_prepared(out, case.case_id, key=key):
            reused.append(case.case_id)
        else:
            stale[case.case_id] = _Stale(case.case_id, case.image, case.label, key)
    return stale, reused, failures


def _prepare_case(stale: _Stale, *, out: Path, recipe: PreprocessRecipe, structures: Mapping[str, int]) -> _Warned:
    case_id = stale.case_id
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image = read_image(stale.image, case_id=case_id)
        label = read_label(stale.label, structures=structures, case_id=case_id)
        check_same_grid(image, label, case_id=case_id)
        array, prepared_label, geometry = preprocess(
            image.array,
            spacing_mm=image.spacing_mm,
            affine=image.affine,
            label=label.array,
            recipe=recipe,
            case_id=case_id,
        )
    assert prepared_label is not None, "a label was given"
    write_prepared(out, case_id, image=array, label=prepared_label, geometry=geometry, key=stale.key)
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
def _advance(total: int, enabled: bool | None) -> Iterator[Callable[[], None]]:
    """A function to call after each case: moves a bar on a terminal, and writes a line now and then elsewhere."""
    if sys.stderr.isatty() if enabled is None else enabled:
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("prepare", total=total)
            yield lambda: bar.advance(task)
        return
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if done % _CASES_A_LINE == 0 or done == total:
            print(f"prepare: {done} of {total} cases", file=sys.stderr)

    yield advance
