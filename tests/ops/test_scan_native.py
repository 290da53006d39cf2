"""The C++ backend equals the float64 reference, for every instruction set and way to cut the work."""

import shutil
import subprocess
import sys
from itertools import chain, combinations, product
from pathlib import Path

import pytest
import torch

from uumamba.ops import native_library, selective_scan
from uumamba.ops.native_library import instruction_sets
from uumamba.ops.scan_native import native_backward, native_forward

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
OPTIONAL = ("D", "z", "delta_bias")
FLAGS = [
    (optional, softplus)
    for optional, softplus in product(
        chain.from_iterable(combinations(OPTIONAL, count) for count in range(4)), (False, True)
    )
]
FORMS = ("constant", "shared", "grouped")
# Channels fill vectors of 4, 8 and 16 lanes, or not; states fill the unrolled loop, or not.
SIZES = ((40, 16, 333), (32, 8, 64), (6, 3, 1), (34, 8, 65), (16, 16, 15), (8, 5, 63), (4, 1, 16))

needs_library = pytest.mark.skipif(not instruction_sets(), reason="no C++ compiler")


def relative_error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def errors(arguments, *, softplus, **how):
    """Relative L2 errors of values, last state and gradients against the torch backend in float64."""
    exact = {name: tensor.double().requires_grad_() for name, tensor in arguments.items()}
    y, last_state = selective_scan(**exact, delta_softplus=softplus, return_last_state=True, backend="torch")
    draw = torch.Generator().manual_seed(1)
    grad_y, grad_state = (torch.randn(tensor.shape, generator=draw) for tensor in (y, last_state))
    expected = torch.autograd.grad((y * grad_y).sum() + (last_state * grad_state).sum(), list(exact.values()))

    inputs = [arguments.get(name) for name in NAMES]
    found_y, found_state, carries = native_forward(*inputs, softplus, True, **how)
    grads = dict(zip(NAMES, native_backward(grad_y, grad_state, *inputs, carries, softplus, **how), strict=True))
    pairs = {"y": (found_y, y), "last_state": (found_state, last_state)}
    pairs |= {f"gradient of {name}": (grads[name], each) for name, each in zip(exact, expected, strict=True)}
    return {name: relative_error(found.detach(), right.detach()) for name, (found, right) in pairs.items()}


def channels_last(arguments):
    return {name: tensor.mT.contiguous().mT if tensor.ndim > 2 else tensor for name, tensor in arguments.items()}


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
def test_with_a_compiler_at_hand_the_extension_was_built_and_loads():
    assert native_library.unavailable() is None


@needs_library
@pytest.mark.parametrize("instruction_set", instruction_sets())
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_instruction_set_size_and_form_equals_float64(scan_arguments, instruction_set, form, size):
    channels, states, length = size
    arguments = scan_arguments(channels=channels, states=states, length=length, form=form, dtype=torch.float32)
    for layout in (arguments, channels_last(arguments)):
        for spans in (0, 3):
            found = errors(layout, softplus=True, instruction_set=instruction_set, spans=spans)
            assert max(found.values()) < 1e-6, found


@needs_library
@pytest.mark.parametrize(("optional", "softplus"), FLAGS, ids=str)
def test_every_flag_equals_float64(scan_arguments, optional, softplus):
    arguments = scan_arguments(channels=20, length=70, optional=optional, dtype=torch.float32)
    if "delta_bias" in arguments:  # a step below 0 grows without bound
        arguments["delta_bias"] = arguments["delta_bias"].abs()
    found = errors(arguments, softplus=softplus)
    assert max(found.values()) < 1e-6, found


@needs_library
def test_a_long_sequence_keeps_the_precision_of_the_gradients(scan_arguments):
    arguments = scan_arguments(batch=1, channels=4, states=2, length=60_000, dtype=torch.float32)
    found = errors(arguments, softplus=True)
    assert found.pop("gradient of A") < 5e-6
    assert max(found.values()) < 1e-6, found


@needs_library
def test_arbitrary_strides_are_read_in_place(scan_arguments):
    arguments = scan_arguments(channels=20, length=40, dtype=torch.float32)
    strided = {
        name: torch.stack((tensor, tensor), dim=-1)[..., 0] if tensor.ndim > 2 else tensor
        for name, tensor in arguments.items()
    }
    assert not strided["u"].is_contiguous()
    expected = selective_scan(**arguments, delta_softplus=True, backend="native")
    torch.testing.assert_close(
        selective_scan(**strided, delta_softplus=True, backend="native"), expected, rtol=0, atol=0
    )


@needs_library
def test_one_and_two_threads_agree(scan_arguments):
    arguments = scan_arguments(channels=64, states=16, length=512, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 16):  # with 16 the length is cut too
            torch.set_num_threads(threads)
            tracked = {name: tensor.clone().requires_grad_() for name, tensor in arguments.items()}
            y = selective_scan(**tracked, delta_softplus=True, backend="native")
            results.append([y, *torch.autograd.grad(y.square().sum(), list(tracked.values()))])
    finally:
        torch.set_num_threads(before)
    for several in results[1:]:
        for one, other in zip(results[0], several, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5 * float(one.detach().abs().max()))


@needs_library
@pytest.mark.parametrize("instruction_set", instruction_sets())
@pytest.mark.parametrize(("rate", "step"), [(-1e4, 1.0), (-1e30, 1e5), (-1.0, 20.0), (-1e-6, 1e-6)])
def test_extreme_decay_gives_finite_values_and_gradients(scan_arguments, instruction_set, rate, step):
    arguments = scan_arguments(length=70, optional=(), dtype=torch.float32)
    arguments["A"], arguments["delta"] = (
        torch.full_like(arguments[name], value) for name, value in (("A", rate), ("delta", step))
    )
    inputs = [arguments.get(name) for name in NAMES]
    how = {"instruction_set": instruction_set}
    y, state, carries = native_forward(*inputs, False, True, **how)
    grads = native_backward(torch.ones_like(y), torch.ones_like(state), *inputs, carries, False, **how)
    assert all(tensor.isfinite().all() for tensor in (y, state, *grads) if tensor is not None)


@needs_library
@pytest.mark.parametrize("instruction_set", instruction_sets())
def test_growth_beyond_float32_is_infinite_and_nan_stays_nan(scan_arguments, instruction_set):
    arguments = scan_arguments(batch=1, channels=1, length=4, optional=(), dtype=torch.float32)
    inputs = [torch.ones_like(arguments[name]) if name in arguments else None for name in NAMES]
    inputs[1][..., 0] = 0.1
    for rate, right in ((200.0, torch.isinf), (float("nan"), torch.isnan)):  # exp(200) is beyond float32, exp(20) not
        inputs[2] = torch.full_like(arguments["A"], rate)
        y, *_ = native_forward(*inputs, False, False, instruction_set=instruction_set)
        assert right(y[0, 0, 1:]).all()


@needs_library
def test_operator_passes_torchs_own_checks(scan_arguments):
    arguments = scan_arguments(length=17, dtype=torch.float32, requires_grad=True)
    inputs = [arguments.get(name) for name in NAMES]
    torch.library.opcheck(torch.ops.uumamba.native_scan.default, (*inputs, True, True))


@needs_library
def test_second_derivative_is_refused_rather_than_wrong(scan_arguments):
    arguments = scan_arguments(dtype=torch.float32, requires_grad=True)
    y = selective_scan(**arguments, backend="native")
    (grad,) = torch.autograd.grad(y.sum(), arguments["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        grad.sum().backward()


@needs_library
def test_torch_compile_gives_the_same_values_without_a_graph_break(scan_arguments):
    arguments = scan_arguments(length=33, dtype=torch.float32, requires_grad=True)

    def scan(**tensors):
        return selective_scan(**tensors, delta_softplus=True).square().sum()

    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    expected, found = (torch.autograd.grad(run(**arguments), list(arguments.values())) for run in (scan, compiled))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one)


@needs_library
def test_scan_runs_in_a_forked_worker():
    script = (
        "import os, torch\n"
        "from uumamba.ops import selective_scan\n"
        "u = torch.rand(1, 64, 4096); A = -torch.rand(64, 16); B = torch.rand(1, 16, 4096)\n"
        "expected = selective_scan(u, u, A, B, B, backend='native')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    torch.set_num_threads(1)\n"
        "    os._exit(0 if selective_scan(u, u, A, B, B, backend='native').allclose(expected) else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
@needs_library
def test_no_second_openmp_runtime_is_loaded():
    script = (
        "import torch\n"
        "from uumamba.ops import selective_scan\n"
        "u, A, B = torch.rand(1, 64, 512), -torch.rand(64, 16), torch.rand(1, 16, 512)\n"
        "selective_scan(u, u, A, B, B, backend='native')\n"
        "lines = open('/proc/self/maps', encoding='utf-8').read().splitlines()\n"
        "assert len({line.split()[-1] for line in lines if 'omp' in line.split()[-1]}) == 1\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
