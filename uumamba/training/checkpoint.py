"""One file that holds everything a run needs to go on: safetensors and JSON, checked by a checksum, no pickle."""

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

from uumamba.runtime.errors import UsageError, UumambaError
from uumamba.runtime.files import room_for, whole_file
from uumamba.runtime.tree import flatten, unflatten

FORMAT = "uumamba checkpoint 1"


class DamagedCheckpointError(UumambaError):
    """A checkpoint that is truncated or altered."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two optimizer steps.

    Attributes:
        net: the network's state dict.
        ema: that of its moving average; None where none is kept.
        objective: that of the objective, such as learned loss weights; empty for a plain function.
        optimizer: that of the optimizer, its base and scaler included.
        scheduler: that of the learning rate's schedule; None without one.
        random: states of the random generators; tensors stay on the CPU.
        progress: epochs and steps done, best Dice, sums of the epoch under way.
        config: the run's resolved configuration, as JSON values.
        method: the state of what a method adds to each step; empty without, and in files from before there were any.
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
        checkpoint: what to keep; its tensors are copied to the CPU, so tied ones are stored twice.
        before_replacing: called when all of the new file is on the disk and the old one still stands.

    Raises:
        UumambaError: the disk is full or the file cannot be written; an old file is as it was.
        TypeError: a part is neither tensor nor JSON value.
    """
    tree = {each.name: getattr(checkpoint, each.name) for each in fields(Checkpoint)}
    tensors, rest = flatten(tree, "checkpoint")
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    state = json.dumps(rest)
    metadata = {"format": FORMAT, "state": state, "sha256": _checksum(tensors, state)}
    with room_for(path), whole_file(path, before_replacing=before_replacing) as unfinished:
        try:
            save_file(tensors, unfinished, metadata=metadata)
        except SafetensorError as error:  # its only way to say that the disk is full
            raise OSError(str(error)) from error


def read_checkpoint(path: Path | str, *, map_location: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint and check that every byte is as it was written.

    Args:
        path: a file of :func:`save_checkpoint`.
        map_location: where network, average and objective go; the rest stays on the CPU, from where optimizers fetch
            their state themselves.

    Raises:
        UsageError: there is no such file, or it is not one of ours.
        DamagedCheckpointError: it is truncated or altered.
    """
    if not Path(path).is_file():
        raise UsageError(f"There is no checkpoint {path}; train first, or give another path.")
    try:
        tensors, metadata = _read(path)
    except (SafetensorError, OSError, ValueError) as error:
        if Path(path).suffix != ".safetensors":
            raise _not_ours(path) from None
        raise _damaged(path, f"it cannot be read: {error}") from error
    if not {"state", "sha256"} & metadata.keys():
        raise _not_ours(path)
    try:
        checkpoint = Checkpoint(**unflatten(tensors, json.loads(metadata["state"])))
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"it cannot be read: {error}") from error
    if metadata.get("format") != FORMAT or metadata.get("sha256") != _checksum(tensors, metadata["state"]):
        raise _damaged(path, "its checksum does not fit its content")
    return replace(
        checkpoint,
        net=_moved(checkpoint.net, map_location),
        ema=None if checkpoint.ema is None else _moved(checkpoint.ema, map_location),
        objective=_moved(checkpoint.objective, map_location),
    )


def _read(path: Path | str) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, file.metadata() or {}


def _checksum(tensors: Mapping[str, Tensor], state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _moved(state: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in state.items()}


def _not_ours(path: Path | str) -> UsageError:
    return UsageError(
        f"{path} is no checkpoint of uumamba; give a run folder, a fold's folder, or the last.safetensors in it."
    )


def _damaged(path: Path | str, problem: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"The checkpoint {path} is damaged ({problem}); take previous.safetensors or best.safetensors beside it."
    )
