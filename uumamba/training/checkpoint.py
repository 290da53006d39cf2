"""Checkpoint of a run in one file: safetensors and JSON with a checksum, no pickle."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from uumamba.runtime.errors import UumambaError, require
from uumamba.runtime.files import report_write_errors, whole_file
from uumamba.runtime.tree import flatten, unflatten

FORMAT = "uumamba checkpoint 1"


class DamagedCheckpointError(UumambaError):
    """A checkpoint that is truncated or altered."""


@dataclass(frozen=True)
class Checkpoint:
    """State of a run between two optimizer steps.

    Attributes:
        net: state dict of the network.
        ema: state dict of its moving average, if there is one.
        objective: state dict of the objective, such as learned loss weights; empty for a plain function.
        optimizer: state dict of the optimizer, its base and scaler included.
        scheduler: state dict of the learning rate schedule, if there is one.
        random: states of the random generators; tensors stay on the CPU.
        progress: epochs and steps done, best Dice, sums of the current epoch.
        config: the run's resolved configuration, as JSON values.
        method: state of a domain-generalization method; empty without one, and in files that are older than methods.
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


def save_checkpoint(
    path: Path | str, checkpoint: Checkpoint, *, before_replacing: Callable[[], None] | None = None
) -> None:
    """Write a checkpoint that is whole or absent, whenever the process dies.

    Args:
        path: the file, replaced in one move.
        checkpoint: its tensors are copied to the CPU, so tied ones are stored twice.
        before_replacing: called when the new file is complete on the disk and the old one is still in place.

    Raises:
        UumambaError: the disk is full or the file cannot be written; an old file is unchanged.
        UsageError: a part is neither tensor nor JSON value.
    """
    tree = {each.name: getattr(checkpoint, each.name) for each in fields(Checkpoint)}
    tensors, rest = flatten(tree, "checkpoint")
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    state = json.dumps(rest)
    metadata = {"format": FORMAT, "state": state, "sha256": _checksum(tensors, state)}
    with report_write_errors(path), whole_file(path, before_replacing=before_replacing) as unfinished:
        try:
            save_file(tensors, unfinished, metadata=metadata)
        except SafetensorError as error:  # its only way to report a full disk
            raise OSError(str(error)) from error


def read_checkpoint(path: Path | str, *, map_location: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint and check every byte.

    Args:
        path: a file of :func:`save_checkpoint`.
        map_location: device of network, average and objective; the rest stays on the CPU, from where optimizers move
            their state themselves.

    Raises:
        UsageError: there is no such file, or it is no checkpoint of ours.
        DamagedCheckpointError: it is truncated or altered.
    """
    path = Path(path)
    require(path.is_file(), str(path), got="no file", expected="a checkpoint", fix="train first, or give another path")
    is_ours, problem = path.suffix == ".safetensors", "its checksum does not fit its content"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            is_ours = not metadata.keys().isdisjoint({"state", "sha256"})
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        if metadata["format"] == FORMAT and metadata["sha256"] == _checksum(tensors, metadata["state"]):
            checkpoint = Checkpoint(**unflatten(tensors, json.loads(metadata["state"])))
            parts: dict[str, Any] = {
                name: _move(getattr(checkpoint, name), map_location) for name in ("net", "ema", "objective")
            }
            return replace(checkpoint, **parts)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        problem = f"it cannot be read: {error}"
    require(
        is_ours,
        str(path),
        got="a file of another kind",
        expected="a checkpoint of uumamba",
        fix="give a run folder, a fold's folder, or the last.safetensors in it",
    )
    raise DamagedCheckpointError(
        f"The checkpoint {path} is damaged ({problem}); take previous.safetensors or best.safetensors beside it."
    )


def _checksum(tensors: Mapping[str, Tensor], state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _move(state: Mapping[str, Any] | None, device: torch.device | str) -> dict[str, Any] | None:
    if state is None:
        return None
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in state.items()}
