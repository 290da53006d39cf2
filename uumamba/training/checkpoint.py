"""Checkpoint file: safetensors and JSON with a checksum, no pickle."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.files import find_read_fix, open_regular, report_write_errors, whole_file
from uumamba.runtime.network import batch_to_device
from uumamba.runtime.tree import flatten, unflatten

FORMAT = "uumamba checkpoint 1"
PART_TYPES = {"net": dict, "ema": dict | None, "objective": dict, "optimizer": dict, "random": dict, "progress": dict}


class DamagedCheckpointError(UsageError):
    """Error of a checkpoint that is truncated or altered."""


@dataclass(frozen=True)
class Checkpoint:
    """State of a run between two optimizer steps.

    Attributes:
        net: state dict of the network.
        ema: state dict of the network's moving average, or None.
        objective: state dict of the objective, such as learned loss weights; empty for a plain function.
        optimizer: state dict of the optimizer, with its base and scaler.
        scheduler: state dict of the learning rate schedule, or None.
        random: states of the random generators; tensors stay on the CPU.
        progress: epochs and steps done, best Dice, sums of the current epoch.
        config: resolved configuration of the run, as JSON values.
        method: state of a domain-generalization method; empty without a method and in files of older versions.
        observers: states of observers by their keys; not in the file if empty.
    """

    net: dict[str, Any]
    ema: dict[str, Any] | None
    objective: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None
    random: dict[str, Any]
    progress: dict[str, Any]
    config: Any
    method: dict[str, Any] = field(default_factory=dict)
    observers: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    path: Path | str, checkpoint: Checkpoint, *, before_replacing: Callable[[], None] | None = None
) -> None:
    """Write a checkpoint atomically: complete or absent after a kill.

    Args:
        path: the file, replaced in one move.
        checkpoint: its tensors are copied to the CPU, so tied tensors are stored twice.
        before_replacing: called when the new file is complete on the disk and the old file still exists.

    Raises:
        UumambaError: the disk is full or the file cannot be written; an old file is unchanged.
        UsageError: a part is neither tensor nor JSON value.
    """
    parts = {name: part for name, part in vars(checkpoint).items() if part or name != "observers"}
    tensors, rest = flatten(parts, "checkpoint")
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    state = json.dumps(rest)
    metadata = {"format": FORMAT, "state": state, "sha256": _checksum(tensors, state)}
    with report_write_errors(path), whole_file(path, before_replacing=before_replacing) as unfinished:
        try:
            save_file(tensors, unfinished, metadata=metadata)
        except SafetensorError as error:  # its only way to report a full disk
            raise OSError(str(error)) from error


def read_checkpoint(path: Path | str, *, map_location: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint and verify its checksum.

    Args:
        path: a file of :func:`save_checkpoint`.
        map_location: device of network, average and objective; the rest stays on the CPU, from where optimizers move
            their state themselves.

    Raises:
        UsageError: the file is missing or of another kind.
        DamagedCheckpointError: the file is truncated or altered.
    """
    path = Path(path)
    try:
        open_regular(path).close()
    except (FileNotFoundError, NotADirectoryError):
        fix = "train first, or give another path"
        raise UsageError(str(path), got="no file", expected="a checkpoint", fix=fix) from None
    except OSError as error:
        fix = find_read_fix(error, otherwise="give another path")
        raise UsageError(str(path), got=error.strerror, expected="a checkpoint", fix=fix) from None
    is_checkpoint, problem = path.suffix == ".safetensors", "wrong checksum"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            is_checkpoint = not metadata.keys().isdisjoint({"state", "sha256"})
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        if metadata["format"] == FORMAT and metadata["sha256"] == _checksum(tensors, metadata["state"]):
            parts = unflatten(tensors, json.loads(metadata["state"]))
            for name, kind in PART_TYPES.items():
                require(isinstance(parts[name], kind), name, got=type(parts[name]).__name__, expected="a mapping")
            for name in ("net", "ema", "objective"):
                parts[name] = parts[name] and batch_to_device(parts[name], map_location)
            return Checkpoint(**parts)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = str(error)
    require(
        is_checkpoint,
        str(path),
        got="a file of another kind",
        expected="a checkpoint of uumamba",
        fix="give a run folder, a fold's folder, or a file last.safetensors",
    )
    raise DamagedCheckpointError(
        str(path),
        got=f"a damaged file ({problem})",
        expected="a complete checkpoint",
        fix="use previous.safetensors or best.safetensors in the same folder",
    )


def _checksum(tensors: Mapping[str, Tensor], state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
