"""A linear head is found by its output, in every pass; every other head is refused with the fix."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

from uumamba.domain_generalization import UDIM, InputPerturbation, draw_voxels

Refused = Callable[..., Any]


def any_loss(outputs: Any, _: Tensor) -> Tensor:
    """A loss that takes any label."""
    return (outputs[0] if isinstance(outputs, list) else outputs).square().mean()


def udim_of(net: nn.Module, **options: Any) -> UDIM:
    return UDIM(net, any_loss, InputPerturbation(0.3), **({"rho": 0.0, "voxels_a_class": 10_000} | options))


class Net(nn.Module):
    """A body and a head, with a change of the head's output."""

    def __init__(self, head: nn.Module, change: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.body, self.head, self.change = nn.Linear(5, 5), head, change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.head(torch.tanh(self.body(x))))


class Supervised(nn.Module):
    """Two heads, the finest first in the output and last in the forward pass."""

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
    "linear": lambda: (net := Net(nn.Linear(5, 3)), net.head),
    "without bias": lambda: (net := Net(nn.Linear(5, 3, bias=False)), net.head),
    "nested": lambda: (net := Net(nn.Sequential(nn.Linear(5, 5), nn.Sequential(nn.Linear(5, 3)))), net.head[1][0]),
    "passed on": lambda: (net := Net(nn.Sequential(nn.Linear(5, 3), nn.Identity())), net.head[0]),
    "parametrized": lambda: (net := Net(nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))), net.head),
    "cast": lambda: (net := Net(nn.Linear(5, 3), Tensor.double), net.head),
    "flat": lambda: flat(given=False),
    "flat, given": lambda: flat(given=True),
    "sequence, classes first": lambda: (net := Net(nn.Linear(5, 3), lambda z: z.mT), net.head),
    "sequence, classes last": lambda: (net := Net(nn.Linear(5, 3)), net.head),
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


def terms_by_definition(head: Any, images: list[Tensor], label: Tensor, net: nn.Module) -> tuple[Tensor, Tensor]:
    """Gap and norm from one gradient a voxel of the head's weight and bias."""
    halves = []
    for image in images:
        with torch.no_grad():
            inputs: list[Tensor] = []
            handle = head.register_forward_hook(lambda _, args, output, inputs=inputs: inputs.append(args[0]))
            net(image)
            handle.remove()
        h = inputs[0] if isinstance(head, nn.Linear) else inputs[0].movedim(1, -1)
        params = {name: getattr(head, name) for name in ("weight", "bias") if getattr(head, name) is not None}
        params["weight"] = params["weight"].flatten(1)

        def loss(params: dict[str, Tensor], each: Tensor, own: Tensor) -> Tensor:
            return F.cross_entropy(F.linear(each, params["weight"], params.get("bias")), own)

        halves.append(vmap(grad(loss), in_dims=(None, 0, 0))(params, h.flatten(0, -2), label.flatten()))
    norm = sum(each.square().flatten(1).sum(1).mean() / each[0].numel() for each in halves[1].values())
    s, t = (torch.cat([each.flatten(1) for each in half.values()], 1) for half in halves)
    gap = ((s - s.mean(0)).square().mean(0) - (t - s.mean(0)).square().mean(0)).square().mean() / 4
    return gap, norm


@pytest.mark.parametrize("kind", HEADS)
def test_the_terms_of_every_linear_head_are_those_of_one_gradient_a_voxel(kind: str) -> None:
    net, head, *options = HEADS[kind]()
    x, y = batch_for(kind)
    net, x = net.double(), x.double()
    udim = udim_of(net, **(options[0] if options else {}))
    found = udim.terms(x, y)
    gap, norm = terms_by_definition(head, [x, udim.perturbed(x, y)], y, net)
    torch.testing.assert_close(found["variance_gap"], gap)
    torch.testing.assert_close(found["gradient_norm"], norm)
    assert torch.autograd.grad(found["variance_gap"], next(net.parameters()))[0].any()


class Scaled(nn.Linear):
    """A linear layer with a forward pass of its own, as an adapter has."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def replaced() -> nn.Linear:
    head = nn.Linear(5, 3)
    head.forward = lambda input: input.square()[..., :3]  # type: ignore[method-assign]
    return head


def conv_net(head: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Unflatten(1, (5, 1, 1)), head, nn.Flatten())


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "own forward": lambda: Net(Scaled(5, 3)),
    "replaced forward": lambda: Net(replaced()),
    "several layers": lambda: Net(nn.Sequential(nn.Linear(5, 3), nn.Softmax(1))),
    "functional": lambda: Net(nn.Linear(5, 3), lambda z: F.relu(z) + 1),
    "changed in place": lambda: Net(nn.Sequential(nn.Linear(5, 3), nn.ReLU(inplace=True))),
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
    head = net.head if isinstance(net, Net) else list(net.modules())[-2]
    with refused("head"):
        udim_of(net, head=head if given else None).terms(torch.randn(4, 5), torch.randint(3, (4,)))


@pytest.mark.parametrize("change", [lambda z: z.transpose(0, 1).mT, lambda z: z.permute(0, 2, 1)[:, [1, 0, 2]]])
def test_logits_in_another_order_than_the_head_s_output_are_refused(change: Any, refused: Refused) -> None:
    """Their numbers fit, so labels of other samples or classes would be taken."""
    net = Net(nn.Linear(5, 3), change)
    with refused("head", got="none of the network's layers"):
        udim_of(net).terms(torch.randn(4, 4, 5), torch.randint(3, (4, 4)))


def test_a_head_that_is_not_called_is_refused(refused: Refused) -> None:
    with refused("head", got="Linear"):
        udim_of(nn.Linear(5, 3), head=nn.Linear(5, 3)).check(torch.randn(2, 5))


def test_the_head_is_found_again_in_every_pass(refused: Refused) -> None:
    net, x, y = Net(nn.Linear(5, 3)), torch.randn(4, 5), torch.randint(3, (4,))
    udim = udim_of(net)
    udim.terms(x, y)
    net.head = nn.Linear(5, 3)
    assert udim.terms(x, y)["gradient_norm"] > 0
    net.change = lambda logits: 2 * logits
    with refused("head"):
        udim.terms(x, y)


def compiled_in_place(net: Net) -> None:
    net.compile(backend="eager")


def compiled_part(net: Net) -> None:
    net.body = torch.compile(net.body, backend="eager")  # type: ignore[assignment]


def scripted_part(net: Net) -> None:
    net.body = torch.jit.script(net.body)


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("compile_", [compiled_in_place, compiled_part, scripted_part])
def test_a_network_with_compiled_parts_is_refused(compile_: Callable[[Net], None], refused: Refused) -> None:
    net = Net(nn.Linear(5, 3))
    compile_(net)
    with refused("net"):
        udim_of(net).check(torch.randn(2, 5))


def test_logits_of_one_class_or_none_are_refused(refused: Refused) -> None:
    with refused("net", got="logits of one class"):
        udim_of(Net(nn.Linear(5, 1))).check(torch.randn(2, 5))
    with refused("net"):
        udim_of(Net(nn.Linear(5, 3), lambda logits: {"out": logits})).check(torch.randn(2, 5))


@pytest.mark.parametrize("label", [torch.zeros(2, 1, 2, 2), torch.zeros(2, 3, 4, 4)], ids=["coarser", "one-hot"])
def test_a_label_on_another_grid_is_refused(label: Tensor, refused: Refused) -> None:
    with refused("label", got=tuple(label.shape)):
        udim_of(convolutions(2)).terms(torch.randn(2, 1, 4, 4), label.long())


@pytest.mark.parametrize("wrong", [-100, 3])
def test_a_label_that_is_no_class_is_refused_unless_it_is_ignored(wrong: int, refused: Refused) -> None:
    net, x, y = Net(nn.Linear(5, 3)), torch.randn(6, 5), torch.randint(3, (6,))
    expected = udim_of(net).terms(x[2:], y[2:])
    y[:2] = wrong
    with refused("label", got=wrong):
        udim_of(net).terms(x, y)
    found = udim_of(net, ignore_label=wrong).terms(x, y)
    for name, term in expected.items():
        torch.testing.assert_close(found[name], term)


def test_looking_for_the_head_leaves_no_hook_no_draw_and_no_statistic() -> None:
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


def test_every_class_of_every_image_gives_as_many_voxels_as_asked_or_all_that_it_has() -> None:
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


def test_ignored_voxels_are_never_drawn_and_of_a_classifier_all_others_are() -> None:
    assert drawn(torch.tensor([[255, 255, 0, 1], [255, 255, 255, 255]]), 9, ignore=255) == [(0, 2), (0, 3)]
    label = torch.tensor([[1], [0], [1], [7]])
    assert drawn(label, 1) == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert drawn(label, 1, ignore=7) == [(0, 0), (1, 0), (2, 0)]
