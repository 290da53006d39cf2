"""All stages of a run on a phantom with ACDC's layout."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from uumamba.config import RunConfig
from uumamba.data.case import Case
from uumamba.data.prepared import PreparedFolder
from uumamba.data.preprocess import restore_label
from uumamba.data.scan import read_label
from uumamba.evaluation import mean_dice
from uumamba.evaluation.baselines import IntensityThreshold, MeanShapeAtlas
from uumamba.metrics import dice_coefficient
from uumamba.pipelines.jobs import Job
from uumamba.pipelines.report import draw_typical_case
from uumamba.pipelines.run import RunResult, run
from uumamba.runtime.files import write_json
from uumamba.runtime.stop import StopRequest

PATIENTS = 60
PICTURE_NAME = "overlay.png"


def demo(
    config: RunConfig,
    *,
    out: Path | str,
    patients: int = PATIENTS,
    workers: int = 2,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> RunResult:
    """Run all stages on a phantom and score two baselines.

    This takes minutes on two processor cores.

    Args:
        config: the run; the shipped configuration is ``demo``.
        out: gets the phantom in ``raw/``, the output of :func:`uumamba.pipelines.run.run`, and ``overlay.png``, the
            outlines of the case with the median Dice.
        patients: number of phantom patients; a fifth of them is held out.
        workers: processes for writing the phantom and for preparing.
        progress: bars; None shows them on a terminal.
        say: called with a sentence at each stage.
    """
    from data_prep.phantoms.heart.heart_phantom import write_phantom

    out = Path(out)
    with StopRequest():
        say(f"phantom: {patients} patients in ACDC's layout")
        write_phantom(out / "raw", patients=patients, seed=config.seed, workers=workers)
        result = run(
            config,
            raw=out / "raw",
            out=out,
            workers=workers,
            progress=progress,
            say=say,
            before_report=partial(write_baselines, say=say),
        )
        draw_typical_case(out, out / PICTURE_NAME)
        return result


def write_baselines(out: Path, jobs: Sequence[Job], *, say: Callable[[str], None] = lambda sentence: None) -> None:
    """Write ``baselines.json``: validation Dice of an atlas and a threshold.

    Both baselines are fitted to the training cases by grid search on prepared arrays. They are scored on native grids,
    as the network is.
    """
    folder = PreparedFolder(out / "prepared")
    [job] = jobs
    validation = folder.manifest.select(case_ids=job.validation_ids)
    prepared = [folder.case(case_id) for case_id in job.training_ids]
    images = [np.asarray(case.image[0], dtype=np.float32) for case in prepared]
    labels = [np.asarray(case.label) for case in prepared]
    rows = {}
    for name, baseline in (("mean-shape atlas", MeanShapeAtlas()), ("intensity threshold", IntensityThreshold())):
        baseline.fit(images, labels)
        rows[name] = _score_on_native_grids(baseline.predict, folder, validation)
        say(f"baseline, {name}: mean Dice {rows[name]['dice']:.3f}")
    write_json(out / "baselines.json", rows)


def _score_on_native_grids(
    segment: Callable[[np.ndarray], np.ndarray], folder: PreparedFolder, cases: Sequence[Case]
) -> dict[str, float]:
    """Compute the mean Dice of each structure and of all.

    ``segment`` maps a prepared image to its label map.
    """
    structures = folder.manifest.structures
    scores: dict[str, list[float]] = {name: [] for name in structures}
    for case in cases:
        prepared = folder.case(case.case_id)
        prediction = restore_label(segment(np.asarray(prepared.image[0], dtype=np.float32)), prepared.geometry)
        assert case.label is not None, "every prepared case has a label"
        label = read_label(case.label, structures=structures, case_id=case.case_id).array
        for name, value in structures.items():
            scores[name].append(dice_coefficient(prediction == value, label == value))
    return mean_dice(scores).as_dict()
