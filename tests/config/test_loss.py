"""Choosing the terms of the loss: today's by default, vessels' by name."""

import pytest
import torch

from uumamba.config import read_config
from uumamba.losses import CrossEntropyLoss, FocalLoss, SoftDiceLoss, UncertaintyWeightedLoss
from uumamba.runtime.errors import UsageError


def test_without_terms_it_is_the_loss_that_it_was() -> None:
    logits, label = torch.randn(2, 4, 8, 8), torch.randint(0, 4, (2, 1, 8, 8))
    before = UncertaintyWeightedLoss(
        {"region": SoftDiceLoss(batch_dice=True), "distribution": CrossEntropyLoss(), "pixel": FocalLoss(gamma=2.0)}
    )
    now = read_config("demo").loss.build()
    assert now(logits, label) == before(logits, label)
    assert now.weights() == before.weights()
    assert now.state_dict().keys() == before.state_dict().keys()


def test_the_log_calls_each_term_by_its_name() -> None:
    terms = ["region", "pixel_by_class", "centreline"]
    loss = read_config("demo", [f"loss.terms={terms}", "loss.centreline_iterations=3"]).loss.build()
    loss(torch.randn(1, 3, 8, 8), torch.randint(0, 3, (1, 1, 8, 8)))
    assert list(loss.weights()) == terms
    assert list(loss.last_terms) == terms
    assert loss.terms.losses["centreline"].iterations == 3
    assert loss.terms.losses["pixel_by_class"].class_mean
    assert loss.log_variances.shape == (3,)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.terms=[region,region]", r"loss: terms names one twice, found \['region', 'region'\]"),
        ("loss.terms=[]", r"loss\.terms: .*at least 1 item"),
        ("loss.terms=[dice]", r"loss\.terms\.0: Input should be 'region', 'distribution', .*found 'dice'"),
        ("loss={name: uncertainty_weighted, mode: released_code, terms: [region]}", "loss: mode released_code has the"),
    ],
)
def test_terms_that_make_no_loss_are_refused(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_config("demo", [override])
