"""Random numbers: seeds by key, and the states of the global generators.

Every draw comes from a generator keyed by its subject, not by earlier draws; only network initialisation and dropout
use the global generators.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def key_to_seed(*key: int | str) -> int:
    """Hash a key to a seed in ``[0, 2**63)``.

    An example of a key is ``(seed, epoch, sample_index)``.

    Equal keys give equal seeds on every machine and Python version; neighbouring keys give unrelated ones.

    Example:
        >>> key_to_seed(0, 1, 2) == key_to_seed(0, 1, 2)
        True
        >>> key_to_seed(0, 1, 2) == key_to_seed(0, 12)
        False
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little") >> 1


def generator_for(*key: int | str) -> torch.Generator:
    """Return a CPU generator seeded by ``key_to_seed(*key)``."""
    return torch.Generator().manual_seed(key_to_seed(*key))


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(key_to_seed(seed, "python"))
    np.random.seed(key_to_seed(seed, "numpy") % 2**32)
    torch.manual_seed(key_to_seed(seed, "torch"))


@contextmanager
def preserve_random_state(devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Run a block and restore the global random generators afterwards.

    These are the generators of Python, NumPy and torch; they are restored also after an error.

    Args:
        devices: CUDA devices among them are restored too; the CPU always is.

    Example:
        >>> with preserve_random_state():
        ...     drawn = random.random(), np.random.rand(), torch.rand(1)
        >>> (random.random(), np.random.rand(), torch.rand(1)) == drawn
        True
    """
    state = get_random_state(torch.device("cpu"))
    try:
        with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
            yield
    finally:
        set_random_state(state, torch.device("cpu"))


def get_random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of all random generators.

    These are the generators of Python, NumPy, torch and ``device``. The state holds tensors and plain values.
    """
    version, words, gauss = random.getstate()
    kind, keys, *position = np.random.get_state(legacy=True)
    return {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *position],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore all random generators to a stored state.

    A CUDA state is restored on a CUDA device only.

    Example:
        >>> cpu = torch.device("cpu")
        >>> before = get_random_state(cpu)
        >>> drawn = torch.rand(1), random.random(), np.random.rand()
        >>> set_random_state(before, cpu)
        >>> (torch.rand(1), random.random(), np.random.rand()) == drawn
        True
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, *position = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *position))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
