"""Validation of sites that train together."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from statistics import fmean
from typing import Any

from torch import nn

from uumamba.pipelines.build import WholeCaseValidation
from uumamba.training.federated_trainer import SiteModels


class SiteValidation:
    """Dice of the mean model by site, and of each site's model.

    The scores are those of :class:`WholeCaseValidation <uumamba.pipelines.build.WholeCaseValidation>` for the mean
    model, and

    - ``sites``: Dice of the mean model on the validation cases of each site, None without any;
    - ``sites_own``: Dice of each site's own model on all validation cases, after the last epoch only, since it takes as
      many passes through all cases as there are sites;
    - ``dice_own_mean`` and ``dice_own_worst``: their mean and the lowest of them.

    Args:
        cases: validation on all cases of the fold.
        case_ids: validation cases of each site.
        entering: makes the context of a network's passes, such as autocast.
    """

    def __init__(
        self,
        cases: WholeCaseValidation,
        case_ids: Mapping[str, Sequence[str]],
        *,
        entering: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.cases, self.case_ids, self.entering = cases, case_ids, entering

    def __call__(self, net: nn.Module, sites: SiteModels) -> dict[str, Any]:
        """Score the mean model, then each site's own."""
        with self.entering():
            rows = self.cases.score_cases(net)
            own = {site: self.cases(load())["dice"] for site, load in sites.items()}
        by_site = {
            site: self.cases.average([rows[case_id] for case_id in held])["dice"] if held else None
            for site, held in self.case_ids.items()
        }
        scores: dict[str, Any] = {**self.cases.average([*rows.values()]), "sites": by_site}
        if own:
            scores |= {"sites_own": own, "dice_own_mean": fmean(own.values()), "dice_own_worst": min(own.values())}
        return scores
