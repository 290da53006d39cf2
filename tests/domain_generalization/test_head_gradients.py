"""Closed forms equal torch.func's gradients, one sample after the other."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from uumamba.domain_generalization import LinearHeadGradients, StackedGradients
from uumamba.domain_generalization.head_gradients import is_linear, voxels_last

SAMPLES, CLASSES, WIDTH = 12, 5, 7


def by_torch_func(head: nn.Module, features: Tensor, label: Tensor) -> dict[str, Tensor]:
    """The gradient of each sample's cross entropy, (samples, *shape)."""

    def loss(params: dict[str, Tensor], each: Tensor, own: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(head, params, (each[None],)), own[None])

    return vmap(grad(loss), in_dims=(None, 0, 0))(dict(head.named_parameters()), features, label)


def flattened(gradients: dict[str, Tensor]) -> Tensor:
    """(samples, entries), each row of the weight with its bias at the end."""
    parts = [gradients["weight"].flatten(2)]
    if "bias" in gradients:
        parts.append(gradients["bias"][:, :, None])
    return torch.cat(parts, 2).flatten(1)


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def linear(request: pytest.FixtureRequest) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, CLASSES, bias=request.param)
    return head, torch.randn(SAMPLES, WIDTH), torch.randint(CLASSES, (SAMPLES,))


def closed_form(head: nn.Linear, features: Tensor, label: Tensor) -> LinearHeadGradients:
    return LinearHeadGradients.of(head(features), features, label, bias=head.bias is not None)


def test_the_closed_form_equals_torch_func(linear: tuple[nn.Linear, Tensor, Tensor]) -> None:
    expected = by_torch_func(*linear)
    found = closed_form(*linear).per_sample()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)


def test_the_moments_equal_those_of_torch_func_s_gradients(linear: tuple[nn.Linear, Tensor, Tensor]) -> None:
    every = by_torch_func(*linear)
    rows, found = flattened(every), closed_form(*linear)
    torch.testing.assert_close(found.mean(), rows.mean(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.second_moment(), rows.square().mean(0), rtol=0, atol=1e-5)
    norm = sum(each.flatten(1).square().sum(1).mean() / each[0].numel() for each in every.values())
    torch.testing.assert_close(found.mean_squared_norm(), norm, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_closed_form_of_voxels_equals_torch_func_on_each_voxel_alone(dims: int) -> None:
    torch.manual_seed(0)
    head = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](WIDTH, CLASSES, 1)
    features = torch.randn(2, WIDTH, *(2, 3, 2)[:dims])
    label = torch.randint(CLASSES, (2, *features.shape[2:]))
    each_alone = features.movedim(1, -1).reshape(-1, WIDTH, *(1,) * dims)
    expected = by_torch_func(head, each_alone, label.reshape(-1, *(1,) * dims))
    rows = voxels_last(head, features).flatten(0, 1)
    found = LinearHeadGradients.of(voxels_last(head, head(features)).flatten(0, 1), rows, label.flatten())
    torch.testing.assert_close(found.per_sample()["weight"], expected["weight"].flatten(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.per_sample()["bias"], expected["bias"], rtol=0, atol=1e-5)


def test_moments_of_many_voxels_need_no_gradient_of_each() -> None:
    # All gradients at once would be 5000 x 400 x 800 floats, 6 GiB.
    e, h = torch.zeros(5_000, 400), torch.ones(5_000, 800)
    e[:, 0] = 0.5
    found = LinearHeadGradients(e, h, bias=False)
    assert found.mean().view(400, 800)[0].unique().tolist() == [0.5]


@pytest.mark.parametrize("statistic", ["mean", "second_moment", "mean_squared_norm"])
def test_gradients_flow_from_the_moments_to_features_and_weights(
    linear: tuple[nn.Linear, Tensor, Tensor], statistic: str
) -> None:
    head, features, label = linear
    features.requires_grad_()
    weights = torch.rand(CLASSES * (WIDTH + (head.bias is not None)))

    def slopes(of: Callable[[], Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad((of() * (weights if of().ndim else 1)).sum(), [features, head.weight]))

    def naive() -> Tensor:
        every = by_torch_func(head, features, label)
        if statistic == "mean_squared_norm":
            return torch.stack([each.square().mean() for each in every.values()]).sum()
        rows = flattened(every)
        return rows.mean(0) if statistic == "mean" else rows.square().mean(0)

    for found, expected in zip(
        slopes(lambda: getattr(closed_form(head, features, label), statistic)()), slopes(naive), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_stacked_gradients_of_a_linear_head_are_its_closed_form(linear: tuple[nn.Linear, Tensor, Tensor]) -> None:
    stacked, closed = StackedGradients.of(*linear), closed_form(*linear)
    for name, tensor in closed.per_sample().items():
        torch.testing.assert_close(stacked.per_sample()[name], tensor, rtol=0, atol=1e-5)
    torch.testing.assert_close(stacked.mean_squared_norm(), closed.mean_squared_norm())


def test_stacked_gradients_of_an_image_are_the_mean_over_its_voxels_that_are_not_ignored() -> None:
    torch.manual_seed(0)
    head = nn.Conv2d(3, 4, 3, padding=1)
    features, label = torch.randn(2, 3, 4, 4), torch.randint(4, (2, 4, 4))
    label[0, 0], label[1] = 255, 255
    found = StackedGradients.of(head, features, label, ignore_label=255).per_sample()
    loss = F.cross_entropy(head(features[:1]), label[:1], ignore_index=255)
    for tensor, expected in zip(found.values(), torch.autograd.grad(loss, list(head.parameters())), strict=True):
        torch.testing.assert_close(tensor[0], expected, rtol=1e-4, atol=1e-6)
        assert not tensor[1].any()


def test_stacked_gradients_of_a_linear_layer_on_sequences_take_classes_last() -> None:
    torch.manual_seed(0)
    head, features, label = nn.Linear(4, 3), torch.randn(2, 3, 4), torch.randint(3, (2, 3))
    found = StackedGradients.of(head, features, label).per_sample()
    for index in range(2):
        loss = F.cross_entropy(head(features[index]), label[index])
        for tensor, expected in zip(found.values(), torch.autograd.grad(loss, list(head.parameters())), strict=True):
            torch.testing.assert_close(tensor[index], expected)


def test_half_precision_is_computed_in_float32() -> None:
    found = LinearHeadGradients.of(
        torch.randn(4, 3).bfloat16(), torch.randn(4, 2).bfloat16(), torch.tensor([0, 1, 2, 0])
    )
    assert found.second_moment().dtype == found.mean_squared_norm().dtype == torch.float32


@pytest.mark.parametrize(
    "head",
    [
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.ConvTranspose2d(4, 4, 1),
        nn.Bilinear(4, 4, 4),
    ],
    ids=str,
)
def test_heads_that_are_no_affine_map_of_a_voxel_are_not_taken_for_one(head: nn.Module) -> None:
    assert not is_linear(head)


def test_a_linear_layer_under_a_parametrization_is_linear() -> None:
    assert is_linear(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
