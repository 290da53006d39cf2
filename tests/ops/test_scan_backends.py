"""Automatic choice of the backend and missing requirements."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from uumamba.ops import (
    automatic_backend,
    native_library,
    scan_backends,
    scan_mamba_ssm,
    scan_problems,
    selective_scan,
)
from uumamba.ops.scan_arguments import ScanArguments
from uumamba.ops.scan_backends import SCAN_BACKENDS, describe_fallback


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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "extension is not built"),
        (b"", "cannot be loaded (.*file too short)"),
        (b"\x7fELF" + bytes(5000), "cannot be loaded (.*)"),
        (Path(native_library._find_openmp()), "of another version, without instruction_set; install uumamba again"),
    ],
    ids=["absent", "empty", "of another machine", "of another version"],
)
def test_without_a_usable_library_the_scan_is_torchs_with_the_same_result_and_the_reason(
    scan_arguments, monkeypatch, tmp_path, content, reason
):
    arguments = scan_arguments(batch=1, length=40, dtype=torch.float32)
    with_library = selective_scan(**arguments)
    if content is not None:
        stored = content if isinstance(content, bytes) else content.read_bytes()
        (tmp_path / "_scan_native.so").write_bytes(stored)
    monkeypatch.setattr(native_library, "__file__", str(tmp_path / "native_library.py"))
    library, problem = native_library._load()
    monkeypatch.setattr(native_library, "_LIBRARY", library)
    monkeypatch.setattr(native_library, "_PROBLEM", problem)
    assert automatic_backend("cpu", torch.float32) == "torch"
    torch.testing.assert_close(selective_scan(**arguments), with_library)
    assert re.search(reason, describe_fallback("cpu"))


@pytest.mark.parametrize(
    ("present", "absent", "named"),
    [
        ([], ["triton", "mamba_ssm"], ["triton: removed", "mamba_ssm: removed"]),
        (["mamba_ssm"], ["triton"], None),
        (["triton"], ["mamba_ssm"], None),
    ],
)
def test_a_fallback_on_a_gpu_names_each_missing_kernel(available, present, absent, named):
    for name in (*present, *absent):
        available(name, name in present)
    fallback = describe_fallback("cuda")
    assert (fallback is None) == (named is None)
    assert all(each in fallback for each in named or [])


def test_mamba_ssm_refuses_a_last_state_with_a_gradient(scan_arguments, refused):
    scan = ScanArguments(**scan_arguments(requires_grad=True), return_last_state=True)
    with refused("return_last_state", got=True):
        scan_mamba_ssm.mamba_ssm_scan(scan)
