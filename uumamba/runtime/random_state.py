"""The global random generators' states: dropout and anything else that draws from them goes on where it stopped."""

import random
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """States of Python's, NumPy's and torch's generators, and of ``device``'s own, as tensors and numbers."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached_gauss = np.random.get_state(legacy=True)  # noqa: NPY002 the global one
    return {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached_gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Bring every generator to a state of :func:`random_state`; another device's own is left as it is.

    Example:
        >>> cpu = torch.device("cpu")
        >>> before = random_state(cpu)
        >>> drawn = torch.rand(1), random.random(), np.random.rand()
        >>> set_random_state(before, cpu)
        >>> (torch.rand(1), random.random(), np.random.rand()) == drawn
        True
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, position, has_gauss, cached_gauss = state["numpy"]
    legacy = (kind, keys.numpy().astype(np.uint32), position, has_gauss, cached_gauss)
    np.random.set_state(legacy)  # noqa: NPY002 the global generator is what was kept
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
