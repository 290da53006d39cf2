"""Devices by name, among those that torch finds."""

from typing import Any

import pytest
import torch

from uumamba.runtime.devices import resolve_device, resolve_devices


@pytest.fixture
def two_cuda_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_cuda_devices")
def test_names_stand_for_devices_that_are_there(refused: Any) -> None:
    assert resolve_devices("auto, cpu,cuda,cuda:0,cuda:1") == "cuda,cpu,cuda,cuda:0,cuda:1"
    for name in ("cuda:2", "cuda:x", "tpu", ""):
        with refused("--device", got=name):
            resolve_device(name)


def test_without_cuda_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch, refused: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    for name in ("cuda", "cuda:0"):
        with refused("--device", got=name):
            resolve_device(name)
