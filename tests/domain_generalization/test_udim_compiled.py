"""UDIM where a part of the network is compiled, or all of it in place."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from uumamba.domain_generalization import UDIM, InputPerturbation
from uumamba.domain_generalization.head import find_head
from uumamba.optim import SAM

# dynamo's own, of inputs that are not leaves
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

SGD = partial(torch.optim.SGD, lr=0.1)
DIFFERENCES = "finite_difference"


class Layers(nn.Sequential):
    """Layers one after another, with a forward pass of its own: torch compiles none of its own modules in place."""

    def forward(self, input: Tensor) -> Tensor:
        for layer in self:
            input = layer(input)
        return input


class Net(nn.Module):
    """A body with running statistics, computed again in the backward pass or not, and a head."""

    def __init__(self, *, again: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body: nn.Module = Layers(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh())
        self.head: nn.Module = nn.Linear(8, 3)
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=False) if self.again else self.body(x))


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch.compiler.reset()


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    """Five, of two sizes: the second size has the compiler make sizes variables."""
    generator = torch.Generator().manual_seed(0)
    sizes = [9, 7, 9, 7, 9]
    return [(torch.randn(n, 6, generator=generator), torch.arange(n) % 3) for n in sizes]


def udim_of(net: nn.Module, **options: Any) -> UDIM:
    return UDIM(net, F.cross_entropy, InputPerturbation(0.3), **({"lambda1": 20.0, "lambda2": 20.0} | options))


def trained(net: nn.Module, batches: list[tuple[Tensor, Tensor]], **options: Any) -> list[Tensor]:
    """The weights and buffers after a step for each batch."""
    optimizer, udim = SAM(net.parameters(), SGD, net=net), udim_of(net, **options)
    for x, y in batches:
        optimizer.step(lambda x=x, y=y: F.cross_entropy(net(x), y), at_weights=udim.at_weights(x, y))
    return [each.detach().clone() for each in (*net.parameters(), *net.buffers())]


def test_a_compiled_part_is_said_to_have_no_second_derivative_also_after_a_warm_up(
    batches: list[tuple[Tensor, Tensor]],
) -> None:
    expected = trained(Net(), batches, warmup_steps=4, second_order=DIFFERENCES)
    net = Net()
    net.body = torch.compile(net.body, backend="aot_eager")
    with pytest.warns(UserWarning, match="has no second derivative .*differences of first ones"):
        found = trained(net, batches, warmup_steps=4)
    torch.testing.assert_close(found, expected)


def test_steps_with_a_compiled_part_are_those_without(batches: list[tuple[Tensor, Tensor]]) -> None:
    expected = trained(Net(), batches, second_order=DIFFERENCES)
    net = Net()
    net.body = torch.compile(net.body, backend="aot_eager")
    torch.testing.assert_close(trained(net, batches, second_order=DIFFERENCES), expected)


def compile_all(net: Net) -> None:
    net.compile(backend="aot_eager")


def compile_body(net: Net) -> None:
    net.body.compile(backend="aot_eager")


@pytest.mark.parametrize("warmup_steps", [0, 4])
@pytest.mark.parametrize("compile_it", [compile_all, compile_body])
def test_modules_that_are_compiled_in_place_are_looked_into_as_they_were_written(
    batches: list[tuple[Tensor, Tensor]], compile_it: Any, warmup_steps: int
) -> None:
    expected = trained(Net(), batches, warmup_steps=warmup_steps)
    net = Net()
    compile_it(net)
    torch.testing.assert_close(trained(net, batches, warmup_steps=warmup_steps), expected)


def test_layers_that_are_compiled_in_place_can_be_computed_again(batches: list[tuple[Tensor, Tensor]]) -> None:
    expected = trained(Net(again=True), batches)
    net = Net(again=True)
    compile_body(net)
    torch.testing.assert_close(trained(net, batches), expected)


def test_a_head_of_another_kind_that_is_compiled_in_place_has_its_own_gradients(
    batches: list[tuple[Tensor, Tensor]],
) -> None:
    found = []
    for compiled in (False, True):
        net = Net()
        net.head = Layers(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
        if compiled:
            net.head.compile(backend="aot_eager")
        with pytest.warns(UserWarning, match="The head, a Layers, is not a linear layer"):
            terms = udim_of(net, head=net.head).terms(*batches[0])
        slopes = torch.autograd.grad(terms["variance_gap"] + terms["gradient_norm"], list(net.parameters()))
        found.append([*terms.values(), *slopes])
    torch.testing.assert_close(*found)


def test_what_was_compiled_in_place_is_compiled_again_afterwards(batches: list[tuple[Tensor, Tensor]]) -> None:
    runs = []

    def backend(graph: Any, _: Any) -> Any:
        runs.append("compiled")
        return lambda *args: runs.append("run") or graph(*args)

    net, (x, y) = Net(), batches[0]
    net.compile(backend=backend)
    net(x)
    assert runs == ["compiled", "run"]
    assert find_head(net, x) is net.head
    udim_of(net).terms(x, y)
    with pytest.raises(KeyError, match="in the loss"):
        UDIM(net, _fail, InputPerturbation(0.3)).perturbed(x, y)
    assert runs == ["compiled", "run"]  # none of these passes
    net(x)
    assert runs == ["compiled", "run", "run"]


def _fail(*_: Any) -> Tensor:
    raise KeyError("in the loss")
