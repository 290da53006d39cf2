"""A value out of range raises an error with the option's name."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from uumamba.domain_generalization import (
    SWAD,
    UDIM,
    USEFUL,
    Algorithm,
    InputPerturbation,
    MixStyle,
    RandConv,
    StylePerturbation,
    UpsampledSampler,
    domain_batches,
    find_elbow,
    held_out_domains,
    split_domain,
    train_and_record,
)
from uumamba.domain_generalization.input_ascent import InputAscent
from uumamba.optim import Plain

DOMAINS = [TensorDataset(torch.zeros(10, 2), torch.zeros(10, dtype=torch.long)) for _ in range(3)]
NET = nn.Linear(2, 2)
ALGORITHM = Algorithm(NET, Plain(NET.parameters(), partial(torch.optim.SGD, lr=0.1)))
style = partial(StylePerturbation, 0.5)
udim = partial(UDIM, NET, cross_entropy, InputPerturbation(0.3))
run = partial(train_and_record, ALGORITHM, DOMAINS)

WRONG: list[tuple[Callable[..., Any], str, list[Any]]] = [
    (MixStyle, "p", [-0.5, 1.5, True]),
    (MixStyle, "alpha", [0.0]),
    (MixStyle, "eps", [-1.0]),
    (RandConv, "p", [-0.5, 1.5]),
    (RandConv, "kernel_sizes", [(), (2,), (3, -1)]),
    (InputPerturbation, "radius", [0.0, -1.0, math.inf]),
    (InputPerturbation, "rms", [0.0, -1.0, math.inf]),
    (StylePerturbation, "radius", [0.0, -1.0, math.inf]),
    (style, "parts", [(), ("hue",), ("mean", "mean")]),
    (style, "control_points", [1]),
    (InputAscent, "rho", [-1.0, math.inf]),
    (partial(InputAscent, rho=0.05), "second_order", ["newton", 1]),
    (udim, "lambda1", [-1.0]),
    (udim, "lambda2", [math.inf]),
    (udim, "rho", [-0.1]),
    (udim, "warmup_steps", [-1]),
    (udim, "voxels_a_class", [0]),
    (udim, "direction", ["down"]),
    (udim, "second_order", ["exact"]),
    (partial(SWAD, NET), "n_converge", [0, 2.5, True]),
    (partial(SWAD, NET), "n_tolerance", [0]),
    (partial(SWAD, NET), "tolerance_ratio", [-0.1]),
    (partial(USEFUL, None, None), "most_epochs", [1, True]),
    (partial(USEFUL, None, None), "slowing", [1.0]),
    (partial(USEFUL, None, None), "factor", [0]),
    (partial(find_elbow, [0.9, 0.5]), "slowing", [0.0]),
    (partial(find_elbow, [0.9, 0.5]), "learned", [1.0]),
    (find_elbow, "errors", [[0.9, math.inf]]),
    (partial(UpsampledSampler, 10), "slow", [[10], [-1], [1, 1]]),
    (partial(UpsampledSampler, 10), "factor", [0]),
    (partial(UpsampledSampler, 10, replicas=2), "rank", [2]),
    (partial(UpsampledSampler, 10), "replicas", [11]),
    (partial(domain_batches, {0: DOMAINS[0]}), "batch_size", [0]),
    (partial(split_domain, DOMAINS[0], domain=0), "holdout", [0.0, 1.0]),
    (held_out_domains, "domains", [1]),
    (partial(held_out_domains, cross_validation=True), "domains", [2]),
    (run, "test_domains", [[], [0, 1, 2], [3], [-1]]),
    (partial(run, test_domains=[0]), "steps", [0]),
    (partial(run, test_domains=[0]), "record_every", [0]),
]
CASES = [(make, key, value) for make, key, values in WRONG for value in values]


@pytest.mark.parametrize(("make", "key", "value"), CASES, ids=[f"{key}={value}" for _, key, value in CASES])
def test_a_value_out_of_range_is_refused(make: Callable[..., Any], key: str, value: Any, refused: Any) -> None:
    with refused(key, got=value):
        make(**{key: value})
