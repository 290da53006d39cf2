"""Whole-case validation while training: mean Dice on the prepared grid, quick enough to run often."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from uumamba.data.prepared import PreparedFolder
from uumamba.evaluation import mean_dice
from uumamba.inference import Predictor
from uumamba.metrics import dice_coefficient
from uumamba.precision import Precision


class WholeCaseValidation:
    """Score a network on whole prepared cases: ``validate(net) -> {"dice": mean, "dice_RV": ..., ...}``.

    Each case is segmented by the sliding window without mirroring, and its Dice a structure is taken on the prepared
    grid. A structure absent from label and prediction does not count. The final scores, on the native grid, are
    ``uumamba evaluate``'s.

    Args:
        folder: prepared cases.
        case_ids: which of them.
        structures: label value of each structure.
        patch_size: the sliding window's.
        overlap: of neighbouring windows.
        windows_at_once: windows a call of the network.
        device: where the network is.
        precision: of autocast.
    """

    def __init__(
        self,
        folder: PreparedFolder,
        case_ids: Sequence[str],
        *,
        structures: Mapping[str, int],
        patch_size: Sequence[int],
        overlap: float,
        windows_at_once: int,
        device: str,
        precision: Precision = "float32",
    ) -> None:
        self.folder = folder
        self.case_ids = tuple(case_ids)
        self.structures = dict(structures)
        self.patch_size = tuple(patch_size)
        self.overlap = overlap
        self.windows_at_once = windows_at_once
        self.device = device
        self.precision = precision

    def __call__(self, net: nn.Module) -> dict[str, float]:
        """Mean Dice over cases, a structure and over all."""
        predictor = self._predictor(net)
        scores: dict[str, list[float]] = {name: [] for name in self.structures}
        for case_id in self.case_ids:
            case = self.folder.case(case_id)
            found = predictor.prepared_probabilities(np.asarray(case.image), case_id=case_id)
            prediction = found.argmax(axis=0)
            for name, value in self.structures.items():
                scores[name].append(dice_coefficient(prediction == value, np.asarray(case.label) == value))
        mean = mean_dice(scores)
        each = {f"dice_{name}": dice for name, dice in mean.structures.items() if dice is not None}
        return {"dice": mean.as_dict()["dice"]} | each

    def _predictor(self, net: nn.Module) -> Predictor:
        return Predictor(
            net,
            patch_size=self.patch_size,
            overlap=self.overlap,
            sw_batch_size=self.windows_at_once,
            device=self.device,
            precision=self.precision,
        )
