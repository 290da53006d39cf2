"""Tests of device names."""

from typing import Any

import pytest
import torch

from uumamba.runtime.devices import resolve_device, resolve_devices


@pytest.mark.parametrize(
    ("count", "names", "resolved", "absent"),
    [
        (2, "auto, cpu,cuda,cuda:0,cuda:1", "cuda,cpu,cuda,cuda:0,cuda:1", ("cuda:2", "cuda:x", "tpu", "")),
        (0, "auto", "cpu", ("cuda", "cuda:0")),
    ],
)
def test_only_devices_of_this_machine_are_resolved(
    monkeypatch: pytest.MonkeyPatch, refused: Any, count: int, names: str, resolved: str, absent: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert resolve_devices(names) == resolved
    for name in absent:
        with refused("--device", got=name):
            resolve_device(name)
