"""Triton scan against the reference, in Triton's interpreter or on a GPU.

Triton selects the interpreter when it is imported, so this file runs itself in a separate process. The process prints
the relative L2 error of every result of every case, divided by the rounding bound.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from uumamba.ops import scan_triton, selective_scan
from uumamba.ops.scan_arguments import ScanArguments
from uumamba.ops.scan_reference import reference_scan
from uumamba.ops.scan_triton import Plan

OPTIONAL = ("D", "z", "delta_bias")
NAMES = ("u", "delta", "A", "B", "C", *OPTIONAL)
# Two channels per thread and several blocks; chunks of 16 and 32 steps, or one pass.
SPLIT = Plan(chunk_steps=16, forward=(1, 4), backward=(2, 2), carry=(2, 16))
LONG_SPLIT = Plan(chunk_steps=32, forward=(2, 4), backward=(2, 4), carry=(4, 32))
ONE_PASS = Plan(chunk_steps=336, forward=(1, 8), backward=(2, 4))
EXTREMES = {"fast decay": (-1e4, 1.0), "large steps": (-1.0, 20.0), "no decay": (-1e-6, 1e-6)}

Case = Callable[[], dict[str, Any]]


def arguments(
    *, batch=1, channels=3, states=3, length=17, B="shared", C="shared", optional=OPTIONAL
) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    projections = {
        "constant": (channels, states),
        "shared": (batch, states, length),
        "grouped": (batch, 2, states, length),
    }
    shapes = dict.fromkeys(("u", "delta", "z"), (batch, channels, length)) | {"A": (channels, states)}
    shapes |= {"B": projections[B], "C": projections[C]} | dict.fromkeys(("D", "delta_bias"), (channels,))
    made = {
        name: torch.randn(shapes[name], generator=draw) for name in NAMES if name not in OPTIONAL or name in optional
    }
    # Only decaying states: without softplus, a negative step size grows beyond float32.
    return {name: tensor.abs() if "delta" in name else tensor for name, tensor in made.items()} | {
        "A": -made["A"].exp()
    }


def channels_last(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make every sequence a part of a wider tensor with channels innermost."""
    wide = {
        name: torch.cat([tensor, tensor], dim=-2).mT.contiguous().mT
        for name, tensor in tensors.items()
        if tensor.ndim > 1
    }
    return tensors | {name: tensor[..., : tensors[name].shape[-2], :] for name, tensor in wide.items()}


def scan(tensors: dict[str, Tensor], plan: Plan | None, softplus: bool = True) -> dict[str, Tensor]:
    """Compute values and gradients with the kernels.

    The gradients are of a weighted sum of y and the last state, with fixed weights.
    """
    if plan is not None:
        scan_triton._plan = lambda *_: plan
    inputs = ScanArguments(**tensors, delta_softplus=softplus)
    y, last_state, carries = scan_triton.triton_forward(inputs, keep=True)
    grads = scan_triton.triton_backward(*weights(y, last_state), carries, inputs)
    return {"y": y, "last_state": last_state} | {
        f"gradient of {name}": grad for name, grad in zip(NAMES, grads, strict=True) if grad is not None
    }


def exact(tensors: dict[str, Tensor], compute: Callable[..., Any], softplus: bool = True) -> dict[str, Tensor]:
    """Compute the same results with another scan and autograd in float64."""
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
    y, last_state = compute(ScanArguments(**exact, delta_softplus=softplus))
    grads = torch.autograd.grad((y, last_state), list(exact.values()), weights(y, last_state))
    return {"y": y, "last_state": last_state} | {f"gradient of {name}": g for name, g in zip(exact, grads, strict=True)}


def weights(*tensors: Tensor) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(tensor.shape, generator=draw).to(tensor) for tensor in tensors]


def rounding_bound(length: int = 17, states: int = 3) -> float:
    """Return a bound of the relative error in float32.

    It is one rounding per operation on the longest path. A step rounds decay, product and sum; the states are summed
    once; softplus and exponentials add a few roundings.
    """
    return (3 * length + states + 8) * torch.finfo(torch.float32).eps / 2


def relative_errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    assert list(found) == list(expected)
    return {
        name: float((found[name].double() - value).detach().norm() / (value.detach().norm() or 1.0))
        for name, value in expected.items()
    }


def against_reference(plan: Plan, softplus: bool = True, strided: bool = False, **shape: Any) -> Case:
    def case() -> dict[str, Any]:
        tensors = arguments(**shape)
        tensors["delta"] -= 4 * softplus  # so that step sizes are about 0.03, as in a trained model
        found = scan(channels_last(tensors) if strided else tensors, plan, softplus)
        errors = relative_errors(found, exact(tensors, reference_scan, softplus))
        return {
            name: error / rounding_bound(shape.get("length", 17), shape.get("states", 3))
            for name, error in errors.items()
        }

    return case


def extreme(plan: Plan, rate: float, step: float) -> Case:
    def case() -> dict[str, Any]:
        tensors = arguments(length=18, optional=("D", "z"))
        tensors |= {"A": torch.full_like(tensors["A"], rate), "delta": torch.full_like(tensors["delta"], step)}
        return {name: bool(tensor.isfinite().all()) for name, tensor in scan(tensors, plan, softplus=False).items()}

    return case


def twice() -> dict[str, bool]:
    first, second = (scan(arguments(), SPLIT) for _ in range(2))
    return {name: torch.equal(first[name], second[name]) for name in first}


def half() -> dict[str, Any]:
    tensors = {name: tensor.bfloat16() for name, tensor in arguments(length=5).items()}
    found = scan(tensors, SPLIT)
    full = scan({name: tensor.float() for name, tensor in tensors.items()}, SPLIT)
    types = {str(tensor.dtype) for name, tensor in found.items() if name != "last_state"}
    return {"types": sorted(types), "errors": relative_errors(found, full)}


def layout() -> dict[str, Any]:
    tensors = channels_last(arguments(batch=2))
    inputs = ScanArguments(**tensors, delta_softplus=True)
    y, last_state, carries = scan_triton.triton_forward(inputs, keep=False)
    kept = scan_triton.triton_forward(inputs, keep=True)[2]
    channels, states = tensors["A"].shape
    shape = (2, -(-tensors["u"].shape[2] // scan_triton.STEPS_PER_CARRY), states, channels)
    return {
        "y is laid out as empty_like(u)": y.stride() == torch.empty_like(tensors["u"]).stride(),
        "last_state is contiguous": last_state.is_contiguous() and last_state.dtype == torch.float32,
        "carries are empty unless kept": tuple(carries.shape) == (0,) and tuple(kept.shape) == shape,
    }


# Every flag and form in both plans, one step, complete and partial chunks, more chunks than one tile of the carry.
ACCURACY: dict[str, Case] = {
    "split, no flags, complete chunks": against_reference(SPLIT, False, optional=(), length=32),
    "split, all flags": against_reference(SPLIT),
    "split, z, 1 state": against_reference(SPLIT, optional=("z",), states=1),
    "split, B and C constant, partial blocks": against_reference(
        SPLIT, False, optional=("D", "delta_bias"), channels=5, B="constant", C="constant"
    ),
    "split, B and C grouped": against_reference(SPLIT, B="grouped", C="grouped", channels=6),
    "split, three tiles of chunks": against_reference(SPLIT, length=65),
    "split, channels last, batch": against_reference(LONG_SPLIT, strided=True, batch=2, length=34, states=2),
    "split, 1 step": against_reference(SPLIT, length=1),
    "one pass, no flags": against_reference(ONE_PASS, optional=(), length=15),
    "one pass, all flags, partial blocks": against_reference(ONE_PASS, False, channels=9),
    "one pass, B grouped": against_reference(ONE_PASS, strided=True, B="grouped", channels=4),
    "one pass, C constant": against_reference(ONE_PASS, C="constant"),
}
EXTREME: dict[str, Case] = {name: extreme(SPLIT, *values) for name, values in EXTREMES.items()}
OTHER: dict[str, Case] = {"half": half, "layout": layout, "twice": twice}


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, Any]]:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__], capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


linux = pytest.mark.skipif(sys.platform != "linux", reason="accelerator: triton exists only for Linux")


@linux
@pytest.mark.parametrize("case", ACCURACY)
def test_kernels_equal_the_reference(interpreted, case):
    assert {name: error for name, error in interpreted[case].items() if not error < 1} == {}
    assert {"y", "last_state", "gradient of u", "gradient of A", "gradient of C"} <= set(interpreted[case])


@linux
@pytest.mark.parametrize("case", EXTREME)
def test_extreme_decay_gives_finite_values_and_gradients(interpreted, case):
    assert [name for name, finite in interpreted[case].items() if not finite] == []


@linux
def test_two_runs_give_the_same_bits(interpreted):
    assert all(interpreted["twice"].values())


@linux
def test_half_types_are_computed_in_float32_and_returned_in_their_own(interpreted):
    unit = torch.finfo(torch.bfloat16).eps  # the interpreter may truncate where a device rounds
    errors = interpreted["half"]["errors"]
    assert interpreted["half"]["types"] == ["torch.bfloat16"]
    assert errors.pop("last_state") == 0
    assert max(errors.values()) < unit


@linux
def test_results_have_the_layout_of_the_operator(interpreted):
    assert all(interpreted["layout"].values()), interpreted["layout"]


@linux
def test_kernels_are_imported_at_first_use_only(interpreted):
    assert interpreted["before first use"] == {"kernels": False}


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [((2, 64, 917_504), 3584), ((4, 640, 1120), 18), ((2, 560, 320), 1), ((64, 5000, 100_000), 1), ((1, 1, 1), 1)],
)
def test_plan_splits_long_scans_that_do_not_fill_the_device(shape, chunks):
    plan = scan_triton._plan(*shape, multiprocessors=132)
    assert -(-shape[-1] // plan.chunk_steps) == chunks
    assert plan.chunk_steps % 16 == 0


@pytest.mark.gpu
@pytest.mark.parametrize("order", ["channels first", "channels last"])
@pytest.mark.parametrize("shape", [(2, 64, 20_011), (1, 100, 4_500), (2, 560, 320)])
def test_kernels_equal_the_torch_backend_at_full_size(shape, order):
    batch, channels, length = shape
    tensors = arguments(batch=batch, channels=channels, states=16, length=length)
    tensors = {
        name: tensor.cuda()
        for name, tensor in (channels_last(tensors) if order == "channels last" else tensors).items()
    }

    def by_torch(scan: ScanArguments) -> Any:
        return selective_scan(**scan.tensors(), delta_softplus=True, return_last_state=True, backend="torch")

    errors = relative_errors(scan(tensors, None), exact(tensors, by_torch))
    # States decay within about a hundred steps, so the error does not grow with the length.
    assert {name: error for name, error in errors.items() if not error < 1e-6} == {}


if __name__ == "__main__":
    results: dict[str, Any] = {"before first use": {"kernels": "uumamba.ops.triton_kernels" in sys.modules}}
    results |= {name: case() for name, case in (ACCURACY | EXTREME | OTHER).items()}
    print(json.dumps(results))
