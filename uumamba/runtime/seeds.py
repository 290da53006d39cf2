"""Seeds: every random draw comes from a generator keyed by what is drawn, not by what was drawn before."""

import hashlib
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


def key_to_seed(*key: int | str) -> int:
    """Hash a key, such as ``(seed, epoch, sample_index)``, to a seed in ``[0, 2**63)``.

    Equal keys give equal seeds on every machine and Python version; neighbouring keys give unrelated ones.

    Example:
        >>> key_to_seed(0, 1, 2) == key_to_seed(0, 1, 2)
        True
        >>> key_to_seed(0, 1, 2) == key_to_seed(0, 12)
        False
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by ``key_to_seed(*key)``."""
    return torch.Generator().manual_seed(key_to_seed(*key))


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (used by network initialisation and dropout alone)."""
    random.seed(key_to_seed(seed, "python"))
    np.random.seed(key_to_seed(seed, "numpy") % 2**32)
    torch.manual_seed(key_to_seed(seed, "torch"))


@contextmanager
def draws_put_back(devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Leaves Python's, NumPy's and torch's global generators as they were, whatever is drawn inside.

    Args:
        devices: of them, the CUDA ones' generators are put back too; the CPU's always is.

    Example:
        >>> with draws_put_back():
        ...     drawn = random.random(), np.random.rand(), torch.rand(1)
        >>> (random.random(), np.random.rand(), torch.rand(1)) == drawn
        True
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
