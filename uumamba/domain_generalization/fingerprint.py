"""Whether two passes saw the same tensors in the same order, told by a short text."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class Fingerprint:
    """A hash of tensors, one sample at a time: values, types, shapes and order count, the cut into batches does not.

    Example:
        >>> import torch
        >>> whole, halves, turned = Fingerprint(), Fingerprint(), Fingerprint()
        >>> whole.add(torch.arange(4))
        >>> for half in torch.arange(4).split(2):
        ...     halves.add(half)
        >>> turned.add(torch.arange(4).flip(0))
        >>> whole.text() == halves.text(), whole.text() == turned.text()
        (True, False)
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, samples: Tensor) -> None:
        """Go on with the samples of a batch, ``(batch, ...)``."""
        head = f"{samples.dtype} {tuple(samples.shape[1:])};".encode()
        for sample in samples.detach().cpu():
            self._hash.update(head)
            self._hash.update(_bytes_of(sample))

    def text(self) -> str:
        """64 hexadecimal digits for all that was added."""
        return self._hash.hexdigest()


def fingerprint_of_pairs(pairs: Iterable[tuple[Tensor, Tensor]]) -> str:
    """One text for batches of images and labels; see :class:`Fingerprint`."""
    images, labels = Fingerprint(), Fingerprint()
    for image, label in pairs:
        images.add(image)
        labels.add(label)
    return joined(images, labels)


def joined(*parts: Fingerprint) -> str:
    """One text for several."""
    return hashlib.sha256(" ".join(part.text() for part in parts).encode()).hexdigest()


def fingerprint_of_state(state: Mapping[str, Tensor]) -> str:
    """One text for the names and values of a ``state_dict``; what is no tensor in it does not count."""
    whole = hashlib.sha256()
    for name, value in state.items():
        if isinstance(value, Tensor):
            whole.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            whole.update(_bytes_of(value.detach().cpu()))
    return whole.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
