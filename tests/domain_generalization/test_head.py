"""A linear head is detected by its output; other heads are refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from uumamba.domain_generalization import UDIM, InputPerturbation, draw_voxels

Refused = Callable[..., Any]


def any_loss(outputs: Any, _: Tensor) -> Tensor:
    """A loss that takes any label."""
    return (outputs[0] if isinstance(outputs, list) else outputs).square().mean()


def udim_of(net: nn.Module, **options: Any) -> UDIM:
    return UDIM(net, any_loss, InputPerturbation(0.3), **({"rho": 0.0, "voxels_a_class": 10_000} | options))


class HeadNet(nn.Module):
    """A body and a head, with a change of the head's output."""

    def __init__(self, head: nn.Module, change: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.body, self.head, self.change = nn.Linear(5, 5), head, change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.head(torch.tanh(self.body(x))))


class Supervised(nn.Module):
    """Two heads, the finest first in the output and computed last."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.coarse, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = torch.tanh(self.body(x))
        coarse = self.coarse(features)
        return [self.head(features), coarse]


def convolutions(dims: int) -> nn.Sequential:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return nn.Sequential(conv(1, 4, 3, padding=1), nn.Tanh(), conv(4, 3, 1))


def flat(*, given: bool) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    net = nn.Sequential(nn.Unflatten(1, (5, 1, 1)), nn.Conv2d(5, 3, 1), nn.Flatten())
    return net, net[1], {"head": net[1]} if given else {}


HEADS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "linear": lambda: (net := HeadNet(nn.Linear(5, 3)), net.head),
    "without bias": lambda: (net := HeadNet(nn.Linear(5, 3, bias=False)), net.head),
    "nested": lambda: (
        net := HeadNet(nn.Sequential(nn.Linear(5, 5), nn.Sequential(nn.Linear(5, 3)))),
        net.head[1][0],
    ),
    "passed on": lambda: (net := HeadNet(nn.Sequential(nn.Linear(5, 3), nn.Identity())), net.head[0]),
    "parametrized": lambda: (net := HeadNet(nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))), net.head),
    "cast": lambda: (net := HeadNet(nn.Linear(5, 3), Tensor.double), net.head),
    "flat": lambda: flat(given=False),
    "flat, given": lambda: flat(given=True),
    "sequence, classes first": lambda: (net := HeadNet(nn.Linear(5, 3), lambda z: z.mT), net.head),
    "sequence, classes last": lambda: (net := HeadNet(nn.Linear(5, 3)), net.head),
    "1-D": lambda: (net := convolutions(1), net[2]),
    "2-D": lambda: (net := convolutions(2), net[2]),
    "3-D": lambda: (net := convolutions(3), net[2]),
    "deep supervision": lambda: (net := Supervised(), net.head),
}


def batch_for(kind: str) -> tuple[Tensor, Tensor]:
    if "sequence" in kind:
        return torch.randn(4, 3, 5), torch.randint(3, (4, 3))
    dims = int(kind[0]) if kind[0].isdigit() else 2 if kind == "deep supervision" else 0
    shape = (4, 1, *(3, 4, 2)[:dims]) if dims else (4, 5)
    return torch.randn(shape), torch.randint(3, shape if dims else (4,))


@pytest.mark.parametrize("kind", HEADS)
def test_the_terms_of_every_linear_head_equal_their_definitions_by_voxel(
    kind: str, gradients_by_definition: Callable[..., Any], terms_by_definition: Callable[..., Any]
) -> None:
    net, head, *options = HEADS[kind]()
    x, y = batch_for(kind)
    net, x = net.double(), x.double()
    udim = udim_of(net, **(options[0] if options else {}))
    found, perturbed, inputs = udim.terms(x, y), udim.perturbed(x, y), []
    head.register_forward_hook(lambda _, args, output: inputs.append(args[0].detach()))
    for image in (x, perturbed):
        net(image)
    features = [h if isinstance(head, nn.Linear) else h.movedim(1, -1) for h in inputs]
    gap, norm = terms_by_definition(*(gradients_by_definition(head, h.flatten(0, -2), y.flatten()) for h in features))
    torch.testing.assert_close(found, {"variance_gap": gap, "gradient_norm": norm})
    assert torch.autograd.grad(found["variance_gap"], next(net.parameters()))[0].any()


class Scaled(nn.Linear):
    """A linear layer with its own forward pass, like an adapter."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def replaced() -> nn.Linear:
    head = nn.Linear(5, 3)
    head.forward = lambda input: input.square()[..., :3]  # type: ignore[method-assign]
    return head


def conv_net(head: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Unflatten(1, (5, 1, 1)), head, nn.Flatten())


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "own forward": lambda: HeadNet(Scaled(5, 3)),
    "replaced forward": lambda: HeadNet(replaced()),
    "several layers": lambda: HeadNet(nn.Sequential(nn.Linear(5, 3), nn.Softmax(1))),
    "functional": lambda: HeadNet(nn.Linear(5, 3), lambda z: F.relu(z) + 1),
    "changed in place": lambda: HeadNet(nn.Sequential(nn.Linear(5, 3), nn.ReLU(inplace=True))),
    "kernel of 3": lambda: conv_net(nn.Conv2d(5, 3, 3, padding=1)),
    "stride of 2": lambda: conv_net(nn.Conv2d(5, 3, 1, stride=2)),
    "padding": lambda: nn.Sequential(conv_net(nn.Conv2d(5, 3, 1, padding=1))),
    "groups": lambda: conv_net(nn.Conv2d(5, 5, 1, groups=5)),
    "transposed": lambda: conv_net(nn.ConvTranspose2d(5, 3, 1)),
}


@pytest.mark.parametrize("given", [False, True], ids=["found", "given"])
@pytest.mark.parametrize("kind", REFUSED)
def test_every_other_head_is_refused(kind: str, given: bool, refused: Refused) -> None:
    net = REFUSED[kind]()
    head = net.head if isinstance(net, HeadNet) else list(net.modules())[-2]
    with refused("head"):
        udim_of(net, head=head if given else None).terms(torch.randn(4, 5), torch.randint(3, (4,)))


@pytest.mark.parametrize("change", [lambda z: z.transpose(0, 1).mT, lambda z: z.permute(0, 2, 1)[:, [1, 0, 2]]])
def test_logits_in_another_order_than_the_head_s_output_are_refused(change: Any, refused: Refused) -> None:
    # The shapes fit, so the labels of other samples or classes would be used.
    net = HeadNet(nn.Linear(5, 3), change)
    with refused("head", got="none of the network's layers"):
        udim_of(net).terms(torch.randn(4, 4, 5), torch.randint(3, (4, 4)))


def test_the_head_is_detected_again_in_every_pass(refused: Refused) -> None:
    net, x, y = HeadNet(nn.Linear(5, 3)), torch.randn(4, 5), torch.randint(3, (4,))
    udim = udim_of(net)
    udim.terms(x, y)
    net.head = nn.Linear(5, 3)
    assert udim.terms(x, y)["gradient_norm"] > 0
    net.change = lambda logits: 2 * logits
    with refused("head"):
        udim.terms(x, y)


COMPILED: dict[str, Callable[[nn.Module], None]] = {
    "in place": lambda net: net.compile(backend="eager"),
    "part": lambda net: net.register_module("body", torch.compile(net.body, backend="eager")),
    "scripted part": lambda net: net.register_module("body", torch.jit.script(net.body)),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("compile_part", COMPILED.values(), ids=COMPILED)
def test_a_network_with_compiled_parts_is_refused(compile_part: Callable[..., None], refused: Refused) -> None:
    net = HeadNet(nn.Linear(5, 3))
    compile_part(net)
    with refused("net"):
        udim_of(net).check(torch.randn(2, 5))


def test_an_unused_head_and_outputs_without_two_classes_are_refused(refused: Refused) -> None:
    with refused("head", got="Linear"):
        udim_of(nn.Linear(5, 3), head=nn.Linear(5, 3)).check(torch.randn(2, 5))
    with refused("net", got="logits of one class"):
        udim_of(HeadNet(nn.Linear(5, 1))).check(torch.randn(2, 5))
    with refused("net"):
        udim_of(HeadNet(nn.Linear(5, 3), lambda logits: {"out": logits})).check(torch.randn(2, 5))


@pytest.mark.parametrize("label", [torch.zeros(2, 1, 2, 2), torch.zeros(2, 3, 4, 4)], ids=["coarser", "one-hot"])
def test_a_label_on_another_grid_is_refused(label: Tensor, refused: Refused) -> None:
    with refused("label", got=tuple(label.shape)):
        udim_of(convolutions(2)).terms(torch.randn(2, 1, 4, 4), label.long())


@pytest.mark.parametrize("wrong", [-100, 3])
def test_a_label_outside_the_classes_is_refused_unless_ignored(wrong: int, refused: Refused) -> None:
    net, x, y = HeadNet(nn.Linear(5, 3)), torch.randn(6, 5), torch.randint(3, (6,))
    expected = udim_of(net).terms(x[2:], y[2:])
    y[:2] = wrong
    with refused("label", got=wrong):
        udim_of(net).terms(x, y)
    torch.testing.assert_close(udim_of(net, ignore_label=wrong).terms(x, y), expected)


def test_the_search_for_the_head_leaves_hooks_generators_and_statistics_unchanged() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
    before, drawn = [buffer.clone() for buffer in net.buffers()], torch.get_rng_state()
    udim_of(net).check(torch.randn(3, 5, generator=Generator()))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before, strict=True))
    assert not any(module._forward_hooks for module in net.modules())


def drawn(label: Tensor, count: int, *, seed: int = 0, ignore: int | None = None) -> list[tuple[int, int]]:
    generator = Generator().manual_seed(seed)
    images, voxels = draw_voxels(label, voxels_a_class=count, generator=generator, ignore_label=ignore)
    return list(zip(images.tolist(), voxels.tolist(), strict=True))


def test_every_class_of_every_image_gives_at_most_the_requested_number_of_voxels() -> None:
    label = torch.zeros(2, 1000, dtype=torch.int64)
    label[0, :3], label[1, 500:600] = 1, 2
    found = drawn(label, 10)
    assert len(set(found)) == len(found)
    counts = {(image, value): 0 for image in (0, 1) for value in (0, 1, 2)}
    for image, voxel in found:
        counts[image, int(label[image, voxel])] += 1
    assert counts == {(0, 0): 10, (0, 1): 3, (0, 2): 0, (1, 0): 10, (1, 1): 0, (1, 2): 10}
    assert found == drawn(label, 10)
    assert found != drawn(label, 10, seed=1)


def test_ignored_voxels_are_never_drawn_and_all_samples_of_a_classifier_are() -> None:
    assert drawn(torch.tensor([[255, 255, 0, 1], [255, 255, 255, 255]]), 9, ignore=255) == [(0, 2), (0, 3)]
    label = torch.tensor([[1], [0], [1], [7]])
    assert drawn(label, 1) == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert drawn(label, 1, ignore=7) == [(0, 0), (1, 0), (2, 0)]
