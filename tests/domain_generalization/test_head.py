"""The head is found, seen to give the logits, and refused or said where it has no closed form."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from uumamba.domain_generalization import UDIM, InputPerturbation
from uumamba.domain_generalization.head import find_head
from uumamba.domain_generalization.head_gradients import is_linear
from uumamba.runtime.errors import UsageError


class Supervised(nn.Module):
    """Two heads, the finest first in what is returned and last in what is registered and run."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(1, 4, 3, padding=1)
        self.coarse, self.fine = nn.Conv2d(4, 3, 1, stride=2), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = torch.tanh(self.body(x))
        coarse = self.coarse(features)
        return [self.fine(features), coarse]


class Cosine(nn.Module):
    """A classifier by angles, which is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return 5 * F.linear(F.normalize(x), F.normalize(self.weight))


class Functional(nn.Module):
    """Gives its logits by no module."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.weight = nn.Linear(6, 8), nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.body(x), self.weight)


@pytest.fixture
def classified() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(9, 6, generator=generator), torch.randint(4, (9,), generator=generator)


def udim_of(net: nn.Module, loss: Any = F.cross_entropy, **options: Any) -> UDIM:
    return UDIM(net, loss, InputPerturbation(0.3), rho=0.0, **options)


def test_the_innermost_layer_that_gives_the_logits_is_found(classified: tuple[Tensor, Tensor]) -> None:
    last = nn.Linear(8, 4)
    net = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.Tanh(), nn.Sequential(nn.Dropout(0.1), last)))
    assert find_head(net, classified[0]) is last
    assert find_head(last, torch.randn(2, 8)) is last


def test_the_head_of_the_finest_logits_is_found() -> None:
    net = Supervised()
    assert find_head(net, torch.randn(2, 1, 8, 8)) is net.fine


def test_a_view_of_what_the_head_gives_is_the_logits(classified: tuple[Tensor, Tensor]) -> None:
    net = nn.Sequential(nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 4, 1), nn.Flatten())
    assert udim_of(net, head=net[1]).terms(*classified)["variance_gap"] > 0


def test_finding_the_head_leaves_no_hook_no_draw_and_no_statistic(classified: tuple[Tensor, Tensor]) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
    before, drawn = [buffer.clone() for buffer in net.buffers()], torch.get_rng_state()
    find_head(net, classified[0])
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before, strict=True))
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("make", [Cosine, lambda: nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4))])
def test_a_head_that_is_not_linear_has_the_gradients_of_each_image_with_a_warning(
    classified: tuple[Tensor, Tensor], make: Any
) -> None:
    torch.manual_seed(0)
    x, y = classified
    net = nn.Sequential(nn.Linear(6, 8), make())
    udim = udim_of(net, head=net[1])
    with pytest.warns(UserWarning, match="is not a linear layer .* torch.func computes one gradient an image"):
        found = udim.terms(x, y)
    moved, rows = udim.perturbed(x, y), []
    for each in (x, moved):
        losses = [F.cross_entropy(net(each[i : i + 1]), y[i : i + 1]) for i in range(9)]
        slopes = [torch.autograd.grad(loss, list(net[1].parameters())) for loss in losses]
        rows.append(torch.stack([torch.cat([part.flatten() for part in slope]) for slope in slopes]))
    mu = rows[0].mean(0)
    gap = ((rows[0] - mu).square().mean(0) - (rows[1] - mu).square().mean(0)).square().mean() / 4
    torch.testing.assert_close(found["variance_gap"], gap)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = udim.terms(x, y)
    (slope,) = torch.autograd.grad(found["variance_gap"] + found["gradient_norm"], net[0].weight)
    assert slope.abs().max() > 0


def test_a_head_that_is_not_linear_and_takes_more_than_a_tensor_is_refused(classified: tuple[Tensor, Tensor]) -> None:
    class Tempered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x: Tensor, temperature: float = 1.0) -> Tensor:
            return self.layer(x) / temperature

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = Tempered()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x, temperature=10.0)

    x, y = classified
    with pytest.raises(UsageError, match=r"a Tempered, is called with 2 inputs, .* let it take the features alone"):
        udim_of(Net()).terms(x, y)


def test_a_convolution_of_kernel_three_has_the_gradient_of_each_image() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1))
    x, y = torch.randn(3, 1, 6, 6), torch.randint(3, (3, 1, 6, 6))
    udim = udim_of(net, lambda logits, label: F.cross_entropy(logits, label[:, 0]))
    with pytest.warns(UserWarning, match="a Conv2d, is not a linear layer or a convolution of kernel 1"):
        found = udim.terms(x, y)
    moved, norms = udim.perturbed(x, y), []
    for i in range(3):
        loss = F.cross_entropy(net(moved[i : i + 1]), y[i])
        norms.append(sum(s.square().mean() for s in torch.autograd.grad(loss, list(net[2].parameters()))))
    torch.testing.assert_close(found["gradient_norm"], torch.stack(norms).mean())


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (Functional(), "are not the output of one of its layers.*Pass head="),
        (nn.Sequential(nn.Linear(6, 4), nn.Softmax(1)), "come out of a Softmax, which has no weights that learn"),
        (nn.Sequential(nn.Linear(6, 1)), "gives 1 logit a sample.*two outputs where there are two classes"),
    ],
)
def test_logits_without_a_head_are_refused(classified: tuple[Tensor, Tensor], net: nn.Module, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        udim_of(net, lambda logits, _: logits.square().sum()).terms(*classified)


def test_a_head_that_something_follows_is_refused(classified: tuple[Tensor, Tensor]) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4), nn.Tanh())
    with pytest.raises(UsageError, match=r"of the head, a Linear, is not the network's logits.*something follows it"):
        udim_of(net, head=net[1]).terms(*classified)


def test_a_head_that_is_not_called_is_refused(classified: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UsageError, match="was not called; name a module of the network"):
        udim_of(nn.Linear(6, 4), head=nn.Linear(6, 4)).terms(*classified)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(1, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x[..., None])[0][:, -1])


def test_a_head_that_takes_or_gives_no_tensor_is_refused(classified: tuple[Tensor, Tensor]) -> None:
    class Last(nn.Linear):
        def forward(self, input: Any) -> Tensor:
            return super().forward(input[-1])

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = Last(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head([x])

    net: nn.Module = Recurrent()
    with pytest.raises(UsageError, match=r"The head, a LSTM, gives a tuple, and UDIM needs .* a tensor"):
        udim_of(net, head=net.body).terms(*classified)
    net = Supervised()
    with pytest.raises(UsageError, match=r"The head, a Supervised, gives a list, and UDIM needs .* a tensor"):
        udim_of(net, lambda out, y: F.cross_entropy(out[0], y), head=net).check(torch.randn(2, 1, 8, 8))
    with pytest.raises(UsageError, match=r"The head, a Last, takes a list, and UDIM needs .* a tensor"):
        udim_of(Pyramid()).terms(*classified)


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("of", [torch.jit.script, lambda net: torch.jit.trace(net, torch.zeros(2, 6))])
def test_a_head_of_torch_jit_is_refused_and_a_body_of_it_is_not(classified: tuple[Tensor, Tensor], of: Any) -> None:
    torch.manual_seed(0)
    body, head = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 4)
    expected = udim_of(nn.Sequential(body, head)).terms(*classified)
    found = udim_of(nn.Sequential(of(body), head)).terms(*classified)
    for name, term in expected.items():
        torch.testing.assert_close(found[name], term)
    whole = of(nn.Sequential(body, head))
    for net, part in ((whole, None), (whole, whole), (nn.Sequential(body, of(head)), None), (of(head), None)):
        with pytest.raises(UsageError, match=r"torch\.jit can be neither watched nor taken apart"):
            udim_of(net, head=part).terms(*classified)
    net = nn.Sequential(body, of(head))
    with pytest.raises(UsageError, match=r"torch\.jit can be neither watched nor taken apart"):
        udim_of(net, head=net[1]).terms(*classified)


def test_a_label_on_another_grid_is_refused() -> None:
    net = nn.Conv2d(1, 3, 1)
    loss = lambda logits, _: logits.square().mean()  # noqa: E731  # one that takes any label
    with pytest.raises(UsageError, match=r"logits for 16 voxels of 2 samples .* shape \(2, 4\)"):
        udim_of(net, loss).terms(torch.randn(2, 1, 4, 4), torch.zeros(2, 1, 2, 2, dtype=torch.int64))


def test_a_network_that_returns_no_logits_is_refused(classified: tuple[Tensor, Tensor]) -> None:
    class Named(nn.Linear):
        def forward(self, input: Tensor) -> Any:
            return {"out": super().forward(input)}

    with pytest.raises(UsageError, match=r"needs a network that returns logits.*got a dict"):
        udim_of(Named(6, 4), lambda out, y: F.cross_entropy(out["out"], y)).terms(*classified)


def test_the_head_is_the_innermost_module_that_gives_the_logits_also_where_it_has_parts_of_its_own() -> None:
    last = parametrize.register_parametrization(nn.Linear(4, 3), "weight", nn.Identity())
    net = nn.Sequential(nn.Linear(2, 4), nn.Sequential(nn.ReLU(), nn.Sequential(last)))
    assert find_head(net, torch.zeros(2, 2)) is last


@pytest.mark.parametrize("head", [nn.Linear(8, 4), Cosine()])
@pytest.mark.filterwarnings("ignore:The head, a Cosine:UserWarning")
@pytest.mark.parametrize("wrong", [-100, 4])
def test_a_label_that_is_no_class_is_refused_unless_it_is_ignored(
    classified: tuple[Tensor, Tensor], head: nn.Module, wrong: int
) -> None:
    x, y = classified
    y[:2] = wrong
    net, loss = nn.Sequential(nn.Linear(6, 8), head), lambda logits, _: logits.square().mean()
    with pytest.raises(UsageError, match=f"holds {wrong} and .* classes 0 to 3.*ignore_label={wrong}"):
        udim_of(net, loss, head=head).terms(x, y)
    told = udim_of(net, loss, head=head, ignore_label=wrong, direction="random")
    moved = told.perturbed(x, y)
    found = told._head.gradients(torch.cat([x, moved]), y, torch.Generator(), [list(range(9))])[0][1]
    left = told._head.gradients(torch.cat([x[2:], moved[2:]]), y[2:], torch.Generator(), [list(range(7))])[0][1]
    torch.testing.assert_close(found.mean(), left.mean())
    torch.testing.assert_close(told.terms(x, y)["gradient_norm"], left.mean_squared_norm())


@pytest.mark.filterwarnings("ignore:The head, a Conv2d:UserWarning")
def test_what_a_linear_head_is_refused_for_another_head_is_too() -> None:
    loss = lambda logits, _: logits.square().mean()  # noqa: E731  # one that takes any label
    x, y = torch.randn(2, 1, 6, 6), torch.zeros(2, 1, 6, 6, dtype=torch.int64)
    with pytest.raises(UsageError, match=r"logits for 16 voxels of 2 samples .* shape \(2, 36\)"):
        udim_of(nn.Conv2d(1, 3, 3), loss).terms(x, y)
    with pytest.raises(UsageError, match="gives 1 logit a sample"):
        udim_of(nn.Conv2d(1, 1, 3, padding=1), loss).terms(x, y)
    with pytest.raises(UsageError, match="gives 1 logit a sample"):
        udim_of(nn.Conv2d(1, 1, 3, padding=1), loss).check(x)


def test_a_head_whose_logits_are_changed_in_place_is_refused(classified: tuple[Tensor, Tensor]) -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True))
    with pytest.raises(UsageError, match=r"is not the network's logits.*something follows it"):
        udim_of(net, head=net[0]).terms(*classified)


def test_a_layer_that_only_passes_logits_on_is_seen_through_by_naming_the_head(
    classified: tuple[Tensor, Tensor],
) -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.Identity())
    with pytest.raises(UsageError, match=r"no weights that learn.*name that layer as head="):
        udim_of(net).terms(*classified)
    assert udim_of(net, head=net[0]).terms(*classified)["gradient_norm"] > 0


def test_a_batch_without_samples_is_refused(classified: tuple[Tensor, Tensor]) -> None:
    x, y = classified
    for perturbation in (InputPerturbation(radius=0.3), InputPerturbation(rms=0.3)):
        with pytest.raises(UsageError, match="batch without samples"):
            UDIM(nn.Linear(6, 4), F.cross_entropy, perturbation).terms(x[:0], y[:0])


class CosineLayer(nn.Linear):
    """A linear layer by name and weights, which computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return 5 * F.linear(F.normalize(input), F.normalize(self.weight))


class SquaredConvolution(nn.Conv2d):
    """A convolution of kernel 1 by name and weights."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input.square(), weight, bias)


def test_a_subclass_that_computes_something_else_has_its_own_gradients(classified: tuple[Tensor, Tensor]) -> None:
    x, y = classified
    plain = Cosine()
    layer = CosineLayer(8, 4, bias=False)
    layer.weight = plain.weight
    body = nn.Linear(6, 8)
    told = [udim_of(nn.Sequential(body, head), direction="random") for head in (plain, layer)]
    with pytest.warns(UserWarning, match="The head, a Cosine"):
        expected, found = (each.terms(x, y) for each in told)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("head", [SquaredConvolution(2, 3, 1), CosineLayer(2, 3)])
def test_a_layer_with_a_forward_of_its_own_is_not_taken_for_linear(head: nn.Module) -> None:
    replaced = nn.Linear(2, 3)
    replaced.forward = lambda input: input.square()  # type: ignore[method-assign]
    assert not is_linear(head)
    assert not is_linear(replaced)


class Adapted(nn.Linear):
    """A linear layer with an adapter of low rank beside it, in a forward pass of its own."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, classes)
        self.down, self.up = nn.Parameter(torch.randn(2, width)), nn.Parameter(torch.randn(classes, 2))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input @ self.down.T @ self.up.T


class Sequences(nn.Module):
    """A head on sequences whose axes a network may hold in another order than it does."""

    def __init__(self, head: nn.Module, order: str) -> None:
        super().__init__()
        self.body, self.head, self.order = nn.Linear(5, 5), head, order

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.order == "sequence first":
            return self.head(x.transpose(0, 1)).permute(1, 2, 0)
        if self.order == "turned":
            return self.head(x.unflatten(1, (2, -1))).permute(0, 3, 2, 1)
        return self.head(x).mT if self.order == "classes first" else self.head(x)


@pytest.mark.filterwarnings("ignore:The head, a Adapted:UserWarning")
@pytest.mark.parametrize("tokens", [3, 4])
@pytest.mark.parametrize("order", ["classes first", "classes last"])
def test_a_subclass_of_linear_on_sequences_has_the_gradients_of_each_image(order: str, tokens: int) -> None:
    torch.manual_seed(0)
    net = Sequences(Adapted(5, 3), order)
    x, y = torch.randn(6, tokens, 5), torch.randint(3, (6, tokens))
    y[0, 1] = 255
    udim = udim_of(net, direction="random", ignore_label=255)
    found, moved, rows = udim.terms(x, y), udim.perturbed(x, y), []
    for each in (x, moved):
        logits = net.head(net.body(each))
        losses = [F.cross_entropy(logits[i], y[i], ignore_index=255) for i in range(6)]
        slopes = [torch.autograd.grad(one, list(net.head.parameters()), retain_graph=True) for one in losses]
        rows.append([torch.stack(parts).flatten(1) for parts in zip(*slopes, strict=True)])
    torch.testing.assert_close(found["gradient_norm"], sum(each.square().mean() for each in rows[1]))
    source, target = (torch.cat(parts, 1) for parts in rows)
    mu = source.mean(0)
    gap = ((source - mu).square().mean(0) - (target - mu).square().mean(0)).square().mean() / 4
    torch.testing.assert_close(found["variance_gap"], gap)


@pytest.mark.filterwarnings("ignore:The head, a:UserWarning")
@pytest.mark.parametrize("order", ["sequence first", "turned"])
@pytest.mark.parametrize("make", [nn.Linear, Adapted])
def test_a_head_that_has_samples_or_voxels_in_another_order_is_refused_also_where_the_numbers_fit(
    make: Any, order: str
) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 8, 5), torch.randint(3, (4, 8))
    udim_of(Sequences(make(5, 3), "classes first"), direction="random").terms(x, y)
    net = Sequences(make(5, 3), order)
    with pytest.raises(UsageError, match=r"\(8, 3, .*in another order.*samples and voxels in the order of the network"):
        udim_of(net, head=net.head, direction="random").terms(x, y)


@pytest.mark.filterwarnings("ignore:The head, a Conv2d:UserWarning")
def test_a_view_of_what_a_head_that_is_not_linear_gives_is_the_logits() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 2, 6), torch.randint(3, (4, 6))
    net = nn.Sequential(nn.Unflatten(2, (3, 2)), nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(2))
    assert udim_of(net, head=net[1]).terms(x, y)["gradient_norm"] > 0


def test_logits_that_leave_the_head_s_output_later_are_refused_then(classified: tuple[Tensor, Tensor]) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.scale = nn.Linear(6, 4), 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.head(x)

    net = Scaled()
    told = udim_of(net, head=net.head)
    told.terms(*classified)
    net.scale = 5.0
    with pytest.raises(UsageError, match="is not the network's logits"):
        told.terms(*classified)


def test_labels_that_are_no_class_numbers_are_refused(classified: tuple[Tensor, Tensor]) -> None:
    x, y = classified
    net = nn.Linear(6, 4)
    told = udim_of(net, lambda logits, _: logits.square().mean(), direction="random")
    assert told.terms(x, y.float(), step=0) == told.terms(x, y, step=0)
    for soft in (y + 0.5, torch.full((9,), float("nan"))):
        with pytest.raises(UsageError, match=r"numbers of classes.*label\.argmax\(1\)"):
            told.terms(x, soft)
    for one_a_class in (torch.randn(9, 4).softmax(1), F.one_hot(y, 4)):
        with pytest.raises(UsageError, match=r"one number a class, \(9, 4\).*label\.argmax\(1\)"):
            told.terms(x, one_a_class)


def test_a_head_that_mixes_its_samples_is_refused(classified: tuple[Tensor, Tensor]) -> None:
    x, y = classified
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4), nn.BatchNorm1d(4))
    with pytest.raises(UsageError, match=r"holds a BatchNorm1d in training mode.*no gradient of its own"):
        udim_of(net).terms(x, y)
    net[2].eval()
    with pytest.warns(UserWarning, match="a BatchNorm1d, is not a linear layer"):
        udim_of(net).terms(x, y)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo's own
def test_a_compiled_layer_is_the_head_that_it_compiles(classified: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    expected = udim_of(net, direction="random").terms(*classified, step=0)
    net[1] = torch.compile(net[1], backend="eager")
    told = udim_of(net, direction="random")
    for _ in range(2):
        found = told.terms(*classified, step=0)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
