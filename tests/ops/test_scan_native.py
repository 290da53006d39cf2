"""Native scan: build, threads, extremes, compilation and processes.

Its accuracy is tested in ``test_selective_scan.py``.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from uumamba.ops import native_library, selective_scan
from uumamba.ops.native_library import instruction_sets
from uumamba.ops.scan_arguments import ScanArguments
from uumamba.ops.scan_native import native_forward

needs_library = pytest.mark.skipif(not instruction_sets(), reason="no C++ compiler")


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
def test_extension_is_built_and_loads_if_there_is_a_compiler():
    assert native_library.find_missing_library() is None


def compute_results(arguments, backend="native"):
    """Return y and the gradients of its squared norm."""
    tracked = {name: tensor.clone().requires_grad_() for name, tensor in arguments.items()}
    y = selective_scan(**tracked, delta_softplus=True, backend=backend)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(tracked.values()))]


@needs_library
def test_a_long_sequence_keeps_the_precision_of_the_gradients(scan_arguments):
    arguments = scan_arguments(batch=1, channels=4, states=2, length=60_000, dtype=torch.float32)
    exact = {name: tensor.double() for name, tensor in arguments.items()}
    # States decay within about 100 steps, and long sums are in parts, so the error is far below 60 000 roundings.
    for found, expected in zip(compute_results(arguments), compute_results(exact, backend="torch"), strict=True):
        assert float((found - expected).norm() / expected.norm()) < 300 * torch.finfo(torch.float32).eps / 2


@needs_library
def test_results_agree_for_any_number_of_threads(scan_arguments):
    arguments = scan_arguments(channels=64, states=16, length=256, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 16):  # with 16 the length is also divided
            torch.set_num_threads(threads)
            results.append(compute_results(arguments))
    finally:
        torch.set_num_threads(before)
    bound = 3 * 256 * torch.finfo(torch.float32).eps  # each step of both results rounds decay, product and sum
    for several in results[1:]:
        for one, other in zip(results[0], several, strict=True):
            assert float((other - one).norm() / one.norm()) < bound


@needs_library
@pytest.mark.parametrize("instruction_set", instruction_sets())
def test_growth_beyond_float32_is_infinite_and_nan_stays_nan(scan_arguments, instruction_set):
    arguments = scan_arguments(batch=1, channels=1, length=4, optional=(), dtype=torch.float32)
    inputs = {name: torch.ones_like(tensor) for name, tensor in arguments.items()}
    inputs["delta"][..., 0] = 0.1
    for rate, right in (
        (200.0, torch.isinf),
        (float("nan"), torch.isnan),
    ):  # exp(200) exceeds float32, exp(20) does not
        inputs["A"] = torch.full_like(arguments["A"], rate)
        y, *_ = native_forward(ScanArguments(**inputs), keep=False, instruction_set=instruction_set)
        assert right(y[0, 0, 1:]).all()


@needs_library
def test_scan_operator_passes_torchs_opcheck(scan_arguments):
    arguments = scan_arguments(length=17, dtype=torch.float32, requires_grad=True)
    inputs = ScanArguments(**arguments).every_tensor()
    torch.library.opcheck(torch.ops.uumamba.native_scan.default, (*inputs, True, True))


@needs_library
def test_second_derivative_is_refused(scan_arguments):
    arguments = scan_arguments(dtype=torch.float32, requires_grad=True)
    y = selective_scan(**arguments, backend="native")
    (grad,) = torch.autograd.grad(y.sum(), arguments["u"], create_graph=True)
    with pytest.raises(RuntimeError, match=r'selective_scan\(..., backend="torch"\)'):
        grad.sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
@needs_library
def test_torch_compile_gives_the_same_values_without_a_graph_break(scan_arguments):
    arguments = scan_arguments(length=33, dtype=torch.float32, requires_grad=True)

    def scan(**tensors):
        return selective_scan(**tensors, delta_softplus=True).square().sum()

    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    expected, found = (torch.autograd.grad(run(**arguments), list(arguments.values())) for run in (scan, compiled))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
@needs_library
def test_scan_runs_in_a_forked_worker_with_a_single_openmp_runtime():
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
        "lines = open('/proc/self/maps', encoding='utf-8').read().splitlines()\n"
        "assert len({line.split()[-1] for line in lines if 'omp' in line.split()[-1]}) == 1\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
