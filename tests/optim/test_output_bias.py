"""Output-bias forgetting: the published gradient, its limits, voxels, and what climbers do with it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from uumamba.optim import ASAM, SAM, OutputBiasForgetting
from uumamba.runtime.errors import UsageError

CLASSES = 4


def published_gradient(
    z: Tensor, y: Tensor, *, form: str, gamma: float = 1.0, lowest: float | None = None, always: bool = False
) -> Tensor:
    """u - a p - (1 - a) y of each row of logits, one number after the other."""
    count, classes = z.shape
    found = torch.zeros(count, classes, dtype=torch.float64)
    smallest = 1 / classes if lowest is None else lowest
    for row in range(count):
        if form == "softmax":
            total = sum(float(torch.exp(value)) for value in z[row])
            p = [float(torch.exp(value)) / total for value in z[row]]
        else:
            p = [1 / (1 + float(torch.exp(-value))) for value in z[row]]
        a = gamma if always else gamma * max(0.0, (1 - smallest / p[int(y[row])]) / (1 - smallest))
        for c in range(classes):
            found[row, c] = 1 / classes - a * p[c] - (1 - a) * (c == int(y[row]))
    return found


def gradient(ascent: OutputBiasForgetting, z: Tensor, y: Tensor) -> Tensor:
    z = z.detach().clone().requires_grad_()
    return torch.autograd.grad(ascent((z, y)), z)[0]


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    """Logits and classes of 40 samples, of which some are sure, rightly or wrongly."""
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(40, CLASSES, generator=generator).double(), torch.randint(
        CLASSES, (40,), generator=generator
    )


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    "options", [{}, {"gamma": 0.3}, {"gamma": 0.0}, {"lowest": 0.6}, {"gamma": 0.5, "always": True}], ids=str
)
def test_the_gradient_on_logits_is_the_published_one(
    rows: tuple[Tensor, Tensor], form: Any, options: dict[str, Any]
) -> None:
    named = {"uniform_probability" if name == "lowest" else name: value for name, value in options.items()}
    expected = published_gradient(*rows, form=form, **options) / len(rows[0])
    torch.testing.assert_close(gradient(OutputBiasForgetting(form=form, **named), *rows), expected)


def test_the_value_is_the_weighted_cross_entropy_less_the_one_with_the_uniform_distribution() -> None:
    # p = (0.8, 0.1, 0.1), y = 0: a = (1 - (1/3) / 0.8) / (2/3) = 0.875; CE(p, u) = -(ln 0.8 + 2 ln 0.1) / 3
    p = torch.tensor([[0.8, 0.1, 0.1]], dtype=torch.float64)
    expected = 0.125 * -p[0, 0].log() + p.log().sum() / 3
    found = OutputBiasForgetting()((p.log() + 5, torch.tensor([0])))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_an_unlikely_class_climbs_the_cross_entropy_and_leaves_the_uniform_one(form: Any) -> None:
    z, y = torch.tensor([[-3.0, 1.0, 2.0, 0.5]], dtype=torch.float64), torch.tensor([0])  # p_y < 1/4: a is 0
    expected = torch.tensor([[0.25 - 1, 0.25, 0.25, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(gradient(OutputBiasForgetting(form=form), z, y), expected)


def test_the_strength_is_zero_at_the_uniform_probability_itself() -> None:
    z = torch.zeros(1, CLASSES, dtype=torch.float64)
    expected = torch.tensor([[0.25 - 1, 0.25, 0.25, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(gradient(OutputBiasForgetting(), z, torch.tensor([0])), expected)


@pytest.mark.parametrize("gamma", [1.0, 0.4])
def test_a_certain_class_is_forgotten_at_full_strength(gamma: float) -> None:
    z = torch.tensor([[60.0, 0.0, 0.0, 0.0]], dtype=torch.float64)  # p_y = 1 - 3e-26: p and y are equal
    expected = torch.tensor([[0.25 - 1, 0.25, 0.25, 0.25]], dtype=torch.float64)
    ascent = OutputBiasForgetting(gamma=gamma)
    torch.testing.assert_close(gradient(ascent, z, torch.tensor([0])), expected)
    log_p = z.log_softmax(1)[0]
    torch.testing.assert_close(ascent((z, torch.tensor([0]))), log_p.mean() - (1 - gamma) * log_p[0])


def test_a_probability_that_underflows_gives_no_strength_and_no_nan() -> None:
    z, y = torch.tensor([[-500.0, 500.0, 0.0, 0.0]]), torch.tensor([0])
    torch.testing.assert_close(gradient(OutputBiasForgetting(), z, y), torch.tensor([[-0.75, 0.25, 0.25, 0.25]]))


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_a_small_step_along_the_gradient_raises_output_bias_forgetting(rows: tuple[Tensor, Tensor], form: Any) -> None:
    ascent, (z, y) = OutputBiasForgetting(form=form), rows
    assert ascent((z + 0.01 * gradient(ascent, z, y), y)) > ascent((z, y))


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize("spatial", [(5,), (3, 5), (2, 3, 5)])
@pytest.mark.parametrize("channel", [True, False], ids=["B1S", "BS"])
def test_voxels_are_samples(form: Any, spatial: tuple[int, ...], channel: bool) -> None:
    z = 3 * torch.randn(2, CLASSES, *spatial, dtype=torch.float64)
    y = torch.randint(CLASSES, (2, 1, *spatial) if channel else (2, *spatial))
    found = gradient(OutputBiasForgetting(form=form), z, y)
    flat = published_gradient(z.movedim(1, -1).reshape(-1, CLASSES), y.flatten(), form=form) / y.numel()
    torch.testing.assert_close(found.movedim(1, -1).reshape(-1, CLASSES), flat)


def test_ignored_voxels_are_left_out_of_gradient_and_mean() -> None:
    z = torch.randn(2, CLASSES, 3, 3, dtype=torch.float64)
    y = torch.randint(CLASSES, (2, 1, 3, 3))
    y[0, 0, 0] = y[1, 0, 2, 1] = 255
    rows, labels = z.movedim(1, -1).reshape(-1, CLASSES), y.flatten()
    expected = torch.zeros_like(rows)
    expected[labels != 255] = published_gradient(rows[labels != 255], labels[labels != 255], form="softmax") / 14
    found = gradient(OutputBiasForgetting(ignore_label=255), z, y)
    torch.testing.assert_close(found.movedim(1, -1).reshape(-1, CLASSES), expected)


@pytest.mark.parametrize("class_mean", [True, False])
def test_with_everything_ignored_there_is_no_slope(class_mean: bool) -> None:
    z, y = torch.randn(2, CLASSES), torch.tensor([9, 9])
    assert not gradient(OutputBiasForgetting(ignore_label=9, class_mean=class_mean), z, y).any()


def test_the_class_mean_weighs_every_class_that_is_present_the_same() -> None:
    z = torch.randn(7, CLASSES, dtype=torch.float64)
    y = torch.tensor([0, 0, 0, 0, 2, 3, 3])  # class 1 is absent; one sample of class 3 is ignored below
    rows = published_gradient(z, y, form="softmax")
    weights = torch.tensor([1 / 12] * 4 + [1 / 3] + [1 / 6] * 2, dtype=torch.float64)
    torch.testing.assert_close(gradient(OutputBiasForgetting(class_mean=True), z, y), rows * weights[:, None])
    weights[4], y[4] = 0.0, 9
    weights[:4], weights[5:] = 1 / 8, 1 / 4
    found = gradient(OutputBiasForgetting(class_mean=True, ignore_label=9), z, y)
    torch.testing.assert_close(found, rows * weights[:, None])


def test_sigmoid_takes_zeros_and_ones_in_the_shape_of_the_logits() -> None:
    z = torch.randn(5, CLASSES, 3, dtype=torch.float64)
    y = torch.randint(CLASSES, (5, 3))
    one_hot = F.one_hot(y, CLASSES).movedim(-1, 1)
    ascent = OutputBiasForgetting(form="sigmoid")
    for label in (one_hot, one_hot.float()):
        torch.testing.assert_close(gradient(ascent, z, label), gradient(ascent, z, y))


def test_several_true_outputs_are_forgotten_by_their_mean_and_none_not_at_all() -> None:
    # p = (0.9, 0.7, 0.5), the first two true: p_y = 0.8, a = (1 - (1/3) / 0.8) / (2/3) = 0.875
    p = torch.tensor([0.9, 0.7, 0.5], dtype=torch.float64)
    z, u = p.logit().expand(2, 3), 1 / 3
    label = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    expected = torch.stack([u - 0.875 * p - 0.125 * label[0], torch.full((3,), u, dtype=torch.float64)]) / 2
    torch.testing.assert_close(gradient(OutputBiasForgetting(form="sigmoid"), z, label), expected)


def test_half_precision_is_computed_in_float32(rows: tuple[Tensor, Tensor]) -> None:
    z, y = rows[0].bfloat16(), rows[1]
    found = OutputBiasForgetting()((z, y))
    assert found.dtype == torch.float32
    assert found == OutputBiasForgetting()((z.float(), y))


def test_the_finest_logits_of_a_list_are_used(rows: tuple[Tensor, Tensor]) -> None:
    z, y = rows
    assert OutputBiasForgetting()(([z, torch.zeros_like(z)], y)) == OutputBiasForgetting()((z, y))


def steps_seen(make: Any, ascent: OutputBiasForgetting) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    """Weights in both passes of a step with ``ascent``, and the gradient written out by hand before it."""
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randint(CLASSES, (6,))
    logits = net(x)
    towards = published_gradient(logits.detach(), y, form="softmax") / 6
    slope = torch.autograd.grad(logits, list(net.parameters()), grad_outputs=towards)
    seen: list[list[Tensor]] = []

    def closure() -> tuple[Tensor, tuple[Tensor, Tensor]]:
        seen.append([param.detach().clone() for param in net.parameters()])
        z = net(x)
        return F.cross_entropy(z, y), (z, y)

    loss = make(net.parameters(), partial(SGD, lr=0.1)).step(closure, ascent=ascent)
    first, second = seen
    params = dict(zip((name for name, _ in net.named_parameters()), second, strict=True))
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    climbed = torch.autograd.grad(
        F.cross_entropy(torch.func.functional_call(net, leaves, (x,)), y), list(leaves.values())
    )
    for param, before, grad in zip(net.parameters(), first, climbed, strict=True):
        torch.testing.assert_close(param.detach(), before - 0.1 * grad)  # descends with the task's loss alone
    assert loss == F.cross_entropy(logits, y)
    return net, [after - before for before, after in zip(first, second, strict=True)], list(slope)


def test_sam_climbs_along_it_and_descends_with_the_task_loss() -> None:
    _, eps, slope = steps_seen(partial(SAM, rho=0.3), OutputBiasForgetting())
    norm = torch.cat([g.flatten() for g in slope]).norm()
    for found, g in zip(eps, slope, strict=True):
        torch.testing.assert_close(found, 0.3 * g / norm)


def test_asam_climbs_along_it_in_its_own_measure() -> None:
    torch.manual_seed(5)
    start = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()
    torch.manual_seed(5)
    _, eps, slope = steps_seen(partial(ASAM, rho=0.3, eta=0.01), OutputBiasForgetting())
    scales = [param.detach().abs() + 0.01 if param.ndim > 1 else torch.ones_like(param) for param in start.parameters()]
    norm = torch.cat([(t * g).flatten() for t, g in zip(scales, slope, strict=True)]).norm()
    for found, t, g in zip(eps, scales, slope, strict=True):
        torch.testing.assert_close(found, 0.3 * t**2 * g / norm)


def test_outputs_without_a_label_are_refused_with_what_to_return() -> None:
    net = nn.Linear(2, CLASSES)
    optimizer = SAM(net.parameters(), partial(SGD, lr=0.1))

    def closure() -> tuple[Tensor, Tensor]:
        logits = net(torch.eye(2))
        return logits.sum(), logits

    with pytest.raises(UsageError, match=r"needs logits and label .* return \(loss, \(logits, label\)\)"):
        optimizer.step(closure, ascent=OutputBiasForgetting())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -0.1}, "gamma must be from 0 to 1, got -0.1"),
        ({"gamma": float("nan")}, "gamma must be from 0 to 1, got nan"),
        ({"uniform_probability": 0.0}, "must lie between 0 and 1, got 0.0; .* always=True"),
        ({"uniform_probability": -1.0}, "must lie between 0 and 1, got -1.0"),
        ({"uniform_probability": 1.0}, "must lie between 0 and 1, got 1.0"),
        ({"uniform_probability": 0.5, "always": True}, "no uniform_probability is used"),
        ({"form": "linear"}, 'form must be "softmax" or "sigmoid", got \'linear\''),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OutputBiasForgetting(**options)


@pytest.mark.parametrize(
    ("form", "logits", "label"),
    [
        ("softmax", torch.zeros(2, 3, 4), torch.zeros(2, 5, dtype=torch.long)),
        ("softmax", torch.zeros(2, 3), torch.zeros(2)),
        ("softmax", torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long)),
        ("sigmoid", torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.long)),
        ("sigmoid", torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.long)),
    ],
    ids=["other grid", "float classes", "one-hot for softmax", "one output", "other outputs"],
)
def test_a_label_that_does_not_fit_is_refused_with_both_shapes(form: Any, logits: Tensor, label: Tensor) -> None:
    with pytest.raises(ValueError, match=rf"integer labels of shape \(2, 1.* got .*{label.shape[-1]}.* for logits"):
        OutputBiasForgetting(form=form)((logits, label))


@pytest.mark.parametrize("options", [{"class_mean": True}, {"ignore_label": 3}])
def test_options_that_need_one_class_a_voxel_are_refused_with_zeros_and_ones(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="need one class a voxel"):
        OutputBiasForgetting(form="sigmoid", **options)((torch.zeros(2, 3), torch.zeros(2, 3)))


def test_the_probability_is_a_constant_of_the_climb() -> None:
    # gradcheck sees the whole dependence, so it holds only where a is constant: always, or below the uniform one
    check: Callable[..., bool] = torch.autograd.gradcheck
    z, y = (
        torch.tensor([[-3.0, 1.0, 0.5], [2.0, 0.0, -1.0]], dtype=torch.float64).requires_grad_(),
        torch.tensor([0, 0]),
    )
    assert check(lambda logits: OutputBiasForgetting(always=True, gamma=0.7)((logits, y)), z)
    assert not check(lambda logits: OutputBiasForgetting()((logits, y)), z, raise_exception=False)
