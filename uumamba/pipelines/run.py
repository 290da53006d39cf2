"""All stages of a run, from raw scans to a report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from uumamba.config import RunConfig
from uumamba.config.case_split import ALL_CASES
from uumamba.data.case import Manifest
from uumamba.data.prepared import PreparedFolder
from uumamba.evaluation import Scores
from uumamba.pipelines.datasets import RawFolder, record_failures, select_failures
from uumamba.pipelines.evaluate import evaluate_folder
from uumamba.pipelines.jobs import Job, list_jobs, resolve_config
from uumamba.pipelines.predict import predict
from uumamba.pipelines.prepare import PrepareResult, prepare
from uumamba.pipelines.report import report
from uumamba.pipelines.train import train_jobs
from uumamba.runtime.errors import EXIT_SOME_CASES_FAILED, CaseError, InputError
from uumamba.runtime.stop import StopRequest
from uumamba.training import ALONE, Ranks


@dataclass(frozen=True)
class RunResult:
    """Output of a run, and the failed cases."""

    out: Path
    report: Path | None
    scores: Scores | None
    failures: tuple[CaseError, ...] = ()


class SomeCasesMissing(InputError):
    """Failed preparation of cases in a run without ``--allow-missing``."""

    exit_code = EXIT_SOME_CASES_FAILED


def run(
    config: RunConfig,
    *,
    raw: Path | str,
    out: Path | str,
    fold: str = "0",
    seeds: Sequence[int] | None = None,
    workers: int = 0,
    device: str = "cpu",
    allow_missing: bool = False,
    force: bool = False,
    progress: bool | None = None,
    ranks: Ranks = ALONE,
    say: Callable[[str], None] = lambda sentence: None,
    before_report: Callable[[Path, Sequence[Job]], None] = lambda out, jobs: None,
) -> RunResult:
    """Prepare, train, predict the validation cases, evaluate and report.

    The same call continues an interrupted one: prepared cases are reused while their source and recipe are the same,
    training resumes from its last checkpoint, and predictions, scores and report are made again. Test cases are neither
    prepared nor scored. The labelled frames of cines are cut out once, into ``frames/`` of the output folder;
    :func:`read_dataset` describes the frames.

    Args:
        config: the run.
        raw: the data set as its owner ships it, or any folder by the options of ``dataset``; never written to.
        out: the output folder; it gets ``prepared/``, ``run/``, ``predictions/``, ``scores.csv``, ``summary.json`` and
            ``report.html``.
        fold: ``"0"`` to ``"4"``, ``"cv"`` (each case is scored by the fold that did not train on it), or ``"all"``
            (no case is scored).
        seeds: train with each seed and average the predictions.
        workers: processes for preparing.
        device: name of the device in torch; several train folds in parallel, and the first one predicts.
        allow_missing: continue without the cases that cannot be prepared; the report lists them.
        force: resume although the configuration changed.
        progress: bars; None shows them on a terminal.
        ranks: the processes that train together; rank 0 runs all other stages, and the other ranks return.
        say: called with a sentence at each stage.
        before_report: called with ``out`` and the jobs between scores and report.

    Raises:
        UsageError: ``out`` is inside ``raw``, or one of :func:`uumamba.pipelines.jobs.list_jobs`; no file is written.
        SomeCasesMissing: some cases cannot be prepared and ``allow_missing`` is off.
        CaseError: the first failure where no case can be prepared or scored.
        StoppedOnRequest: a stop was requested; the same call continues there.
    """
    out = Path(out)
    list_these = partial(
        list_jobs,
        fold=fold,
        seeds=seeds,
        out=out / "run",
        resume=True,
        force=force,
        device=device,
        ranks=ranks.count,
    )
    with StopRequest():  # a request in one stage also ends all later ones

        def prepare_all() -> tuple[Manifest, PrepareResult, list[Job]]:
            raw_folder = RawFolder(config.dataset.name, raw, out=out, options=config.dataset.reader_options())
            resolved = resolve_config(config, raw_folder, say=say)
            planned = list_these(resolved, raw_folder)
            manifest, bad = raw_folder.read()
            say(f"prepare: {len(manifest.select(split='training'))} cases of {manifest.name}")
            recipe, folder = resolved.build_recipe(manifest.channels), out / "prepared"
            prepared = prepare(manifest, bad, recipe=recipe, out=folder, workers=workers, raw=raw, progress=progress)
            _check_prepared(prepared, allow_missing, say)
            say(f"train: fold {fold}")
            return manifest, prepared, planned

        ready = ranks.on_rank_zero(prepare_all)
        folder = PreparedFolder(out / "prepared")
        own = resolve_config(config, folder, say=say if ranks.is_rank_zero else None)
        jobs = list_these(own, folder)
        train_jobs(jobs, folder, resume=True, device=device, force=force, progress=progress, ranks=ranks)
        if ready is None:
            return RunResult(out, None, None)
        manifest, prepared, planned = ready
        if fold == ALL_CASES:
            say("fold all trains on every case, so no case is scored; predict other scans with this run.")
            return RunResult(out, None, None, prepared.failures)
        chosen = {job.folder.fold: job.validation_ids for job in jobs}
        say("predict: the validation cases of fold " + ", ".join(chosen))
        missing = select_failures(
            manifest.select(case_ids={case_id for job in planned for case_id in job.validation_ids}),
            prepared.failures,
            manifest=manifest,
        )
        scores = _predict_and_score(out, chosen, missing=missing, device=device.partition(",")[0], progress=progress)
        before_report(out, jobs)
        report(out, out / "report.html")
    others = [failure for failure in prepared.failures if failure not in missing]
    return RunResult(out, out / "report.html", scores, (*others, *scores.failures))


def _predict_and_score(
    out: Path, chosen: Mapping[str, Sequence[str]], *, missing: Sequence[CaseError], device: str, progress: bool | None
) -> Scores:
    """Predict and score each fold's validation cases with its model."""
    failures: list[CaseError] = []
    for name, case_ids in chosen.items():
        failures += predict(
            out / "run",
            [out / "prepared"],
            out=out / "predictions",
            device=device,
            fold=name,
            case_ids=case_ids,
            preview=False,  # the report shows its own overlays
            progress=progress,
        ).failures
    record_failures(out / "predictions", failures)  # of all folds: each call wrote one fold's
    scored = {case_id for case_ids in chosen.values() for case_id in case_ids}
    scores = evaluate_folder(out / "predictions", out / "prepared", out, case_ids=scored, failed=[*missing, *failures])
    if not scores.rows:
        raise _error_of_all(scores.failures, "failures.json")
    return scores


def _check_prepared(prepared: PrepareResult, allow_missing: bool, say: Callable[[str], None]) -> None:
    failures = prepared.failures
    if failures and not (prepared.prepared or prepared.reused):
        raise _error_of_all(failures, "prepared/failures.json")
    if failures and not allow_missing:
        for failure in failures:
            say(f"failed: {failure}")
        raise SomeCasesMissing(
            "--raw",
            got=f"{len(failures)} cases that cannot be prepared",
            expected="complete and readable cases",
            fix="correct the cases, or continue without these cases by --allow-missing",
        )


def _error_of_all(failures: Sequence[CaseError], listed: str) -> CaseError:
    """Return the first failure; its fix names the file with all failures."""
    first = failures[0]
    return CaseError(
        first.case_id,
        first.key,
        got=first.got,
        expected=first.expected,
        fix=f"{first.fix}, and correct all {len(failures)} failed cases in {listed}",
    )
