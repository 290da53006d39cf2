"""The whole way: raw scans to prepared cases, weights, predictions, scores and a report."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uumamba.config import RunConfig
from uumamba.errors import CaseError, UumambaError
from uumamba.pipelines.datasets import read_dataset
from uumamba.pipelines.evaluate import evaluate_folder
from uumamba.pipelines.predict import predict
from uumamba.pipelines.prepare import prepare
from uumamba.pipelines.report import report
from uumamba.pipelines.train import FOLDS, train


@dataclass(frozen=True)
class RunResult:
    """What a run made, and the cases it had to leave out."""

    out: Path
    report: Path | None
    scores: Any
    failures: tuple[CaseError, ...] = field(default=())


def run(
    config: RunConfig,
    *,
    raw: Path | str,
    out: Path | str,
    fold: str = "0",
    workers: int = 0,
    device: str = "cpu",
    allow_missing: bool = False,
    force: bool = False,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    before_report: Callable[[Path], None] = lambda out: None,
) -> RunResult:
    """Prepare, train, predict the validation cases, evaluate and report; go on where an earlier call stopped.

    Prepared cases are reused while their source and recipe are the same, training resumes from its last checkpoint,
    and predictions, scores and report are made anew. Test cases are neither prepared nor scored.

    Args:
        config: the run.
        raw: the data set as its owner ships it; never written to.
        out: gets ``prepared/``, ``run/``, ``predictions/``, ``scores.csv``, ``summary.json``, ``report.html``.
        fold: ``"0"`` to ``"4"``, ``"cv"`` (each case is scored by the fold that did not train on it), or ``"all"``
            (nothing is left to score).
        workers: processes for preparing.
        device: torch's name of it.
        allow_missing: go on although some cases could not be prepared.
        force: resume although the configuration changed.
        progress: bars; None decides by the terminal.
        say: called with a sentence at each stage.
        before_report: called with ``out`` when scores stand and the report does not.

    Raises:
        UumambaError: some cases could not be prepared and ``allow_missing`` is off.
    """
    out = Path(out)
    manifest, bad = read_dataset(config.dataset.name, raw)
    say(f"prepare: {len(manifest.select(split='training'))} cases of {manifest.name}")
    prepared = prepare(
        manifest, bad, recipe=config.preprocess.build(), out=out / "prepared", workers=workers, progress=progress
    )
    _refuse_missing(prepared.failures, allow_missing)
    say(f"train: fold {fold}")
    train(
        config,
        data=out / "prepared",
        out=out / "run",
        fold=fold,
        resume=True,
        device=device,
        force=force,
        progress=progress,
    )
    if fold == "all":
        say("fold all trains on every case, so none is left to score; predict other scans with this run.")
        return RunResult(out, None, None, prepared.failures)
    scored = FOLDS if fold == "cv" else (fold,)
    say("predict: the validation cases of fold " + ", ".join(scored))
    failures = list(prepared.failures)
    for name in scored:
        failures += predict(
            out / "run",
            [out / "prepared" / "dataset.json"],
            out=out / "predictions",
            device=device,
            fold=name,
            split="training",
            case_fold=int(name),
            progress=progress,
        ).failures
    scores = evaluate_folder(
        out / "predictions",
        out / "prepared" / "dataset.json",
        out,
        split="training",
        fold=None if fold == "cv" else int(fold),
    )
    before_report(out)
    report(out, out / "report.html")
    return RunResult(out, out / "report.html", scores, tuple(failures))


def _refuse_missing(failures: tuple[CaseError, ...], allow_missing: bool) -> None:
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
