"""Checkpoints are restored exactly or reported as damaged; no code is run."""

import hashlib
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from uumamba.runtime.errors import UumambaError
from uumamba.training import Checkpoint, DamagedCheckpointError, read_checkpoint, save_checkpoint
from uumamba.training.checkpoint import FORMAT

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
WEIGHT = {"weight": torch.arange(8.0)}


def checkpoint(**parts: Any) -> Checkpoint:
    empty = dict.fromkeys(("ema", "scheduler")) | {
        name: {} for name in ("net", "objective", "optimizer", "random", "progress", "config")
    }
    return Checkpoint(**empty | parts)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "last.safetensors", checkpoint(net=WEIGHT, config={"name": "a"}))
    return tmp_path / "last.safetensors"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_dtype_are_restored_bit_for_bit(path: Path, dtype: torch.dtype) -> None:
    matrix = torch.arange(6).reshape(2, 3).to(dtype)
    number, empty = torch.ones((), dtype=dtype), torch.ones(0, 3, dtype=dtype)
    net = {"matrix": matrix, "number": number, "empty": empty, "turned": matrix.t(), "tied": matrix}
    save_checkpoint(path, checkpoint(net=net))
    found = read_checkpoint(path).net
    assert found.keys() == net.keys()
    for name, tensor in net.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)


def test_every_changed_byte_is_detected(path: Path) -> None:
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        try:
            found = read_checkpoint(path)
        except DamagedCheckpointError:
            continue
        # Spaces after the header are padding of safetensors.
        assert whole[position : position + 1] == b" ", position
        assert torch.equal(found.net["weight"], WEIGHT["weight"])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_reported_as_damaged(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DamagedCheckpointError, match=r"last.safetensors: got a damaged file"):
        read_checkpoint(path)


class Canary:
    """Object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_under_the_name_of_a_checkpoint_is_not_run(path: Path) -> None:
    canary = path.parent / "touched"
    torch.save({"weight": Canary(canary)}, path)
    for content in (path.read_bytes(), pickle.dumps(Canary(canary))):
        path.write_bytes(content)
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(path)
    assert not canary.exists()


def test_a_missing_file_and_files_of_other_kinds_are_refused(tmp_path: Path, refused: Any) -> None:
    save_file({"weight": torch.ones(1)}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    (tmp_path / "tiny.yaml").write_text("name: tiny\n")
    for name, got in (("none", "no file"), ("a.safetensors", "another kind"), ("tiny.yaml", "another kind")):
        with refused(str(tmp_path / name)) as error:
            read_checkpoint(tmp_path / name)
        assert got in error.value.got


def test_a_full_disk_is_reported_and_the_old_file_is_unchanged(path: Path) -> None:
    # A limit of 10 kB on the size of files stands in for a full disk.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(UumambaError, match=r"last\.safetensors could not be written"):
            save_checkpoint(path, checkpoint(net={"weight": torch.zeros(100_000)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(read_checkpoint(path).net["weight"], WEIGHT["weight"])
    assert list(path.parent.iterdir()) == [path]


def test_weights_are_loaded_on_the_requested_device(path: Path) -> None:
    save_checkpoint(path, checkpoint(net=WEIGHT, ema=WEIGHT, objective=WEIGHT, random=WEIGHT))
    found = read_checkpoint(path, map_location="meta")
    assert found.ema is not None
    assert {part["weight"].device.type for part in (found.net, found.ema, found.objective)} == {"meta"}
    assert found.random["weight"].device.type == "cpu"


@pytest.mark.parametrize("kind", ["unreadable", "FIFO", "folder"])
def test_a_file_that_may_not_be_opened_is_not_called_damaged(path: Path, kind: str) -> None:
    reasons = {"unreadable": "Permission denied.*chmod", "FIFO": "a FIFO, not a reg", "folder": "a folder, not a reg"}
    if kind == "unreadable":
        for parent in [path.parent, *path.parents[1:-2]]:
            parent.chmod(0o755)
        path.chmod(0)
    else:
        path.unlink()
        os.mkfifo(path) if kind == "FIFO" else path.mkdir()
    user = as_nobody() if kind == "unreadable" else nullcontext()
    with user, pytest.raises(UumambaError, match=reasons[kind]) as error:
        read_checkpoint(path)
    assert not isinstance(error.value, DamagedCheckpointError)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Become the user nobody, because permissions do not bind root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("state", ["[" * 100_000, "[]", '{"net": []}', '{"net": {}, "progress": 3}'])
def test_a_valid_checksum_of_a_foreign_state_is_a_typed_error(path: Path, state: str) -> None:
    metadata = {"format": FORMAT, "state": state, "sha256": hashlib.sha256(state.encode()).hexdigest()}
    save_file({}, path, metadata=metadata)
    with pytest.raises(DamagedCheckpointError, match=r"last\.safetensors: got a damaged file"):
        read_checkpoint(path)
