"""A checkpoint comes back as it was, or says that it is damaged; nothing in it is ever run."""

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uumamba.runtime.errors import UsageError
from uumamba.runtime.tree import flatten, unflatten
from uumamba.training import Checkpoint, DamagedCheckpointError, read_checkpoint, save_checkpoint

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def checkpoint(**parts: Any) -> Checkpoint:
    empty = dict.fromkeys(("ema", "scheduler")) | {
        name: {} for name in ("net", "objective", "optimizer", "random", "progress", "config")
    }
    return Checkpoint(**empty | parts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_type_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    net = {
        "matrix": torch.arange(6).reshape(2, 3).to(dtype),
        "number": torch.ones((), dtype=dtype),
        "empty": torch.ones(0, 3, dtype=dtype),
    }
    net["turned"] = net["matrix"].t()
    net["tied"] = net["matrix"]
    save_checkpoint(tmp_path / "a.safetensors", checkpoint(net=net))
    found = read_checkpoint(tmp_path / "a.safetensors").net
    assert found.keys() == net.keys()
    for name, tensor in net.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)


def test_the_state_of_an_optimizer_comes_back(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], betas=(0.8, 0.9))
    weight.sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "a.safetensors", checkpoint(optimizer=optimizer.state_dict()))
    found = read_checkpoint(tmp_path / "a.safetensors").optimizer
    assert found["param_groups"] == optimizer.state_dict()["param_groups"]
    assert torch.equal(found["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.text() | st.integers(0, 9)
trees = st.recursive(
    leaves,
    lambda part: (
        st.lists(part, max_size=3) | st.lists(part, max_size=3).map(tuple) | st.dictionaries(keys, part, max_size=3)
    ),
)


@given(trees)
def test_any_tree_of_plain_values_comes_back_through_json(tree: Any) -> None:
    import json

    tensors, rest = flatten(tree)
    assert tensors == {}
    assert unflatten(tensors, json.loads(json.dumps(rest))) == tree


def test_what_is_neither_tensor_nor_plain_value_is_refused_by_its_path() -> None:
    with pytest.raises(TypeError, match="state/config/0 is a set"):
        flatten({"config": [{1, 2}]})


def test_two_tensors_of_one_path_are_refused() -> None:
    with pytest.raises(ValueError, match="two tensors are called state/0"):
        flatten({0: torch.ones(1), "0": torch.ones(1)})


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, checkpoint(net={"weight": torch.arange(8.0)}, config={"name": "a"}))
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        try:
            found = read_checkpoint(path)
        except DamagedCheckpointError:
            continue
        # Spaces after the header are no content: safetensors fills up with them.
        assert whole[position : position + 1] == b" ", position
        assert torch.equal(found.net["weight"], torch.arange(8.0))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_damaged(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, checkpoint(net={"weight": torch.arange(8.0)}))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DamagedCheckpointError, match=r"a.safetensors is damaged \(it cannot be read"):
        read_checkpoint(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no checkpoint .*a.safetensors; train first"):
        read_checkpoint(tmp_path / "a.safetensors")


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_in_disguise_is_never_run(tmp_path: Path) -> None:
    path, canary = tmp_path / "a.safetensors", tmp_path / "touched"
    for content in (pickle.dumps(Canary(canary)), b"\x80\x02" + pickle.dumps(Canary(canary))):
        path.write_bytes(content)
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(path)
    torch.save({"weight": Canary(canary)}, path)
    with pytest.raises(DamagedCheckpointError):
        read_checkpoint(path)
    assert not canary.exists()


def test_a_safetensors_file_of_another_program_is_no_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(1)}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"a.safetensors is no checkpoint of uumamba; give a run folder"):
        read_checkpoint(tmp_path / "a.safetensors")


def test_a_file_of_another_kind_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text("name: tiny\n")
    with pytest.raises(UsageError, match=r"tiny.yaml is no checkpoint of uumamba; give a run folder"):
        read_checkpoint(tmp_path / "tiny.yaml")


SAVE_ON_A_FULL_DISK = """
import resource, sys
import torch
from uumamba.runtime.errors import UumambaError
from uumamba.training import Checkpoint, save_checkpoint

resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
parts = dict(ema=None, scheduler=None, objective={}, optimizer={}, random={}, progress={}, config={})
try:
    save_checkpoint(sys.argv[1], Checkpoint(net={"weight": torch.zeros(100_000)}, **parts))
except UumambaError as error:
    sys.exit(str(error))
"""


def test_a_full_disk_is_a_clear_error_and_the_old_file_stays_whole(tmp_path: Path) -> None:
    """In a process of its own, none of whose files may grow beyond 10 kB: a limit here would stop the test's log."""
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, checkpoint(net={"weight": torch.ones(10)}))
    command = [sys.executable, "-c", SAVE_ON_A_FULL_DISK, str(path)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 1
    assert re.search(r"last\.safetensors could not be written .*; make room", done.stderr)
    assert torch.equal(read_checkpoint(path).net["weight"], torch.ones(10))
    assert [found.name for found in tmp_path.iterdir()] == ["last.safetensors"]


def test_weights_are_read_to_the_device_that_is_asked_for(tmp_path: Path) -> None:
    weight = {"weight": torch.ones(1)}
    save_checkpoint(tmp_path / "a", checkpoint(net=weight, ema=weight, objective=weight, random=weight))
    found = read_checkpoint(tmp_path / "a", map_location="meta")
    assert found.ema is not None
    assert {part["weight"].device.type for part in (found.net, found.ema, found.objective)} == {"meta"}
    assert found.random["weight"].device.type == "cpu"
