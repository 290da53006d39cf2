"""Measures of unlearned patients against retraining from scratch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from torch import nn

from uumamba.data.loader import batches
from uumamba.pipelines.build import build_dataset
from uumamba.pipelines.forgetting.case_measures import CaseMeasure, CaseMeasures
from uumamba.pipelines.forgetting.forget_request import ForgetRequest
from uumamba.pipelines.jobs import replace_seed
from uumamba.runtime.network import batch_to_device
from uumamba.runtime.seeds import key_to_seed
from uumamba.unlearning import MembershipResult, RelearningRow, attack_by_loss, prediction_distance, relearning_attack

BEFORE, AFTER, UNSMOOTHED, RETRAINED = "before", "after", "unsmoothed", "retrained"
ATTACKED = (AFTER, UNSMOOTHED, RETRAINED)
VIEW_BATCHES = 4
"""Batches of patches on which predictions are compared."""


@dataclass(frozen=True)
class AttackOptions:
    """Options of the relearning attack.

    Attributes:
        budgets: steps of fine-tuning after which the attack is measured.
        rates: learning rates of AdamW; the strongest counts.
        batches: batches of patches that the attacker has.
    """

    budgets: tuple[int, ...] = (10, 30, 100)
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    batches: int = 8


class Evidence:
    """Measurement of the models of a request.

    Args:
        request: cases and patients.
        measures: losses and Dice of whole cases.
        unseen_ids: unseen cases that took no part in unlearning.
        attack: options of the relearning attack.
        device: of the networks.
    """

    def __init__(
        self,
        request: ForgetRequest,
        measures: CaseMeasures,
        *,
        unseen_ids: Sequence[str],
        attack: AttackOptions,
        device: str = "cpu",
    ) -> None:
        self.request, self.measures, self.attack, self.device = request, measures, attack, device
        self.unseen_ids = tuple(unseen_ids)
        shown = request.patients[: math.ceil(len(request.patients) / 2)]
        of_attacker = [case_id for case_id in request.forget_ids if request.patient_of(case_id) in shown]
        self.attacker_ids = tuple(of_attacker)
        # Of a single patient, the attacker has the patient whom the attack is measured on.
        rest = [case_id for case_id in request.forget_ids if case_id not in of_attacker]
        self.rest_ids = tuple(rest or of_attacker)

    def collect(
        self, nets: Mapping[str, nn.Module], *, on_model: Callable[[str], object] = lambda name: None
    ) -> dict[str, Any]:
        """Measure all models.

        Args:
            nets: networks by ``before``, ``after``, ``unsmoothed`` and ``retrained``; the second and third may be one.
            on_model: called with the name of each model before it is measured.

        Returns:
            JSON values: ``patients``, counts, ``models`` with Dice, membership and distance of each, ``relearning``
            with membership after each budget, and ``findings``.
        """
        models: dict[str, Any] = {}
        relearning: dict[str, list[dict[str, Any]]] = {}
        for name, net in nets.items():
            on_model(name)
            models[name] = self._measure(net, nets[RETRAINED])
        for name in ATTACKED:
            on_model(f"{name}, under attack")
            if name == UNSMOOTHED and nets[UNSMOOTHED] is nets[AFTER]:
                relearning[name] = relearning[AFTER]
            else:
                relearning[name] = self._relearn(nets[name], nets[RETRAINED])
        request = self.request
        return {
            "patients": list(request.patients),
            "cases": {
                "forgotten": len(request.forget_ids),
                "retained": len(request.retain_ids),
                "unseen": len(request.unseen_ids),
                "unseen_for_membership": len(self.unseen_ids),
                "attacker": len(self.attacker_ids),
            },
            "attacker_sees_measured_cases": self.rest_ids == self.attacker_ids,
            "models": models,
            "relearning": relearning,
            "findings": draw_findings(models, relearning),
        }

    def _measure(self, net: nn.Module, retrained: nn.Module) -> dict[str, Any]:
        request = self.request
        found = self.measures.measure(net, [*request.forget_ids, *request.retain_ids, *request.unseen_ids])
        sides = {"forgotten": request.forget_ids, "retained": request.retain_ids, "unseen": request.unseen_ids}
        distances = {
            name: asdict(prediction_distance(net, retrained, self._views(name, ids)))
            for name, ids in (("forgotten", request.forget_ids), ("unseen", self.unseen_ids))
        }
        return {
            "dice": {name: fmean(found[case_id].dice for case_id in ids) for name, ids in sides.items()},
            "loss": {name: fmean(found[case_id].loss for case_id in ids) for name, ids in sides.items()},
            "membership": asdict(self._attack(found, request.forget_ids)),
            "membership_by_voxel_loss": asdict(self._attack(found, request.forget_ids, key="voxel_loss")),
            "distance_to_retrained": distances,
        }

    def _attack(
        self, found: Mapping[str, CaseMeasure], member_ids: Sequence[str], *, key: str = "loss"
    ) -> MembershipResult:
        patient_of = self.request.patient_of
        return attack_by_loss(
            [getattr(found[case_id], key) for case_id in member_ids],
            [getattr(found[case_id], key) for case_id in self.unseen_ids],
            member_groups=[patient_of(case_id) for case_id in member_ids],
            non_member_groups=[patient_of(case_id) for case_id in self.unseen_ids],
        )

    def _relearn(self, net: nn.Module, retrained: nn.Module) -> list[dict[str, Any]]:
        """Attack a model; return the strongest attack of each budget."""
        seen: list[dict[str, Any]] = []
        views = self._views("forgotten", self.rest_ids)

        def quality(attacked: nn.Module) -> float:
            modes = attacked.training
            found = self.measures.measure(attacked.eval(), [*self.rest_ids, *self.unseen_ids])
            membership = self._attack(found, self.rest_ids)
            distance = asdict(prediction_distance(attacked, retrained, views))
            seen.append({"membership": asdict(membership), "distance_to_retrained": distance})
            attacked.train(modes)
            return membership.auc

        result = relearning_attack(
            net,
            self._views("attacker", self.attacker_ids, count=self.attack.batches),
            quality,
            optimizer=partial(torch.optim.AdamW, lr=1.0, weight_decay=0.0),
            budgets=self.attack.budgets,
            rates=self.attack.rates,
            seed=self.request.job.config.seed,
        )
        rows: list[RelearningRow] = [row for row in result.rows if math.isfinite(row.quality)]
        by_row = dict(zip([id(row) for row in rows], seen, strict=True))
        strongest = {0: result.rows[0]} | {budget: result.strongest(budget) for budget in self.attack.budgets}
        return [
            {"budget": budget, "steps": row.steps, "learning_rate": row.rate, **by_row[id(row)]}
            for budget, row in strongest.items()
        ]

    def _views(self, name: str, case_ids: Sequence[str], *, count: int = VIEW_BATCHES) -> list[Any]:
        """Return batches of patches of some cases, the same at every call."""
        seed = key_to_seed(self.request.job.config.seed, "evidence", name)
        dataset = build_dataset(replace_seed(self.request.job.config, seed), self.request.folder, case_ids)
        found: list[Any] = []
        epoch = 0
        while len(found) < count:
            found += islice(batches(dataset, epoch), count - len(found))
            epoch += 1
        return [batch_to_device(batch, self.device) for batch in found]


def draw_findings(models: Mapping[str, Any], relearning: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Draw the findings from the measures.

    Returns:
        ``was_recognised``: the membership advantage before lay, with its interval, above the retrained model's.
        ``is_forgotten``: for both losses the interval after unlearning includes the retrained model's advantage. Both
        are None for a single patient, who has no interval.
        ``dice_drop``: Dice on unseen patients before minus after.
        ``closer_after_attack``: for each budget, whether the smoothed model's area stays closer to the retrained
        model's than the unsmoothed one's; None if equal.
    """
    before, retrained = (models[name]["membership"] for name in (BEFORE, RETRAINED))
    closer: dict[str, bool | None] = {}
    for smoothed, unsmoothed, other in zip(*(relearning[name] for name in ATTACKED), strict=True):
        area = other["membership"]["auc"]
        gap, gap_unsmoothed = (abs(each["membership"]["auc"] - area) for each in (smoothed, unsmoothed))
        closer[str(smoothed["budget"])] = None if gap == gap_unsmoothed else gap < gap_unsmoothed
    known = math.isfinite(before["advantage_interval"][0])
    within = []
    for key in ("membership", "membership_by_voxel_loss"):
        low, high = models[AFTER][key]["advantage_interval"]
        within.append(low <= models[RETRAINED][key]["advantage"] <= high)
    return {
        "was_recognised": before["advantage_interval"][0] > retrained["advantage"] if known else None,
        "is_forgotten": all(within) if known else None,
        "dice_drop": models[BEFORE]["dice"]["unseen"] - models[AFTER]["dice"]["unseen"],
        "closer_after_attack": closer,
    }
