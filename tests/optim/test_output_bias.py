"""Output-bias forgetting: published gradient, limits and voxels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from uumamba.optim import OutputBiasForgetting

CLASSES = 4
FORMS = ("softmax", "sigmoid")


def published_gradient(
    z: Tensor,
    y: Tensor,
    *,
    form: str,
    gamma: float = 1.0,
    uniform_probability: float | None = None,
    always: bool = False,
) -> Tensor:
    """Compute the paper's gradient, u - ap - (1 - a)y."""
    count, classes = z.shape
    found = torch.zeros(count, classes, dtype=torch.float64)
    smallest = 1 / classes if uniform_probability is None else uniform_probability
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
    """Logits and classes of 40 samples, some of them certain."""
    return 3 * torch.randn(40, CLASSES).double(), torch.randint(CLASSES, (40,))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options",
    [{}, {"gamma": 0.3}, {"gamma": 0.0}, {"uniform_probability": 0.6}, {"gamma": 0.5, "always": True}],
    ids=str,
)
def test_the_gradient_on_logits_is_the_published_one_and_raises_it(
    rows: tuple[Tensor, Tensor], form: Any, options: dict[str, Any]
) -> None:
    ascent, (z, y) = OutputBiasForgetting(form=form, **options), rows
    found = gradient(ascent, z, y)
    torch.testing.assert_close(found, published_gradient(z, y, form=form, **options) / len(z))
    assert options or ascent((z + 0.01 * found, y)) > ascent((z, y))


def test_the_value_is_the_weighted_cross_entropy_less_the_one_with_the_uniform_distribution() -> None:
    # p = (0.8, 0.1, 0.1), y = 0: a = (1 - (1/3) / 0.8) / (2/3) = 0.875; CE(p, u) = -(ln 0.8 + 2 ln 0.1) / 3
    p = torch.tensor([[0.8, 0.1, 0.1]], dtype=torch.float64)
    expected = 0.125 * -p[0, 0].log() + p.log().sum() / 3
    torch.testing.assert_close(OutputBiasForgetting()((p.log() + 5, torch.tensor([0]))), expected)


@pytest.mark.parametrize(
    ("form", "logits"),
    [
        ("softmax", [-3.0, 1.0, 2.0, 0.5]),  # p_y < 1/4: a is 0
        ("sigmoid", [-3.0, 1.0, 2.0, 0.5]),
        ("softmax", [0.0, 0.0, 0.0, 0.0]),  # at the uniform probability itself
        ("softmax", [-500.0, 500.0, 0.0, 0.0]),  # a probability that underflows
        ("softmax", [60.0, 0.0, 0.0, 0.0]),  # p_y = 1 - 3e-26: p and y are equal, whatever a is
    ],
)
def test_at_its_limits_the_gradient_is_that_of_both_cross_entropies(form: Any, logits: list[float]) -> None:
    z, y = torch.tensor([logits], dtype=torch.float64), torch.tensor([0])
    expected = torch.tensor([[-0.75, 0.25, 0.25, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(gradient(OutputBiasForgetting(form=form), z, y), expected)


@pytest.mark.parametrize("gamma", [1.0, 0.4])
def test_a_certain_class_is_forgotten_at_full_strength(gamma: float) -> None:
    z = torch.tensor([[60.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    log_p = z.log_softmax(1)[0]
    found = OutputBiasForgetting(gamma=gamma)((z, torch.tensor([0])))
    torch.testing.assert_close(found, log_p.mean() - (1 - gamma) * log_p[0])


def test_no_gradient_flows_through_the_strength() -> None:
    # gradcheck sees the whole dependence, so it holds only where a is constant: always, or below the uniform one
    check: Callable[..., bool] = torch.autograd.gradcheck
    z = torch.tensor([[-3.0, 1.0, 0.5], [2.0, 0.0, -1.0]], dtype=torch.float64).requires_grad_()
    y = torch.tensor([0, 0])
    assert check(lambda logits: OutputBiasForgetting(always=True, gamma=0.7)((logits, y)), z)
    assert not check(lambda logits: OutputBiasForgetting()((logits, y)), z, raise_exception=False)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spatial", [(5,), (2, 3, 5)])
@pytest.mark.parametrize("channel", [True, False], ids=["B1S", "BS"])
def test_voxels_are_samples_and_ignored_ones_are_left_out(form: Any, spatial: tuple[int, ...], channel: bool) -> None:
    z = 3 * torch.randn(2, CLASSES, *spatial, dtype=torch.float64)
    y = torch.randint(CLASSES, (2, 1, *spatial) if channel else (2, *spatial))
    for ignored in (0, 3):
        y.view(-1)[:ignored] = 255
        rows, labels = z.movedim(1, -1).reshape(-1, CLASSES), y.flatten()
        expected = torch.zeros_like(rows)
        valid = labels != 255
        expected[valid] = published_gradient(rows[valid], labels[valid], form=form) / valid.sum()
        found = gradient(OutputBiasForgetting(form=form, ignore_label=255), z, y)
        torch.testing.assert_close(found.movedim(1, -1).reshape(-1, CLASSES), expected)


@pytest.mark.parametrize("class_mean", [True, False])
def test_the_gradient_is_zero_if_all_labels_are_ignored(class_mean: bool) -> None:
    z, y = torch.randn(2, CLASSES), torch.tensor([9, 9])
    assert not gradient(OutputBiasForgetting(ignore_label=9, class_mean=class_mean), z, y).any()


def test_the_class_mean_weighs_every_class_that_is_present_the_same() -> None:
    z = torch.randn(7, CLASSES, dtype=torch.float64)
    y = torch.tensor([0, 0, 0, 0, 2, 3, 3])  # class 1 is absent; the sample of class 2 is ignored below
    rows = published_gradient(z, y, form="softmax")
    weights = torch.tensor([1 / 12] * 4 + [1 / 3] + [1 / 6] * 2, dtype=torch.float64)
    torch.testing.assert_close(gradient(OutputBiasForgetting(class_mean=True), z, y), rows * weights[:, None])
    weights[4], y[4] = 0.0, 9
    weights[:4], weights[5:] = 1 / 8, 1 / 4
    found = gradient(OutputBiasForgetting(class_mean=True, ignore_label=9), z, y)
    torch.testing.assert_close(found, rows * weights[:, None])


def test_sigmoid_takes_zeros_and_ones_in_the_shape_of_the_logits() -> None:
    z, y = torch.randn(5, CLASSES, 3, dtype=torch.float64), torch.randint(CLASSES, (5, 3))
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


def test_the_finest_logits_of_a_list_are_used_and_half_precision_is_computed_in_float32(
    rows: tuple[Tensor, Tensor],
) -> None:
    z, y = rows[0].bfloat16(), rows[1]
    found = OutputBiasForgetting()(([z, torch.zeros_like(z)], y))
    assert found.dtype == torch.float32
    assert found == OutputBiasForgetting()((z.float(), y))


def test_outputs_without_a_label_are_refused(training: Any, refused: Any) -> None:
    run = training("SAM")

    def closure() -> tuple[Tensor, Tensor]:
        loss, (logits, _) = run.closure(run.batches(1)[0])()
        return loss, logits

    with refused("closure", got="a loss and outputs of type Tensor"):
        run.step(closure, ascent=OutputBiasForgetting())


@pytest.mark.parametrize(
    ("options", "logits", "label"),
    [
        ({}, torch.zeros(2, 3, 4), torch.zeros(2, 5, dtype=torch.long)),
        ({}, torch.zeros(2, 3), torch.zeros(2)),
        ({}, torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long)),
        ({"form": "sigmoid"}, torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.long)),
        ({"form": "sigmoid"}, torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.long)),
        ({"form": "sigmoid", "class_mean": True}, torch.zeros(2, 3), torch.zeros(2, 3)),
        ({"form": "sigmoid", "ignore_label": 3}, torch.zeros(2, 3), torch.zeros(2, 3)),
    ],
    ids=["other grid", "float classes", "one-hot for softmax", "one output", "other outputs", "class_mean", "ignore"],
)
def test_a_label_that_does_not_fit_is_refused(options: Any, logits: Tensor, label: Tensor, refused: Any) -> None:
    with refused("label"):
        OutputBiasForgetting(**options)((logits, label))
