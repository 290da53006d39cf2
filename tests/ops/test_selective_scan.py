"""Contract of the selective scan: all backends equal the reference."""

from itertools import chain, combinations, product
from math import exp, log

import pytest
import torch

from uumamba.ops import scan_backends, scan_torch, selective_scan
from uumamba.ops.native_library import instruction_sets
from uumamba.ops.scan_arguments import ScanArguments
from uumamba.ops.scan_backends import SCAN_BACKENDS
from uumamba.ops.scan_native import native_backward, native_forward

OPTIONAL = ("D", "z", "delta_bias")
FLAGS = list(product(chain.from_iterable(combinations(OPTIONAL, count) for count in range(4)), (False, True)))
FORMS = ("constant", "shared", "grouped")
# Complete and partial vectors of 4, 8 and 16 lanes, complete and partial unrolled loops, lengths around a chunk.
SIZES = ((40, 16, 333), (32, 8, 64), (6, 3, 1), (34, 8, 65), (16, 16, 15), (8, 5, 63), (4, 1, 16))
# Implementations: torch in one or many blocks, in float64; the native kernels on each instruction set, in float32.
IMPLEMENTATIONS = ("torch", "torch in blocks", *instruction_sets())
CPU_BACKENDS = [name for name in scan_backends() if SCAN_BACKENDS[name].device_type != "cuda"]


@pytest.fixture
def small_blocks(monkeypatch):
    """Use many blocks and chunks also for tiny inputs."""
    monkeypatch.setattr(scan_torch, "_BLOCK_ELEMENTS", 200)
    monkeypatch.setattr(scan_torch, "_STEP_ELEMENTS", 64)


def draw_weights(*tensors):
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(tensor.shape, generator=draw).to(tensor) for tensor in tensors]


def compute_by_autograd(arguments, backend, softplus):
    """Return y, last state and all gradients in float64."""
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in arguments.items()}
    results = selective_scan(**exact, delta_softplus=softplus, return_last_state=True, backend=backend)
    grads = torch.autograd.grad(results, list(exact.values()), draw_weights(*results))
    return [*(tensor.detach() for tensor in results), *grads]


def compute_natively(arguments, softplus, **how):
    scan = ScanArguments(**arguments, delta_softplus=softplus)
    y, last_state, carries = native_forward(scan, keep=True, **how)
    grads = native_backward(*draw_weights(y, last_state), carries, scan, **how)
    return [y, last_state, *(grad for grad in grads if grad is not None)]


def check_scan(implementation, arguments, *, softplus):
    """Compare with the reference in float64.

    The bound is one rounding per operation on the longest path.
    """
    arguments = {name: tensor.float() for name, tensor in arguments.items()}
    expected = compute_by_autograd(arguments, "reference", softplus)
    if "torch" in implementation:
        results, dtype = [compute_by_autograd(arguments, "torch", softplus)], torch.float64
    else:
        layouts = (
            arguments,
            {name: tensor.mT.contiguous().mT if tensor.ndim > 2 else tensor for name, tensor in arguments.items()},
        )
        results = [
            compute_natively(layout, softplus, instruction_set=implementation, spans=spans)
            for layout, spans in product(layouts, (0, 3))
        ]
        dtype = torch.float32
    # A step rounds decay, product and sum; states and batch are summed once; softplus adds a few roundings.
    bound = (3 * arguments["u"].shape[-1] + arguments["A"].shape[1] + 10) * torch.finfo(dtype).eps / 2
    for found in results:
        for name, one, other in zip(("y", "last state", *arguments), found, expected, strict=True):
            assert float((one.double() - other).norm()) <= bound * float(other.norm()), name


@pytest.mark.parametrize("softplus", [False, True])
def test_two_steps_of_the_reference_equal_the_formula_by_hand(softplus):
    u, delta, A, B, C, D, z, bias = 2.0, (0.5, 0.25), -1.0, (3.0, 5.0), (7.0, 11.0), 0.5, 1.0, 0.125
    steps = [log(1 + exp(step + bias)) if softplus else step + bias for step in delta]
    first = steps[0] * B[0] * u
    second = exp(-steps[1]) * first + steps[1] * B[1] * u
    gate = z / (1 + exp(-z))
    expected = [(C[0] * first + D * u) * gate, (C[1] * second + D * u) * gate]
    row = torch.tensor
    y, last_state = selective_scan(
        row([[[u, u]]]), row([[delta]]), row([[A]]), row([[B]]), row([[C]]), row([D]), row([[[z, z]]]), row([bias]),
        delta_softplus=softplus, return_last_state=True, backend="reference",
    )  # fmt: skip
    torch.testing.assert_close(y.flatten(), row(expected))
    torch.testing.assert_close(last_state.flatten(), row([second]))


@pytest.mark.parametrize(("optional", "softplus"), FLAGS, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_flag_equals_the_reference(request, scan_arguments, implementation, optional, softplus):
    if implementation == "torch in blocks":
        request.getfixturevalue("small_blocks")
    arguments = scan_arguments(channels=20, length=40, optional=optional)
    if "delta_bias" in arguments:  # negative step sizes grow without bound
        arguments["delta_bias"] = arguments["delta_bias"].abs()
    check_scan(implementation, arguments, softplus=softplus)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_size_and_form_equals_the_reference(request, scan_arguments, implementation, size, form):
    if implementation == "torch in blocks":
        request.getfixturevalue("small_blocks")
    channels, states, length = size
    arguments = scan_arguments(channels=channels, states=states, length=length, form=form)
    check_scan(implementation, arguments, softplus=True)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_b_and_c_may_have_different_forms(scan_arguments, small_blocks, implementation):
    for form in ("constant", "shared"):
        arguments = scan_arguments(form="grouped") | {"C": scan_arguments(form=form)["C"]}
        check_scan(implementation, arguments, softplus=True)


def test_channels_read_b_and_c_of_their_group(scan_arguments):
    arguments = scan_arguments(channels=6, form="grouped")
    found = selective_scan(**arguments)[:, 3:]
    second = {name: tensor[:, 3:] if tensor.ndim == 3 else tensor[3:] for name, tensor in arguments.items()}
    second |= {name: arguments[name][:, 1] for name in ("B", "C")}
    torch.testing.assert_close(found, selective_scan(**second))


def test_first_and_second_gradients_equal_finite_differences(scan_arguments, small_blocks):
    arguments = scan_arguments(batch=1, channels=2, states=1, length=4, requires_grad=True)

    def scan(*tensors):
        named = dict(zip(arguments, tensors, strict=True))
        return selective_scan(**named, delta_softplus=True, return_last_state=True)

    assert torch.autograd.gradcheck(scan, tuple(arguments.values()))
    assert torch.autograd.gradgradcheck(scan, tuple(arguments.values()))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("rate", "step"), [(-1e4, 1.0), (-1e30, 1e5), (-1.0, 20.0), (-1e-6, 1e-6)])
def test_extreme_decay_gives_finite_values_and_gradients(scan_arguments, implementation, rate, step):
    arguments = scan_arguments(length=70, optional=(), dtype=torch.float32)
    for name, value in (("A", rate), ("delta", step)):
        arguments[name] = torch.full_like(arguments[name], value)
    if "torch" in implementation:
        results = compute_by_autograd(arguments, "torch", False)
    else:
        results = compute_natively(arguments, False, instruction_set=implementation)
    assert all(tensor.isfinite().all() for tensor in results)


def test_with_infinitely_fast_decay_positions_are_independent(scan_arguments):
    arguments = scan_arguments(optional=())
    arguments["A"] = torch.full_like(arguments["A"], -1e9)
    expected = arguments["delta"] * arguments["u"] * (arguments["B"] * arguments["C"]).sum(1, keepdim=True)
    torch.testing.assert_close(selective_scan(**arguments), expected)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("layout", ["transposed", "every second value"])
def test_non_contiguous_input_gives_the_same_result(scan_arguments, backend, layout):
    arguments = scan_arguments(channels=20, length=40, dtype=torch.float32)
    strided = {
        name: tensor.mT.contiguous().mT if layout == "transposed" else torch.stack((tensor, tensor), dim=-1)[..., 0]
        for name, tensor in arguments.items()
        if tensor.ndim > 2
    }
    assert not strided["u"].is_contiguous()
    expected = selective_scan(**arguments, delta_softplus=True, backend=backend)
    found = selective_scan(**arguments | strided, delta_softplus=True, backend=backend)
    # Torch's vectorised and scalar softplus differ in the last bit.
    torch.testing.assert_close(found, expected, **({"rtol": 0, "atol": 0} if backend == "native" else {}))


def test_scan_is_causal(scan_arguments):
    arguments = scan_arguments(length=40)
    changed = {**arguments, "u": arguments["u"].clone()}
    changed["u"][..., 25:] += 1
    before, after = selective_scan(**arguments), selective_scan(**changed)
    torch.testing.assert_close(before[..., :25], after[..., :25], rtol=0, atol=0)
    assert (before[..., 25:] != after[..., 25:]).all()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32_and_returned_in_their_own(scan_arguments, backend, dtype):
    half = {name: tensor.to(dtype) for name, tensor in scan_arguments(length=64).items()}
    y, last_state = selective_scan(**half, return_last_state=True, backend=backend)
    exact = selective_scan(**{name: tensor.float() for name, tensor in half.items()}, backend=backend)
    assert (y.dtype, last_state.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(y, exact.to(dtype), rtol=0, atol=0)


def test_autocast_does_not_change_the_result(scan_arguments):
    arguments = scan_arguments(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = selective_scan(**arguments)
    torch.testing.assert_close(inside, selective_scan(**arguments), rtol=0, atol=0)


def test_autograd_saves_only_the_inputs(scan_arguments):
    arguments = scan_arguments(batch=1, channels=32, states=32, length=256, optional=(), requires_grad=True)
    saved = 0

    def count(tensor):
        nonlocal saved
        saved += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        selective_scan(**arguments)
    assert saved <= sum(tensor.numel() for tensor in arguments.values()) < 32 * 32 * 256 / 4


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("u", lambda u: u[0]),
        ("u", lambda u: u[..., :0]),
        ("delta", lambda d: d[..., 1:]),
        ("A", lambda a: a[1:]),
        ("B", lambda b: b[:, 1:]),
        ("B", lambda b: b[:, None].expand(2, 4, 3, 16)),
        ("C", lambda c: c[0]),
        ("D", lambda d: d[:, None]),
        ("z", lambda z: z.mT),
        ("delta_bias", lambda b: b[1:]),
    ],
)
def test_wrong_shape_is_refused(scan_arguments, refused, name, change):
    arguments = scan_arguments()
    arguments[name] = change(arguments[name])
    with refused(name, got=tuple(arguments[name].shape)):
        selective_scan(**arguments)


@pytest.mark.parametrize("kind", [torch.int64, torch.complex64, torch.device("meta")], ids=str)
def test_wrong_type_or_device_is_refused(scan_arguments, refused, kind):
    arguments = scan_arguments()
    arguments["B"] = arguments["B"].to(kind)
    with refused("B", got=kind):
        selective_scan(**arguments)
