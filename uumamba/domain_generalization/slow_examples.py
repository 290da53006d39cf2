"""Slow examples: list, file and upsampling."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import Sampler

from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.files import write_json
from uumamba.runtime.options import check_options
from uumamba.runtime.seeds import generator_for
from uumamba.runtime.text_files import load_json

T = TypeVar("T")

FORMAT = "uumamba slow examples, 1"
FACTOR = 2  # the paper's


@dataclass(frozen=True)
class GroupSplit:
    """Summary of the slow examples of one class or other group.

    Attributes:
        group: number of the group.
        size: number of examples.
        slow: number of slow examples.
        slow_loss: mean loss of the slow examples; None without slow examples.
        fast_loss: mean loss of the other examples; None without other examples.
        note: reason for the lack of slow examples; empty if there are slow examples.
    """

    group: int
    size: int
    slow: int = 0
    slow_loss: float | None = None
    fast_loss: float | None = None
    note: str = ""


@dataclass(frozen=True)
class SlowExamples:
    """Slow examples of a data set, with all values for an audit.

    Attributes:
        slow: indices of the slow examples in the data set, ascending.
        size: size of the data set.
        groups: summary of each class.
        seed: seed of the clustering and of the probe's training.
        fingerprint: fingerprint of the data set; see :func:`fingerprint_batches`.
        epoch: number of trained epochs, if a probe chose the examples.
        errors: training error of the probe before the first epoch and after each epoch.
        settings: other options, as plain values.
    """

    slow: tuple[int, ...]
    size: int
    groups: tuple[GroupSplit, ...]
    seed: int
    fingerprint: str
    epoch: int | None = None
    errors: tuple[float, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


@check_options
def write_slow_examples(path: Path | str, found: SlowExamples) -> None:
    """Write slow examples to a JSON file for :func:`read_slow_examples`.

    The file is written completely or not at all.

    Args:
        path: the file; an older one is replaced.
        found: result of :meth:`USEFUL.find`.

    Raises:
        UsageError: the file cannot be written.
    """
    write_json(path, {"format": FORMAT} | asdict(found))


@check_options
def read_slow_examples(path: Path | str, *, size: int | None = None, fingerprint: str | None = None) -> SlowExamples:
    """Read slow examples of the current data set from a file.

    Args:
        path: the file.
        size: size of the current data set; None is not compared.
        fingerprint: fingerprint of the current data set; see
            :func:`uumamba.domain_generalization.fingerprint_batches`. None is not compared.

    Raises:
        UsageError: the file is missing, damaged, of another format, or of another data set.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "slow.json"
        >>> write_slow_examples(path, SlowExamples((1, 3), 4, (GroupSplit(0, 4, 2, 0.9, 0.1),), 0, "abc"))
        >>> read_slow_examples(path, size=4, fingerprint="abc").slow
        (1, 3)
    """
    expected, fix = f"a file of the format {FORMAT!r}", "find the slow examples again"
    try:
        content = load_json(path)
        require(content.pop("format") == FORMAT, str(path), got="another format", expected=expected, fix=fix)
        groups = tuple(GroupSplit(**each) for each in content.pop("groups"))
        slow, errors = tuple(content.pop("slow")), tuple(content.pop("errors"))
        found = SlowExamples(slow=slow, groups=groups, errors=errors, **content)
        is_ascending = list(slow) == sorted({*slow}) and all(0 <= index < found.size for index in slow)
    except FileNotFoundError:
        raise UsageError(str(path), got="no file", expected=expected, fix="correct the path") from None
    except UsageError:
        raise
    except (OSError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise UsageError(str(path), got=f"{type(error).__name__} ({error})", expected=expected, fix=fix) from None
    require(
        is_ascending,
        str(path),
        got=list(slow),
        expected=f"ascending indices below {found.size}",
        fix=fix,
    )
    wanted_size, wanted = found.size if size is None else size, fingerprint or found.fingerprint
    require(
        (found.size, found.fingerprint) == (wanted_size, wanted),
        str(path),
        got=f"{found.size} examples, fingerprint {found.fingerprint[:12]}",
        expected=f"the current data set, {wanted_size} examples, fingerprint {wanted[:12]}",
        fix=fix,
    )
    return found


def upsampled(items: Sequence[T], slow: Sequence[int], *, factor: int = FACTOR) -> list[T]:
    """Return all items, then ``factor - 1`` copies of the slow items.

    ``upsampled(range(len(dataset)), slow)`` gives the indices of a ``torch.utils.data.Subset``, for any loader or
    distributed sampler. A list of case ids gives the cases of a data set.

    Args:
        items: one item per example.
        slow: indices of the slow items, each at most once.
        factor: occurrences of a slow item; 1 changes nothing.

    Raises:
        UsageError: an index is out of range or given twice, or ``factor`` is less than 1.

    Example:
        >>> upsampled(range(5), [1, 3])
        [0, 1, 2, 3, 4, 1, 3]
        >>> upsampled(["case_a", "case_b"], [1])
        ['case_a', 'case_b', 'case_b']
    """
    require(factor >= 1, "factor", got=factor, expected="at least 1")
    require(
        len({*slow}) == len(slow) and all(0 <= index < len(items) for index in slow),
        "slow",
        got=list(slow),
        expected=f"different indices from 0 to {len(items) - 1}",
    )
    return [*items, *(items[index] for _ in range(factor - 1) for index in slow)]


class UpsampledSampler(Sampler[int]):
    """Random sampler with ``factor`` occurrences of slow indices per epoch.

    Every other index occurs once. The order is keyed by seed and epoch: call :meth:`set_epoch` before each epoch, or
    every epoch has the order of the first. Copies are shuffled with all indices. With ``factor`` 1 or without slow
    indices this is a plain random sampler.

    Several ``replicas`` share an epoch; each takes every n-th index. If their number does not divide the number of
    indices, the first indices of the order are repeated, as in torch's ``DistributedSampler``, so that all replicas
    run the same number of steps.

    Args:
        size: size of the data set.
        slow: indices to repeat, each at most once, such as ``found.slow``.
        factor: occurrences of a slow index per epoch.
        seed: seed of the order.
        rank: number of this replica.
        replicas: number of processes that share an epoch.

    Raises:
        UsageError: an index is out of range or given twice, or another number is out of range.

    Example:
        >>> sampler = UpsampledSampler(4, [2])
        >>> sorted(sampler), len(sampler)
        ([0, 1, 2, 2, 3], 5)

    References:
        Nguyen et al., *Changing the Training Data Distribution to Reduce Simplicity Bias Improves In-distribution
        Generalization*, NeurIPS 2024, arXiv:2404.17768 (factor 2; more copies were worse).
        Differs from the paper: none.
    """

    @check_options
    def __init__(
        self,
        size: int,
        slow: Sequence[int] = (),
        *,
        factor: int = FACTOR,
        seed: int = 0,
        rank: int = 0,
        replicas: int = 1,
    ) -> None:
        require(0 <= rank < replicas, "rank", got=rank, expected=f"0 to {replicas - 1}")
        self.indices = upsampled(range(size), slow, factor=factor)
        require(
            replicas <= len(self.indices),
            "replicas",
            got=replicas,
            expected=f"at most the number of indices, {len(self.indices)}",
        )
        self.seed, self.rank, self.replicas = seed, rank, replicas
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that keys the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of indices per epoch and replica."""
        return -(-len(self.indices) // self.replicas)

    def __iter__(self) -> Iterator[int]:
        """Iterate over this replica's indices of the epoch."""
        order = torch.randperm(len(self.indices), generator=generator_for(self.seed, "order", self.epoch)).tolist()
        order = (order + order[: self.replicas])[: len(self) * self.replicas]
        return (self.indices[position] for position in order[self.rank :: self.replicas])
