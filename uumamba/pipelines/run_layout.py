"""Where the folds of a run lie: ``RUN/fold_K``, or ``RUN/seed_S/fold_K`` where it was trained with several seeds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from uumamba.runtime.errors import UsageError

FOLDS = ("0", "1", "2", "3", "4")
ALL_CASES = "all"
EVERY_FOLD = "cv"


@dataclass(frozen=True)
class FoldFolder:
    """A fold's folder in a run.

    Args:
        run: the run's folder.
        fold: ``"0"`` to ``"4"`` or ``"all"``.
        seed: of a run with several seeds; None where the configuration's own is the only one.

    Example:
        >>> FoldFolder(Path("runs/acdc"), "2", seed=1).path.as_posix()
        'runs/acdc/seed_1/fold_2'
    """

    run: Path
    fold: str
    seed: int | None = None

    @property
    def path(self) -> Path:
        """The folder."""
        return self.run / self.name

    @property
    def name(self) -> str:
        """Its path within the run: ``fold_2``, ``seed_1/fold_2``."""
        return f"fold_{self.fold}" if self.seed is None else f"seed_{self.seed}/fold_{self.fold}"

    @property
    def title(self) -> str:
        """For a reader: ``fold 2``, ``seed 1, fold 2``."""
        return f"fold {self.fold}" if self.seed is None else f"seed {self.seed}, fold {self.fold}"


def folds_of(fold: str) -> tuple[str, ...]:
    """The folds that ``--fold`` stands for.

    Raises:
        UsageError: it is none.
    """
    check_fold_name(fold, (*FOLDS, ALL_CASES, EVERY_FOLD))
    return FOLDS if fold == EVERY_FOLD else (fold,)


def check_fold_name(fold: str, known: Sequence[str]) -> None:
    """Refuse what is no fold.

    Raises:
        UsageError: it is none of the known ones.
    """
    if fold not in known:
        raise UsageError(f"There is no fold {fold!r}; choose one of {', '.join(known)}.")


def fold_folders(run: Path) -> list[FoldFolder]:
    """Every fold that a run has a folder of: seed by seed, fold by fold."""
    return [found for found in _possible(run) if found.path.is_dir()]


def wanted_folders(run: Path, *, fold: str, seeds: Sequence[int] | None = None) -> list[FoldFolder]:
    """The folders that ``--fold`` and ``--seeds`` stand for.

    Raises:
        UsageError: the fold is none, a seed stands there twice or is negative, or the run was begun with the
            configuration's seed alone where several are given, or the other way round.
    """
    folds = folds_of(fold)
    if seeds is not None and (not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0):
        raise UsageError(f"The seeds {', '.join(map(str, seeds)) or '(none)'} are not different numbers from 0 on.")
    other = next((found for found in fold_folders(run) if (found.seed is None) != (seeds is None)), None)
    if other is not None:
        begun = "without --seeds" if other.seed is None else "with --seeds"
        raise UsageError(f"{run} was begun {begun} ({other.name} is there); go on so, or choose another folder.")
    return [FoldFolder(run, name, seed) for seed in ((None,) if seeds is None else seeds) for name in folds]


def _possible(run: Path) -> Iterator[FoldFolder]:
    numbers = (folder.name.removeprefix("seed_") for folder in run.glob("seed_*"))
    seeds = sorted(int(number) for number in numbers if number.isdecimal())
    for seed in (None, *seeds):
        for fold in (*FOLDS, ALL_CASES):
            yield FoldFolder(run, fold, seed)
