"""Members equal to pytorch_optimizer's, or to SAM at a limit."""

from functools import partial
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW

MOMENTUM = {"lr": 0.05, "momentum": 0.9}


@pytest.mark.parametrize(
    ("name", "theirs", "base", "settings", "options"),
    [
        ("SAM", pytorch_optimizer.SAM, AdamW, {"lr": 0.01, "weight_decay": 0.1}, {}),
        ("ASAM", partial(pytorch_optimizer.SAM, adaptive=True), SGD, MOMENTUM, {"eta": 0.0, "normalize_bias": True}),
        (
            "FriendlySAM",
            partial(pytorch_optimizer.FriendlySAM, sigma=0.5, lmbda=0.6),
            SGD,
            MOMENTUM,
            {"sigma": 0.5, "lam": 0.6},
        ),
    ],
    ids=["SAM over AdamW", "ASAM", "FriendlySAM"],
)
def test_twenty_steps_equal_pytorch_optimizers(
    training: Any, name: str, theirs: Any, base: Any, settings: dict[str, float], options: dict[str, Any]
) -> None:
    layers = partial(torch.nn.LayerNorm, 8)
    ours = training(name, partial(base, **settings), middle=layers, rho=0.2, **options)
    other = training("Plain", middle=layers).net
    ours.train(ours.batches(20))
    reference = theirs(other.parameters(), base, rho=0.2, **settings)
    for batch in ours.batches(20):

        def closure(image: Any = batch["image"], label: Any = batch["label"]) -> Any:
            reference.zero_grad()
            loss = F.cross_entropy(other(image), label)
            loss.backward()
            return loss

        closure()
        reference.step(closure)
    found = torch.nn.utils.parameters_to_vector(other.parameters()).detach()
    torch.testing.assert_close(ours.weights, found, rtol=1e-6, atol=1e-7)  # its norm is float32


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("GSAM", {"alpha": 0.0}),
        ("FriendlySAM", {"sigma": 0.0}),
        ("LookSAM", {"k": 1}),
        ("LookSAM triggered", {}),  # always due
    ],
)
def test_at_a_limit_a_member_is_sam_bit_for_bit(training: Any, name: str, options: dict[str, Any]) -> None:
    runs = [
        training("SAM", partial(Adam, lr=0.01), rho=0.3),
        training(name, partial(Adam, lr=0.01), rho=0.3, **options),
    ]
    for run in runs:
        run.train(run.batches(5))
    assert torch.equal(runs[0].weights, runs[1].weights)
