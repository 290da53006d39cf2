"""All stages of a run: raw scans to prepared cases, weights, predictions, scores and a report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uumamba.config import RunConfig
from uumamba.config.track import check_trackers
from uumamba.data.case import Manifest
from uumamba.evaluation import Scores
from uumamba.pipelines.datasets import FRAMES_NAME, check_outside_raw, failures_among, read_dataset, record_failures
from uumamba.pipelines.evaluate import evaluate_folder
from uumamba.pipelines.predict import predict
from uumamba.pipelines.prepare import PrepareResult, prepare
from uumamba.pipelines.report import report
from uumamba.pipelines.run_layout import wanted_folders
from uumamba.pipelines.split import ALL_CASES, folds_of, split_cases
from uumamba.pipelines.train import check_same_run, check_start, check_trainable, train
from uumamba.runtime.errors import EXIT_SOME_CASES_FAILED, CaseError, UumambaError
from uumamba.runtime.stop import StopRequest
from uumamba.training import ALONE, Ranks


@dataclass(frozen=True)
class RunResult:
    """Output of a run, and the cases without a score."""

    out: Path
    report: Path | None
    scores: Scores | None
    failures: tuple[CaseError, ...] = field(default=())


class SomeCasesMissing(UumambaError):
    """Cases that could not be prepared, in a run without ``--allow-missing``."""

    exit_code = EXIT_SOME_CASES_FAILED

    def __init__(self, failures: tuple[CaseError, ...]) -> None:
        first = "".join(f"\n  {error}" for error in failures[:5])
        more = f"\n  and {len(failures) - 5} more (prepared/failures.json)" if len(failures) > 5 else ""
        super().__init__(
            f"{len(failures)} cases could not be prepared; correct them, or leave them out with --allow-missing:"
            f"{first}{more}"
        )


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
    """Prepare, train, predict the validation cases, evaluate and report; continue an interrupted call.

    Prepared cases are reused while their source and recipe are the same, training resumes from its last checkpoint,
    and predictions, scores and report are made again. Test cases are neither prepared nor scored. Of a data set of
    whole cines the labelled frames are cut out once, into ``frames/``; :func:`read_dataset` states their size.

    Args:
        config: the run.
        raw: the data set as its owner ships it; never written to.
        out: gets ``prepared/``, ``run/``, ``predictions/``, ``scores.csv``, ``summary.json``, ``report.html``.
        fold: ``"0"`` to ``"4"``, ``"cv"`` (each case is scored by the fold that did not train on it), or ``"all"``
            (nothing is left to score).
        seeds: trains with each of them; their predictions are averaged.
        workers: processes for preparing.
        device: torch's name of it; several train folds in parallel, and the first of them predicts.
        allow_missing: continue without the cases that could not be prepared; they are listed as not scored.
        force: resume although the configuration changed.
        progress: bars; None shows them on a terminal.
        ranks: the processes that train together; rank 0 does everything else, and the others return then.
        say: called with a sentence at each stage.
        before_report: called with ``out`` between scores and report.

    Raises:
        UsageError: the fold is unknown or has no cases, ``out`` is inside ``raw``, the run was started with another
            configuration, or this one cannot be trained on the data set's structures or, in a new run, would only
            start quantization or freezing after the last step; nothing is made or changed.
        UumambaError: some cases could not be prepared and ``allow_missing`` is off, or no case could be prepared or
            scored.
        StoppedOnRequest: a signal requested it; the same call continues there.
    """
    out, scored = Path(out), folds_of(fold)
    check_trackers(config.track)
    config.check()
    wanted = wanted_folders(out / "run", fold=fold, seeds=seeds)
    with StopRequest():  # a request in any stage holds for all later ones

        def prepare_all() -> tuple[Manifest, PrepareResult]:
            check_outside_raw(out, raw)
            if not force:
                check_same_run(config, out / "run")
            check_start(config, wanted)
            manifest, bad = read_dataset(config.dataset.name, raw, frames=out / FRAMES_NAME)
            check_trainable(config, manifest, bad, scored)
            say(f"prepare: {len(manifest.select(split='training'))} cases of {manifest.name}")
            recipe, folder = config.preprocess.build(), out / "prepared"
            prepared = prepare(manifest, bad, recipe=recipe, out=folder, workers=workers, raw=raw, progress=progress)
            _check_prepared(prepared, allow_missing)
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
        missing = failures_among(manifest.select(case_ids=case_ids), prepared.failures, manifest=manifest)
        whole = Manifest.read(out / "prepared")
        chosen = {name: split_cases(whole, name, config.dataset.domains)[1] for name in scored}
        first = device.partition(",")[0]
        scores = _predict_and_score(out, chosen, missing=missing, device=first, progress=progress)
        before_report(out)
        report(out, out / "report.html")
    others = [failure for failure in prepared.failures if failure not in missing]
    return RunResult(out, out / "report.html", scores, (*others, *scores.failures))


def _predict_and_score(
    out: Path, chosen: Mapping[str, Sequence[str]], *, missing: Sequence[CaseError], device: str, progress: bool | None
) -> Scores:
    """Predict each fold's validation cases by its own model and score them."""
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


def _check_prepared(prepared: PrepareResult, allow_missing: bool) -> None:
    failures = prepared.failures
    if failures and not (prepared.prepared or prepared.reused):
        raise UumambaError(
            f"No case could be prepared; the first of {len(failures)} in prepared/failures.json is {failures[0]}"
        )
    if failures and not allow_missing:
        raise SomeCasesMissing(failures)
