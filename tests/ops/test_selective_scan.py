"""Every backend equals the reference; the reference equals the formula."""

from itertools import chain, combinations, product
from math import exp

import pytest
import torch

from uumamba.ops import scan_backends, scan_torch, selective_scan

OPTIONAL = ("D", "z", "delta_bias")
FLAGS = [
    (optional, softplus)
    for optional, softplus in product(
        chain.from_iterable(combinations(OPTIONAL, count) for count in range(4)), (False, True)
    )
]
LENGTHS = (1, 15, 16, 63, 64, 65, 333)


@pytest.fixture
def small_blocks(monkeypatch):
    """Many blocks and several chunks even for tiny inputs, as large inputs have them."""
    monkeypatch.setattr(scan_torch, "_BLOCK_ELEMENTS", 200)
    monkeypatch.setattr(scan_torch, "_STEP_ELEMENTS", 64)


def assert_equal_scans(arguments, **options):
    """Values, last states and all gradients of the torch backend and the reference, in float64."""
    results = {}
    for backend in ("torch", "reference"):
        y, last_state = selective_scan(**arguments, **options, return_last_state=True, backend=backend)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
        grads = torch.autograd.grad((y * weights).sum() + last_state.square().sum(), list(arguments.values()))
        results[backend] = (y, last_state, *grads)
    names = ("y", "last_state", *(f"gradient of {name}" for name in arguments))
    for name, found, expected in zip(names, results["torch"], results["reference"], strict=True):
        torch.testing.assert_close(
            found, expected, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_two_steps_of_the_reference_equal_the_formula_by_hand():
    u, delta, A, B, C, D, z, bias = 2.0, (0.5, 0.25), -1.0, (3.0, 5.0), (7.0, 11.0), 0.5, 1.0, 0.125
    steps = [step + bias for step in delta]
    first = steps[0] * B[0] * u
    second = exp(-steps[1]) * first + steps[1] * B[1] * u
    gate = z / (1 + exp(-z))
    expected = [(C[0] * first + D * u) * gate, (C[1] * second + D * u) * gate]
    row = torch.tensor
    y, last_state = selective_scan(
        row([[[u, u]]]), row([[delta]]), row([[A]]), row([[B]]), row([[C]]), row([D]), row([[[z, z]]]), row([bias]),
        return_last_state=True, backend="reference",
    )  # fmt: skip
    torch.testing.assert_close(y.flatten(), row(expected))
    torch.testing.assert_close(last_state.flatten(), row([second]))


@pytest.mark.parametrize(("optional", "softplus"), FLAGS, ids=str)
def test_torch_backend_equals_the_reference_for_every_flag(scan_arguments, small_blocks, optional, softplus):
    arguments = scan_arguments(length=15, optional=optional, requires_grad=True)
    assert_equal_scans(arguments, delta_softplus=softplus)


@pytest.mark.parametrize("form", ["constant", "shared", "grouped"])
@pytest.mark.parametrize("length", LENGTHS)
def test_torch_backend_equals_the_reference_at_every_length_and_form(scan_arguments, small_blocks, length, form):
    assert_equal_scans(scan_arguments(length=length, form=form, requires_grad=True), delta_softplus=True)


@pytest.mark.parametrize("length", LENGTHS)
def test_torch_backend_equals_the_reference_in_one_block(scan_arguments, length):
    assert_equal_scans(scan_arguments(length=length, states=16, requires_grad=True), delta_softplus=True)


def test_b_and_c_may_come_in_different_forms(scan_arguments, small_blocks):
    arguments = scan_arguments(form="grouped", requires_grad=True)
    for form in ("constant", "shared"):
        assert_equal_scans({**arguments, "C": scan_arguments(form=form, requires_grad=True)["C"]})


def test_channels_of_a_group_see_their_own_b(scan_arguments):
    arguments = scan_arguments(channels=6, form="grouped")
    both = selective_scan(**arguments)
    second = {name: tensor[:, 3:] if tensor.ndim == 3 else tensor[3:] for name, tensor in arguments.items()}
    second |= {name: arguments[name][:, 1] for name in ("B", "C")}
    torch.testing.assert_close(both[:, 3:], selective_scan(**second))


def test_gradients_equal_finite_differences(scan_arguments, small_blocks):
    arguments = scan_arguments(batch=1, channels=2, states=2, length=7, requires_grad=True)

    def scan(*tensors):
        named = dict(zip(arguments, tensors, strict=True))
        return selective_scan(**named, delta_softplus=True, return_last_state=True)

    assert torch.autograd.gradcheck(scan, tuple(arguments.values()))


def test_second_gradients_equal_finite_differences(scan_arguments, small_blocks):
    arguments = scan_arguments(batch=1, channels=2, states=1, length=6, optional=("D",), requires_grad=True)

    def scan(*tensors):
        return selective_scan(**dict(zip(arguments, tensors, strict=True)), return_last_state=True)

    assert torch.autograd.gradgradcheck(scan, tuple(arguments.values()))


@pytest.mark.parametrize("backend", scan_backends())
@pytest.mark.parametrize(("rate", "step"), [(-1e4, 1.0), (-1.0, 20.0), (-1e-6, 1e-6)])
def test_extreme_decay_gives_finite_values_and_gradients(scan_arguments, backend, rate, step):
    arguments = scan_arguments(length=333, optional=(), dtype=torch.float32)
    arguments["A"], arguments["delta"] = (
        torch.full_like(arguments[name], value) for name, value in (("A", rate), ("delta", step))
    )
    y = selective_scan(**{name: tensor.requires_grad_() for name, tensor in arguments.items()}, backend=backend)
    grads = torch.autograd.grad(y.sum(), list(arguments.values()))
    assert all(tensor.isfinite().all() for tensor in (y, *grads))


def test_infinitely_fast_decay_leaves_each_position_alone(scan_arguments):
    arguments = scan_arguments(optional=())
    arguments["A"] = torch.full_like(arguments["A"], -1e9)
    alone = arguments["delta"] * arguments["u"] * (arguments["B"] * arguments["C"]).sum(1, keepdim=True)
    torch.testing.assert_close(selective_scan(**arguments), alone)


def test_non_contiguous_input_gives_the_same_result(scan_arguments):
    arguments = scan_arguments(length=33)
    strided = {name: tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor for name, tensor in arguments.items()}
    assert not strided["u"].is_contiguous()
    torch.testing.assert_close(selective_scan(**strided), selective_scan(**arguments), rtol=0, atol=0)


def test_scan_is_causal(scan_arguments):
    arguments = scan_arguments(length=40)
    changed = {**arguments, "u": arguments["u"].clone()}
    changed["u"][..., 25:] += 1
    before, after = selective_scan(**arguments), selective_scan(**changed)
    torch.testing.assert_close(before[..., :25], after[..., :25], rtol=0, atol=0)
    assert (before[..., 25:] != after[..., 25:]).all()


@pytest.mark.parametrize("backend", scan_backends())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32_and_returned_in_their_own(scan_arguments, backend, dtype):
    half = {name: tensor.to(dtype) for name, tensor in scan_arguments(length=64).items()}
    y, last_state = selective_scan(**half, return_last_state=True, backend=backend)
    exact = selective_scan(**{name: tensor.float() for name, tensor in half.items()}, backend=backend)
    assert (y.dtype, last_state.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(y, exact.to(dtype), rtol=0, atol=0)


def test_autocast_around_the_scan_changes_nothing(scan_arguments):
    arguments = scan_arguments(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = selective_scan(**arguments)
    torch.testing.assert_close(inside, selective_scan(**arguments), rtol=0, atol=0)


def test_backward_keeps_inputs_and_not_states(scan_arguments):
    arguments = scan_arguments(batch=1, channels=32, states=32, length=256, optional=(), requires_grad=True)
    held = 0

    def count(tensor):
        nonlocal held
        held += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        selective_scan(**arguments)
    assert held <= sum(tensor.numel() for tensor in arguments.values()) < 32 * 32 * 256 / 4


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("u", lambda u: u[0], r"u should be \(batch, channels, length\).*found shape \(6, 16\)"),
        ("u", lambda u: u[..., :0], r"u should be .* none of them 0; found shape \(2, 6, 0\)"),
        ("delta", lambda d: d[..., 1:], r"delta should be .*= \(2, 6, 16\); found shape \(2, 6, 15\)"),
        ("A", lambda a: a[1:], r"A should be \(channels, states\) with 6 channels as in u; found shape \(5, 3\)"),
        ("B", lambda b: b[:, 1:], r"B should be \(batch, states, length\) = \(2, 3, 16\); found shape \(2, 2, 16\)"),
        ("B", lambda b: b[:, None].expand(2, 4, 3, 16), r"groups dividing 6; found shape \(2, 4, 3, 16\)"),
        ("C", lambda c: c[0, 0], r"C should be \(channels, states\), \(batch, states, length\) or"),
        ("C", lambda c: c[0], r"C should be \(channels, states\) = \(6, 3\); found shape \(3, 16\)"),
        ("D", lambda d: d[:, None], r"D should be \(channels,\) = \(6,\); found shape \(6, 1\)"),
        ("z", lambda z: z.mT, r"z should be .*= \(2, 6, 16\); found shape \(2, 16, 6\)"),
        ("delta_bias", lambda b: b[1:], r"delta_bias should be \(channels,\) = \(6,\); found shape \(5,\)"),
        ("B", lambda b: b.to("meta"), r"B should be on cpu like u; found it on meta"),
    ],
)
def test_wrong_argument_is_named_with_what_was_expected_and_found(scan_arguments, name, change, message):
    arguments = scan_arguments()
    arguments[name] = change(arguments[name])
    with pytest.raises(ValueError, match=message):
        selective_scan(**arguments)


def test_integer_and_complex_tensors_are_refused(scan_arguments):
    for dtype in (torch.int64, torch.complex64):
        arguments = scan_arguments()
        arguments["A"] = arguments["A"].to(dtype)
        with pytest.raises(TypeError, match=f"A should be a real floating-point tensor; found {dtype}"):
            selective_scan(**arguments)


def test_unknown_backend_is_refused_with_the_known_ones(scan_arguments):
    with pytest.raises(
        ValueError, match="backend should be one of auto, reference, torch, native, triton, mamba_ssm; found 'cuda'"
    ):
        selective_scan(**scan_arguments(), backend="cuda")
