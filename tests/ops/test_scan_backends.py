"""Automatic choice of the backend and missing requirements."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from uumamba.ops import automatic_backend, scan_backends, scan_mamba_ssm, scan_problems, selective_scan
from uumamba.ops.scan_arguments import ScanArguments
from uumamba.ops.scan_backends import SCAN_BACKENDS


@pytest.fixture
def available(monkeypatch):
    """Make a backend available or unavailable."""

    def change(name, is_available):
        problem = None if is_available else "removed by the test"
        monkeypatch.setitem(SCAN_BACKENDS, name, replace(SCAN_BACKENDS[name], find_missing=lambda: problem))

    return change


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
def test_automatic_choice_follows_device_type_and_availability(available, device, dtype, present, absent, expected):
    for name in (*present, *absent):
        available(name, name in present)
    assert automatic_backend(device, dtype) == expected


def test_every_backend_either_runs_or_has_a_reason():
    assert sorted([*scan_backends(), *scan_problems()]) == sorted(SCAN_BACKENDS)
    assert set(SCAN_BACKENDS) == {"reference", "torch", "native", "triton", "mamba_ssm"}


@pytest.mark.parametrize(
    ("backend", "is_available", "dtype"),
    [
        ("native", False, torch.float32),
        ("native", True, torch.float64),  # computes only in float32
        ("triton", True, torch.float32),  # tensors are on the CPU
        ("cuda", None, torch.float32),
    ],
)
def test_unusable_backend_is_refused(scan_arguments, available, refused, backend, is_available, dtype):
    if is_available is not None:
        available(backend, is_available)
    with refused("backend", got=backend):
        selective_scan(**scan_arguments(dtype=dtype), backend=backend)


def test_mamba_ssm_needs_its_compiled_extension(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)
    assert "selective_scan_cuda" in scan_mamba_ssm.find_missing_mamba_ssm()
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", ModuleType("selective_scan_cuda"))
    assert scan_mamba_ssm.find_missing_mamba_ssm() is None


def test_mamba_ssm_refuses_a_last_state_with_a_gradient(scan_arguments, refused):
    scan = ScanArguments(**scan_arguments(requires_grad=True), return_last_state=True)
    with refused("return_last_state", got=True):
        scan_mamba_ssm.mamba_ssm_scan(scan)
