"""The whole way: raw scans to prepared cases, weights, predictions, scores and a report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uumamba.config import RunConfig
from uumamba.config.track import check_trackers
from uumamba.data.case import Manifest
from uumamba.evaluation import Scores
from uumamba.pipelines.datasets import FRAMES_NAME, read_dataset, refuse_inside_raw
from uumamba.pipelines.evaluate import evaluate_folder
from uumamba.pipelines.failures import failures_among, record_failures
from uumamba.pipelines.predict import predict
from uumamba.pipelines.prepare import PrepareResult, prepare
from uumamba.pipelines.report import report
from uumamba.pipelines.run_layout import ALL_CASES, folds_of, wanted_folders
from uumamba.pipelines.split import split_cases
from uumamba.pipelines.train import refuse_another_run, refuse_unreached, refuse_untrainable, train
from uumamba.runtime.errors import CaseError, UumambaError
from uumamba.runtime.stop import StopRequest
from uumamba.training import ALONE, Ranks


@dataclass(frozen=True)
class RunResult:
    """What a run made, and the cases it had to leave out."""

    out: Path
    report: Path | None
    scores: Scores | None
    failures: tuple[CaseError, ...] = field(default=())


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
    before_report: Callable[[Path], None] = lambda out: None,
) -> RunResult:
    """Prepare, train, predict the validation cases, evaluate and report; go on where an earlier call stopped.

    Prepared cases are reused while their source and recipe are the same, training resumes from its last checkpoint,
    and predictions, scores and report are made anew. Test cases are neither prepared nor scored. Of a data set of whole
    cines the labelled frames are cut out once, into ``frames/``; :func:`read_dataset` says how much room they take.

    Args:
        config: the run.
        raw: the data set as its owner ships it; never written to.
        out: gets ``prepared/``, ``run/``, ``predictions/``, ``scores.csv``, ``summary.json``, ``report.html``.
        fold: ``"0"`` to ``"4"``, ``"cv"`` (each case is scored by the fold that did not train on it), or ``"all"``
            (nothing is left to score).
        seeds: trains with each of them; their predictions are averaged.
        workers: processes for preparing.
        device: torch's name of it; several train folds at the same time, and the first of them predicts.
        allow_missing: go on although some cases could not be prepared; they are listed as not scored.
        force: resume although the configuration changed.
        progress: bars; None decides by the terminal.
        ranks: the processes that train together; the first alone does all else, and the others return when it begins.
        say: called with a sentence at each stage.
        before_report: called with ``out`` when scores stand and the report does not.

    Raises:
        UsageError: the fold is none or has no cases, ``out`` lies in ``raw``, the run was begun with another
            configuration, or this one cannot be trained on the data set's structures or would, in a new run, begin to
            round or freeze after the last step; nothing is made or changed.
        UumambaError: some cases could not be prepared and ``allow_missing`` is off, or no case could be prepared or
            scored.
        StoppedOnRequest: a signal asked for it; the same call goes on from there.
    """
    out, scored = Path(out), folds_of(fold)
    check_trackers(config.track)
    config.check()
    wanted = wanted_folders(out / "run", fold=fold, seeds=seeds)
    with StopRequest():  # whatever stage it meets, a request to stop holds for all that follow

        def prepare_all() -> tuple[Manifest, PrepareResult]:
            refuse_inside_raw(out, raw)
            if not force:
                refuse_another_run(config, out / "run")
            refuse_unreached(config, wanted)
            manifest, bad = read_dataset(config.dataset.name, raw, frames=out / FRAMES_NAME)
            refuse_untrainable(config, manifest, bad, scored)
            say(f"prepare: {len(manifest.select(split='training'))} cases of {manifest.name}")
            recipe, folder = config.preprocess.build(), out / "prepared"
            prepared = prepare(manifest, bad, recipe=recipe, out=folder, workers=workers, raw=raw, progress=progress)
            _refuse_missing(prepared, allow_missing)
            say(f"train: fold {fold}")
            return manifest, prepared

        ready = ranks.on_rank_zero(prepare_all)
        train(
            config,
            data=out / "prepared",
            out=out / "run",
            fold=fold,
            seeds=seeds,
            resume=True,
            device=device,
            force=force,
            progress=progress,
            ranks=ranks,
        )
        if ready is None:
            return RunResult(out, None, None)
        manifest, prepared = ready
        if fold == ALL_CASES:
            say("fold all trains on every case, so none is left to score; predict other scans with this run.")
            return RunResult(out, None, None, prepared.failures)
        say("predict: the validation cases of fold " + ", ".join(scored))
        case_ids = [case_id for name in scored for case_id in split_cases(manifest, name, config.dataset.domains)[1]]
        validation = manifest.select(case_ids=case_ids)
        missing = failures_among(validation, prepared.failures, manifest=manifest)
        first = device.partition(",")[0]
        whole = Manifest.read(out / "prepared")
        chosen = {name: split_cases(whole, name, config.dataset.domains)[1] for name in scored}
        scores = _predict_and_score(out, chosen, missing=missing, device=first, progress=progress)
        before_report(out)
        report(out, out / "report.html")
    others = [failure for failure in prepared.failures if failure not in missing]
    return RunResult(out, out / "report.html", scores, (*others, *scores.failures))


def _predict_and_score(
    out: Path, chosen: Mapping[str, Sequence[str]], *, missing: Sequence[CaseError], device: str, progress: bool | None
) -> Scores:
    """Predict each fold's validation cases by its own model and score them; those without a prediction are listed."""
    failures: list[CaseError] = []
    for name, case_ids in chosen.items():
        failures += predict(
            out / "run",
            [out / "prepared"],
            out=out / "predictions",
            device=device,
            fold=name,
            case_ids=case_ids,
            progress=progress,
        ).failures
    record_failures(out / "predictions", failures)  # of all folds: each call wrote its own
    scored = {case_id for case_ids in chosen.values() for case_id in case_ids}
    failed = [*missing, *failures]
    scores = evaluate_folder(out / "predictions", out / "prepared", out, case_ids=scored, failed=failed)
    if not scores.rows:
        raise UumambaError(f"No case could be scored; the first failure is {scores.failures[0]}")
    return scores


def _refuse_missing(prepared: PrepareResult, allow_missing: bool) -> None:
    failures = prepared.failures
    if failures and not (prepared.prepared or prepared.reused):
        raise UumambaError(
            f"No case could be prepared; the first of {len(failures)} in prepared/failures.json is {failures[0]}"
        )
    if failures and not allow_missing:
        raise SomeCasesMissing(failures)


class SomeCasesMissing(UumambaError):
    """Preparing left some cases out, and the run was not told to go on without them."""

    exit_code = 3

    def __init__(self, failures: tuple[CaseError, ...]) -> None:
        first = "".join(f"\n  {error}" for error in failures[:5])
        more = f"\n  and {len(failures) - 5} more (prepared/failures.json)" if len(failures) > 5 else ""
        super().__init__(
            f"{len(failures)} cases could not be prepared; correct them, or go on without them by --allow-missing:"
            f"{first}{more}"
        )
