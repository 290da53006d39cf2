"""Derivatives of torch.func, forward mode and exported graphs against operators of torch in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from uumamba.nets import Mamba
from uumamba.ops import causal_convolution, scan_backends, selective_scan

Function = Callable[[Tensor], Tensor]
BACKENDS = ["auto", *(name for name in ("native", "torch") if name in scan_backends())]
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),  # by torch's forward mode
    pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching"),
]


def by_forward_mode(function: Function, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(x, x.cos()))).tangent
        assert tangent is not None
        return tangent


TRANSFORMS = {
    "forward mode": by_forward_mode,
    "jvp": lambda function, x: jvp(function, (x,), (x.cos(),))[1],
    "compiled jvp": lambda function, x: torch.compile(TRANSFORMS["jvp"], backend="aot_eager")(function, x),
    "jvp of compiled": lambda function, x: TRANSFORMS["jvp"](torch.compile(function, backend="aot_eager"), x),
    "jacfwd": lambda function, x: jacfwd(lambda factor: function(factor * x)[0, 0])(torch.ones_like(x[0, 0, 0])),
    "grad": lambda function, x: grad(lambda y: function(y).square().sum())(x),
    "jacrev": lambda function, x: jacrev(lambda y: function(y)[0, 0])(x),
    "hessian": lambda function, x: hessian(lambda y: function(y)[0, 0, :4].square().sum())(x),
    "gradient of each sample": lambda function, x: vmap(grad(lambda y: function(y[None]).square().sum()))(x),
    "vmap": lambda function, x: vmap(function)(torch.stack((x, x.cos()))),
}
ONLY_VMAP = {"vmap"}


def scan(arguments: dict[str, Tensor], backend: str) -> Function:
    shared = {name: tensor for name, tensor in arguments.items() if name != "u"}
    for name in ("delta", "B", "C", "z"):
        shared[name] = shared[name][:1]  # each sample's gradient has one sample

    def function(u: Tensor) -> Tensor:
        wide = {name: tensor.expand(len(u), *tensor.shape[1:]) for name, tensor in shared.items() if tensor.ndim == 3}
        y = selective_scan(u, **(shared | wide), delta_softplus=True, backend=backend)
        assert isinstance(y, Tensor)
        return y

    return function


def convolution(arguments: dict[str, Tensor], _: str) -> Function:
    return lambda x: causal_convolution(x, arguments["A"], arguments["D"])


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(("make", "backend"), [(convolution, "auto"), *((scan, name) for name in BACKENDS)])
def test_a_transform_gives_its_derivative_or_is_refused_with_a_backend_that_has_it(
    make, backend, transform, scan_arguments, refused
):
    arguments = scan_arguments(length=11)
    exact = make(arguments, "reference")
    expected = TRANSFORMS[transform](exact, arguments["u"])
    assert expected.abs().max() > 1e-3
    single = {name: tensor.float() for name, tensor in arguments.items()}
    if backend == "native" and transform not in ONLY_VMAP:
        with refused("backend", got="native") as error:
            TRANSFORMS[transform](make(single, backend), single["u"])
        assert 'backend="torch"' in str(error.value)
        return
    found = TRANSFORMS[transform](make(single, backend), single["u"])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_tangent_in_the_backward_pass_of_a_kernel_is_refused(scan_arguments, refused):
    arguments = scan_arguments(dtype=torch.float32, requires_grad=True)
    inputs = {"scan": selective_scan(**arguments), "convolution": causal_convolution(arguments["u"], arguments["A"])}
    for y in inputs.values():
        with forward_ad.dual_level(), refused("backend"):
            torch.autograd.grad(y, arguments["u"], forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y)))


def test_gradients_of_each_sample_of_a_mamba_block_equal_a_loop():
    net, x = Mamba(8), torch.randn(3, 9, 8)
    params = dict(net.named_parameters())

    def loss(params: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(net, params, (sample[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(params, x)
    for index, sample in enumerate(x):
        expected = torch.autograd.grad(loss(params, sample), list(params.values()))
        for name, one in zip(params, expected, strict=True):
            torch.testing.assert_close(found[name][index], one, rtol=1e-3, atol=1e-5)


class Block(nn.Module):
    def __init__(self, arguments: dict[str, Tensor], backend: str) -> None:
        super().__init__()
        self.arguments, self.backend = arguments, backend
        self.weight = nn.Parameter(torch.ones(()).to(arguments["A"]))

    def forward(self, u: Tensor, B: Tensor) -> Tensor:
        A, D, bias = (self.arguments[name] for name in ("A", "D", "delta_bias"))
        y = selective_scan(u * self.weight, u, A, B, B, D, None, bias, delta_softplus=True, backend=self.backend)
        assert isinstance(y, Tensor)
        return y


@pytest.mark.parametrize(("backend", "is_strict"), [*((name, False) for name in BACKENDS), ("auto", True)])
@pytest.mark.parametrize("axis", [0, 2], ids=["batch", "length"])
def test_an_exported_scan_takes_any_size_or_is_refused_with_the_cure(axis, backend, is_strict, scan_arguments, refused):
    def draw(size):
        made = scan_arguments(dtype=torch.float32, **{["batch", "", "length"][axis]: size})
        return made["u"], made["B"]

    block = Block(scan_arguments(dtype=torch.float32), backend)
    sizes = ({axis: torch.export.Dim("size", min=2)},) * 2
    if axis == 2 and (backend == "torch" or "native" not in scan_backends()):
        with refused("backend", got="a dynamic length in torch.export"):
            torch.export.export(block, draw(16), dynamic_shapes=sizes)
        return
    exported = torch.export.export(block, draw(40 if axis == 2 else 3), dynamic_shapes=sizes, strict=is_strict).module()
    for size in (2, 7, 90):
        found, expected = exported(*draw(size)), block(*draw(size))
        torch.testing.assert_close(found, expected)
        results = ((found, exported), (expected, block))
        gradients = [torch.autograd.grad(y.square().sum(), run.weight)[0] for y, run in results]
        torch.testing.assert_close(*gradients)


def test_a_graph_recorded_without_gradients_can_be_trained(scan_arguments):
    arguments = scan_arguments(dtype=torch.float32, length=70)
    block = Block(arguments, "auto").requires_grad_(False)
    recorded = torch.export.export(block, (arguments["u"], arguments["B"])).module()
    gradients = []
    for run in (recorded, block):
        u = arguments["u"].clone().requires_grad_()
        gradients += torch.autograd.grad(run(u, arguments["B"]).square().sum(), u)
    torch.testing.assert_close(*gradients)
