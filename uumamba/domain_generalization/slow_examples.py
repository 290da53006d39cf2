"""Slow examples: their list, its file, and their upsampling."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import Sampler

from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.files import write_json
from uumamba.runtime.seeds import generator_for

T = TypeVar("T")

FORMAT = "uumamba slow examples, 1"


@dataclass(frozen=True)
class GroupSplit:
    """Split of one class (or another group).

    Attributes:
        group: its number.
        size: number of its examples.
        slow: number of its slow examples.
        slow_loss: their mean loss; None where none is slow.
        fast_loss: the mean loss of the others; None where there are none.
        note: the reason why none is slow, or empty.
    """

    group: int
    size: int
    slow: int = 0
    slow_loss: float | None = None
    fast_loss: float | None = None
    note: str = ""


@dataclass(frozen=True)
class SlowExamples:
    """Examples to show more than once, with everything that an audit needs.

    Attributes:
        slow: their places in the data set, ascending.
        size: of the data set.
        groups: the split of each class.
        seed: of the clustering and of the probe's training.
        fingerprint: of the data set; see :func:`fingerprint_batches`.
        epoch: epochs that the network had been trained, where a probe chose them.
        errors: the probe's training error before the first epoch and after each.
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


def write_slow_examples(path: Path | str, found: SlowExamples) -> None:
    """Write a JSON file, whole or absent, for an audit and for :func:`read_slow_examples`.

    Raises:
        UsageError: nothing can be written there.
    """
    write_json(path, {"format": FORMAT} | asdict(found))


def read_slow_examples(path: Path | str, *, size: int | None = None, fingerprint: str | None = None) -> SlowExamples:
    """Read the file if it belongs to the current data set.

    Args:
        path: the file.
        size: of the current data set; None is not compared.
        fingerprint: of the current data set; see :func:`uumamba.domain_generalization.fingerprint_batches`. None is
            not compared.

    Raises:
        UsageError: there is no such file, it is damaged or of another kind, or it belongs to another data set.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "slow.json"
        >>> write_slow_examples(path, SlowExamples((1, 3), 4, (GroupSplit(0, 4, 2, 0.9, 0.1),), 0, "abc"))
        >>> read_slow_examples(path, size=4, fingerprint="abc").slow
        (1, 3)
    """
    expected, fix = f"a file of the format {FORMAT!r}", "find the slow examples again"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        require(content.pop("format") == FORMAT, str(path), got="another format", expected=expected, fix=fix)
        groups = tuple(GroupSplit(**each) for each in content.pop("groups"))
        slow, errors = tuple(content.pop("slow")), tuple(content.pop("errors"))
        found = SlowExamples(slow=slow, groups=groups, errors=errors, **content)
    except FileNotFoundError:
        raise UsageError(str(path), got="no file", expected=expected, fix="correct the path") from None
    except (OSError, TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise UsageError(str(path), got=f"{type(error).__name__} ({error})", expected=expected, fix=fix) from None
    is_sound = list(slow) == sorted({*slow}) and all(0 <= place < found.size for place in slow)
    require(is_sound, str(path), got=list(slow), expected=f"ascending places below {found.size}", fix=fix)
    size, fingerprint = found.size if size is None else size, fingerprint or found.fingerprint
    is_same = (found.size, found.fingerprint) == (size, fingerprint)
    got, here = (
        f"{n} examples, fingerprint {text[:12]}" for n, text in ((found.size, found.fingerprint), (size, fingerprint))
    )
    require(is_same, str(path), got=got, expected=f"those of this data set, {here}", fix=fix)
    return found


def upsampled(items: Sequence[T], slow: Sequence[int], *, factor: int = 2) -> list[T]:
    """Return the items, followed by ``factor`` - 1 copies of those at the places ``slow``.

    With ``range(len(dataset))`` these are the indices of a ``torch.utils.data.Subset``, which any loader shuffles and
    any distributed sampler splits like a data set of its own. With case ids, a data set draws its cases from them.

    Args:
        items: one for each example.
        slow: places in ``items``, each at most once.
        factor: occurrences of a slow one; 1 changes nothing.

    Raises:
        UsageError: a place is outside or occurs twice, or ``factor`` is less than 1.

    Example:
        >>> upsampled(range(5), [1, 3])
        [0, 1, 2, 3, 4, 1, 3]
        >>> upsampled(["case_a", "case_b"], [1])
        ['case_a', 'case_b', 'case_b']
    """
    require(factor >= 1, "factor", got=factor, expected="at least 1")
    fits = len({*slow}) == len(slow) and all(0 <= place < len(items) for place in slow)
    require(fits, "slow", got=list(slow), expected=f"different places in 0 to {len(items) - 1}")
    return [*items, *(items[place] for _ in range(factor - 1) for place in slow)]


class UpsampledSampler(Sampler[int]):
    """Sampler of every index once and the slow ones twice an epoch, in an order keyed by seed and epoch.

    Call :meth:`set_epoch` before each epoch, or every epoch has the order of the first. Copies are shuffled with all
    indices, so the two showings of a slow example are apart. With ``factor`` 1 or no slow example it is a plain random
    sampler.

    Several ``replicas`` share an epoch, each taking every n-th index. Where their number does not divide, the first
    indices of the order are repeated, as by torch's ``DistributedSampler``: replicas that make different numbers of
    steps would wait for each other for ever.

    Args:
        size: of the data set.
        slow: the indices to repeat, each at most once; such as ``found.slow``.
        factor: occurrences of a slow index in an epoch.
        seed: of the order.
        rank: of this replica.
        replicas: number of processes that share an epoch.

    Raises:
        UsageError: an index is outside or occurs twice, or a number is out of range.

    Example:
        >>> sampler = UpsampledSampler(4, [2])
        >>> sorted(sampler), len(sampler)
        ([0, 1, 2, 2, 3], 5)

    References:
        Nguyen et al., *Changing the Training Data Distribution to Reduce Simplicity Bias Improves In-distribution
        Generalization*, NeurIPS 2024, arXiv:2404.17768 (twice; more copies were worse).
        Differs from the paper: none.
    """

    def __init__(
        self,
        size: int,
        slow: Sequence[int] = (),
        *,
        factor: int = 2,
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
            expected=f"at most {len(self.indices)}, one an index",
        )
        self.seed, self.rank, self.replicas = seed, rank, replicas
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch, which keys its order."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of indices of this replica in an epoch."""
        return -(-len(self.indices) // self.replicas)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the indices of this replica for the epoch."""
        order = torch.randperm(len(self.indices), generator=generator_for(self.seed, "order", self.epoch)).tolist()
        order = (order + order[: self.replicas])[: len(self) * self.replicas]
        return (self.indices[place] for place in order[self.rank :: self.replicas])
