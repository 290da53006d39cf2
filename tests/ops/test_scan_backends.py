"""Which backend is taken where, and what is said of those that cannot run."""

import sys
from types import ModuleType

import pytest
import torch

from uumamba.ops import automatic_backend, scan_backends, scan_mamba_ssm, scan_problems, selective_scan
from uumamba.ops.scan_arguments import ScanArguments
from uumamba.ops.scan_backends import SCAN_BACKENDS


@pytest.fixture
def taken_away(monkeypatch):
    """Makes a backend say that it cannot run."""

    def take(name):
        backend = SCAN_BACKENDS[name]
        monkeypatch.setitem(
            SCAN_BACKENDS, name, type(backend)(backend.compute, lambda: "taken away", backend.device_type)
        )

    return take


@pytest.fixture
def given(monkeypatch):
    """Makes a backend say that it can run."""

    def give(name):
        backend = SCAN_BACKENDS[name]
        monkeypatch.setitem(SCAN_BACKENDS, name, type(backend)(backend.compute, lambda: None, backend.device_type))

    return give


@pytest.mark.parametrize(
    ("device", "dtype", "present", "absent", "expected"),
    [
        ("cpu", torch.float32, ["native"], [], "native"),
        ("cpu", torch.float32, [], ["native"], "torch"),
        ("cpu", torch.float64, ["native"], [], "torch"),
        ("cuda", torch.float32, ["native", "triton", "mamba_ssm"], [], "triton"),
        ("cuda", torch.float32, ["mamba_ssm"], ["triton"], "mamba_ssm"),
        ("cuda", torch.float64, ["triton", "mamba_ssm"], [], "torch"),
        ("meta", torch.float32, ["native", "triton"], [], "torch"),
    ],
)
def test_automatic_choice_goes_by_device_type_and_what_can_run(
    given, taken_away, device, dtype, present, absent, expected
):
    for name in present:
        given(name)
    for name in absent:
        taken_away(name)
    assert automatic_backend(device, dtype) == expected


def test_every_backend_either_runs_here_or_says_why_not():
    assert sorted([*scan_backends(), *scan_problems()]) == sorted(SCAN_BACKENDS)
    assert all(problem and problem[-1] != "." for problem in scan_problems().values())


def test_backend_that_cannot_run_here_is_refused_with_the_reason(scan_arguments, taken_away):
    taken_away("native")
    with pytest.raises(RuntimeError, match="backend 'native' cannot run here: taken away"):
        selective_scan(**scan_arguments(dtype=torch.float32), backend="native")


def test_float64_is_refused_where_arithmetic_is_float32(scan_arguments, given):
    given("native")
    with pytest.raises(ValueError, match='it computes in float32, and float64 was given; use backend="torch"'):
        selective_scan(**scan_arguments(), backend="native")


def test_wrong_device_is_refused_for_a_backend_of_another(scan_arguments):
    with pytest.raises(ValueError, match="'triton' cannot take these arguments: it runs on cuda, and u is on cpu"):
        selective_scan(**scan_arguments(dtype=torch.float32), backend="triton")


def test_package_of_mamba_ssm_without_its_kernel_is_not_enough(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(scan_mamba_ssm, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)
    assert "without its compiled selective_scan_cuda" in scan_mamba_ssm.unavailable()
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", ModuleType("selective_scan_cuda"))
    assert scan_mamba_ssm.unavailable() is None


def test_mamba_ssm_refuses_a_last_state_whose_gradient_it_would_drop(scan_arguments):
    scan = ScanArguments(**scan_arguments(requires_grad=True), return_last_state=True)
    with pytest.raises(ValueError, match="mamba_ssm drops the gradient of the last state"):
        scan_mamba_ssm.mamba_ssm_scan(scan)


def test_names_are_those_of_the_table():
    assert set(scan_backends()) <= {"reference", "torch", "native", "triton", "mamba_ssm"}
