"""Whole-case validation while training: mean Dice on the prepared grid, quick enough to run often."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from uumamba.data.prepared import PreparedFolder
from uumamba.evaluation import mean_dice
from uumamba.inference import Predictor
from uumamba.metrics import dice_coefficient
from uumamba.runtime.precision import Precision
from uumamba.training import ALONE, Ranks


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
        ranks: the processes that train together; each takes a share of the cases, and the scores are those of all.
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
        ranks: Ranks = ALONE,
    ) -> None:
        self.folder = folder
        self.case_ids = tuple(case_ids)
        self.structures = dict(structures)
        self.patch_size = tuple(patch_size)
        self.overlap = overlap
        self.windows_at_once = windows_at_once
        self.device = device
        self.precision = precision
        self.ranks = ranks

    def __call__(self, net: nn.Module) -> dict[str, float]:
        """Mean Dice over cases, a structure and over all."""
        predictor, ranks = self._predictor(net), self.ranks
        own = [self._dice_of(case_id, predictor) for case_id in self.case_ids[ranks.rank :: ranks.count]]
        shares = ranks.gather(own)
        # In the order of the cases, so that sums round as in one process.
        rows = [shares[index % ranks.count][index // ranks.count] for index in range(len(self.case_ids))]
        mean = mean_dice({name: [row[name] for row in rows] for name in self.structures})
        each = {f"dice_{name}": dice for name, dice in mean.structures.items() if dice is not None}
        return {"dice": mean.as_dict()["dice"]} | each

    def _dice_of(self, case_id: str, predictor: Predictor) -> dict[str, float]:
        case = self.folder.case(case_id)
        prediction = predictor.prepared_probabilities(np.asarray(case.image), case_id=case_id).argmax(axis=0)
        label = np.asarray(case.label)
        return {name: dice_coefficient(prediction == value, label == value) for name, value in self.structures.items()}

    def _predictor(self, net: nn.Module) -> Predictor:
        return Predictor(
            net,
            patch_size=self.patch_size,
            overlap=self.overlap,
            sw_batch_size=self.windows_at_once,
            device=self.device,
            precision=self.precision,
        )
