"""Clients of decentralized training and their batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from uumamba.runtime.errors import require
from uumamba.runtime.options import PositiveInt, check_options
from uumamba.runtime.seeds import generator_for


@dataclass(frozen=True)
class Client:
    """Client with data of its own.

    Attributes:
        name: name of the client or site, which errors and tables show.
        batches: returns the batches of a round, given its number from 0: at least as many as there are local steps.
            Equal numbers give equal batches, whichever process asks.
        size: number of samples, the weight of the client in federated averaging.

    Example:
        >>> client = Client.from_tensors("A", torch.arange(4.0), batch_size=3)
        >>> batches = client.batches(0)
        >>> [len(next(batches)[0]) for _ in range(3)]  # the third one begins a new epoch
        [3, 1, 3]
    """

    name: str
    batches: Callable[[int], Iterable[Any]]
    size: int = 1

    def __post_init__(self) -> None:
        _check_name(self.name)
        require(
            callable(self.batches),
            "batches",
            got=type(self.batches).__name__,
            expected="a function of the round that returns batches",
            fix="use Client.from_tensors or Client.from_dataset",
        )

    @classmethod
    @check_options
    def from_tensors(cls, name: str, *tensors: Tensor, batch_size: PositiveInt = 32, seed: int = 0) -> "Client":
        """Return a client with samples in tensors.

        A batch is a tuple of tensors. Epochs follow each other without end, each in a new order. Orders are keyed by
        seed, name, round and epoch.

        Args:
            name: name of the client.
            tensors: tensors of the same length, such as images and labels.
            batch_size: samples of a batch; the last batch of an epoch may be smaller.
            seed: seed of the order.

        Raises:
            UsageError: there are no samples, or tensors have different lengths.
        """
        lengths = {len(tensor) for tensor in tensors}
        require(
            len(lengths) == 1 and 0 not in lengths,
            name,
            got=f"tensors of lengths {sorted(lengths)}",
            expected="tensors of one length above 0",
        )

        [size] = lengths

        def batches(round_number: int) -> Iterator[tuple[Tensor, ...]]:
            epoch = 0
            while True:
                order = torch.randperm(size, generator=_generator(seed, name, round_number, epoch))
                for chosen in order.split(batch_size):
                    yield tuple(tensor[chosen] for tensor in tensors)
                epoch += 1

        return cls(name, batches, size=size)

    @classmethod
    @check_options
    def from_dataset(
        cls,
        name: str,
        dataset: Dataset[Any] | Sequence[Any],
        *,
        batch_size: PositiveInt = 32,
        seed: int = 0,
        **options: Any,
    ) -> "Client":
        """Return a client with a map-style data set, read by a DataLoader.

        Args:
            name: name of the client.
            dataset: samples.
            batch_size: samples of a batch.
            seed: seed of the order, keyed as in :meth:`from_tensors`.
            options: other options of the DataLoader, such as ``collate_fn`` and ``num_workers``.

        Raises:
            UsageError: there are no samples.
        """
        size = len(dataset)  # type: ignore[arg-type]  # map-style
        require(size > 0, name, got="a data set without samples", expected="at least one sample")

        def batches(round_number: int) -> Iterator[Any]:
            epoch = 0
            while True:
                generator = _generator(seed, name, round_number, epoch)
                yield from DataLoader(dataset, batch_size, shuffle=True, generator=generator, **options)  # type: ignore[arg-type]
                epoch += 1

        return cls(name, batches, size=size)


def check_clients(clients: Sequence[Client], expected: int, mixing: str) -> None:
    """Raise unless each matrix row has a client with a unique name."""
    other = next((each for each in clients if not isinstance(each, Client)), None)
    require(
        other is None,
        "clients",
        got=type(other).__name__,
        expected="clients",
        fix='write Client.from_dataset("name", dataset) for each',
    )
    require(
        len(clients) == expected,
        "clients",
        got=f"{len(clients)} clients",
        expected=f"{expected}, the clients of {mixing}",
    )
    check_names([client.name for client in clients])


def check_names(names: Sequence[str]) -> None:
    """Raise if two clients have the same name."""
    twice = sorted({name for name in names if names.count(name) > 1})
    require(not twice, "clients", got=f"the name {twice[:1]} twice", expected="a name of its own for every client")


def _check_name(name: Any) -> None:
    require(isinstance(name, str), "name", got=name, expected="the client's name before its data")


def _generator(seed: int, name: str, round_number: int, epoch: int) -> torch.Generator:
    return generator_for(seed, "client", name, round_number, epoch)
