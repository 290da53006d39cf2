"""Postprocessing of a run: chosen after each fold's training, read for prediction."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from uumamba.config.training import UNION
from uumamba.data.prepared import PreparedFolder
from uumamba.data.stored_json import read_json
from uumamba.inference import Predictor
from uumamba.inference.postprocess import LargestComponents, choose_postprocess
from uumamba.runtime.files import write_json
from uumamba.types import LabelMap

CHOICE_NAME = "postprocess.json"


@dataclass(frozen=True)
class FoldChoice:
    """Postprocessing chosen on a fold's validation cases, as in ``postprocess.json``.

    Attributes:
        postprocess: names of the masks of which the largest component is kept.
        dice: mean Dice with this postprocessing on the prepared grid; None if no case has a structure.
        dice_without: mean Dice without postprocessing.
        cases: number of validation cases.
        steps: number of steps of the training.
    """

    postprocess: tuple[str, ...]
    dice: float | None
    dice_without: float | None
    cases: int
    steps: int


def choose_for_fold(
    fold: Path, predictor: Predictor, folder: PreparedFolder, case_ids: Sequence[str], *, steps: int
) -> None:
    """Choose a fold's postprocessing on its validation cases, and store it.

    A choice after the same number of steps is kept. The cases are segmented on the prepared grid.

    Args:
        fold: the fold folder; gets ``postprocess.json``.
        predictor: the fold's model.
        folder: prepared cases.
        case_ids: the validation cases.
        steps: number of steps of the training.
    """
    stored = _read(fold)
    if stored is not None and stored.steps == steps:
        return
    structures, labels = folder.manifest.classes, folder.manifest.labels

    def segment() -> Iterator[tuple[LabelMap, LabelMap]]:
        for case_id in case_ids:
            case = folder.case(case_id)
            found = predictor.prepared_probabilities(np.asarray(case.image), case_id=case_id)
            yield predictor.find_label(found), np.asarray(case.label)

    regions = labels.target_classes if labels.regions else None
    choice = choose_postprocess(segment(), structures, regions=regions, ignore_label=labels.ignore_label)
    names = [UNION] * choice.postprocess.union
    names += [name for name, value in structures.items() if value in choice.postprocess.values]
    dice, dice_without = (None if np.isnan(each) else each for each in (choice.dice, choice.dice_without))
    found = FoldChoice(tuple(names), dice, dice_without, choice.cases, steps)
    write_json(fold / CHOICE_NAME, asdict(found))


def read_choice(folds: Sequence[Path]) -> tuple[str, ...]:
    """Read the masks that most of the folds with a choice chose.

    Raises:
        UsageError: a stored choice is damaged.
    """
    choices = [stored.postprocess for fold in folds if (stored := _read(fold)) is not None]
    counts = Counter(name for names in choices for name in names)
    return tuple(name for name, count in counts.items() if 2 * count > len(choices))


def make_postprocess(names: Sequence[str], structures: Mapping[str, int]) -> LargestComponents | None:
    """Make the postprocessing of named masks; None without names."""
    values = tuple(value for name, value in structures.items() if name in names)
    return LargestComponents(UNION in names, values) if names else None


def _read(fold: Path) -> FoldChoice | None:
    path, fix = fold / CHOICE_NAME, "remove the file, and continue with `uumamba train --resume` to choose again"
    if not path.is_file():
        return None
    return read_json(path, TypeAdapter(FoldChoice), expected="a choice of postprocessing", fix=fix)
