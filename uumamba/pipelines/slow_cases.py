"""Which cases a probe has learned slowly, by a few fixed patches of each."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from uumamba.data.dataset import case_views
from uumamba.data.prepared import PreparedFolder
from uumamba.domain_generalization import ProbeOutputs, probe_segmentation
from uumamba.runtime.errors import UsageError

GroupBy = Literal["phase", "domain", "group"]


class OfViews(nn.Module):
    """A network of patches that answers ``(batch, channels, views, *patch)``, every view for itself.

    Args:
        net: patches to logits, or to a list of them, finest first.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``(batch, classes, views, *patch)``."""
        outputs: Any = self.net(image.movedim(2, 1).flatten(0, 1))
        finest: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
        return finest.unflatten(0, (len(image), -1)).movedim(1, 2)


def case_answers(
    net: nn.Module,
    folder: PreparedFolder,
    case_ids: Sequence[str],
    *,
    patch_size: Sequence[int],
    views: int,
    group_by: GroupBy | None = None,
) -> ProbeOutputs:
    """How well the network segments each case; see :func:`uumamba.domain_generalization.probe_segmentation`.

    The patches are the same at every call, whatever the run's seed.

    Args:
        net: patches to logits.
        folder: the prepared folder.
        case_ids: the cases, in order.
        patch_size: of the patches.
        views: patches a case.
        group_by: what slow cases are sought within: a case's phase, domain or group; None looks among all together.

    Raises:
        UsageError: no case has what they are to be grouped by.
    """
    names = [None if group_by is None else getattr(folder.manifest.by_id(case_id), group_by) for case_id in case_ids]
    if group_by is not None and not any(names):
        raise UsageError(
            f"training.useful.group_by is {group_by}, and no case of {folder.manifest.name} has one; set it to null."
        )
    numbers = {name: number for number, name in enumerate(sorted({*names}, key=str))}
    shown = case_views(folder, case_ids, patch_size=patch_size, views=views)
    return probe_segmentation(OfViews(net), shown, groups=[numbers[name] for name in names])
