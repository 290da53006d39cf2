"""Fixed patches of each case: the same at every look, on foreground, and each answered for itself."""

from pathlib import Path

import torch
from torch import nn

from uumamba.data.dataset import case_views
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.slow_cases import OfViews, case_answers


def test_views_are_the_same_at_every_look_lie_on_foreground_and_are_unlike_each_other(tiny_prepared: Path) -> None:
    folder = PreparedFolder(tiny_prepared)
    ids = [case.case_id for case in folder.manifest.cases[:3]]
    first, again = (list(case_views(folder, ids, patch_size=(32, 32), views=4)) for _ in range(2))
    for one, other, case_id in zip(first, again, ids, strict=True):
        assert one["case_id"] == [case_id]
        assert one["image"].shape == one["label"].shape == (1, 1, 4, 32, 32)
        assert torch.equal(one["image"], other["image"])
        assert one["label"][0, 0].flatten(1).any(1).all()
        assert not torch.equal(one["image"][:, :, 0], one["image"][:, :, 1])
    alone = next(iter(case_views(folder, ids[1:], patch_size=(32, 32), views=4)))
    assert torch.equal(alone["image"], first[1]["image"]), "other cases beside it change nothing"


def test_each_view_is_answered_as_if_alone_by_the_finest_logits() -> None:
    net, image = nn.Conv2d(1, 3, 3), torch.randn(2, 1, 4, 8, 8)
    answered = OfViews(net)(image)
    assert answered.shape == (2, 3, 4, 6, 6)
    for view in range(4):
        assert torch.allclose(answered[:, :, view], net(image[:, :, view]), atol=1e-6)

    class Deep(nn.Module):
        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            return [net(image), net(image)[..., ::2, ::2]]

    assert torch.equal(OfViews(Deep())(image), answered)


def test_cases_are_grouped_by_phase_or_all_together(tiny_prepared: Path) -> None:
    folder = PreparedFolder(tiny_prepared)
    cases = folder.manifest.cases[:4]
    ids = [case.case_id for case in cases]
    net = nn.Conv2d(1, 4, 1)
    found = case_answers(net, folder, ids, patch_size=(32, 32), views=2, group_by="phase")
    assert found.groups.tolist() == [["ED", "ES"].index(str(case.phase)) for case in cases]
    assert case_answers(net, folder, ids, patch_size=(32, 32), views=2).groups.tolist() == [0] * 4
    assert net.training, "left as it was"
