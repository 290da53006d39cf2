"""A phantom in AortaSeg24's own layout: dissected aortas in 23 zones and branches that need no data agreement.

    python -m data_prep.phantoms.aorta OUT --cases N --seed S

Example:
    python -m data_prep.phantoms.aorta /tmp/aorta --cases 30 --workers 2
"""

import argparse
import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.phantoms.aorta.aorta_scanner import scan
from data_prep.phantoms.aorta.aorta_tree import draw_tree, subject_generator
from data_prep.phantoms.aorta.aorta_tubes import Grid
from uumamba.runtime.errors import UsageError
from uumamba.runtime.files import make_folder, whole_file


@dataclass(frozen=True)
class _Order:
    """One subject to write."""

    folder: Path
    number: int
    seed: int


def write_aorta_phantom(
    folder: Path | str,
    *,
    cases: int = 30,
    seed: int = 0,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write phantom subjects as AortaSeg24 ships its own: ``images/subject001_CTA.mha``, ``masks/subject001_label.mha``

    and so on. Each is a CT angiography of the trunk, int16 from -1024 to 1500 HU at 1 mm, with a uint8 label of all 23
    structures of :data:`data_prep.aorta.STRUCTURES`, every one a single piece, their union one tree without a loop.
    Zone borders lie where the Society for Vascular Surgery sets them: at the far edges of the ostia on the arch, 2 cm
    on, at T6 (where the left atrium's roof stands), at the near edges of celiac, mesenteric and first renal artery, at
    the far edge of the last renal one, and where the aorta and the iliac arteries divide. Branches end where they
    divide in two. Four aortas in five are dissected from beyond the left subclavian artery on; both lumens and the flap
    between them belong to the zones. Pose, size, course, arch, aneurysms, enhancement and the organs around are drawn
    for each subject; in one of five innominate and left carotid artery leave the arch together.
    :func:`data_prep.phantoms.aorta.aorta_tree.aorta_truth` gives centrelines, diameters and topology.

    The field of view is cut around the aorta, about 155 x 150 x 435 voxels, so that training stays light; real scans
    are two to four times as wide, show the whole trunk, and their branches are thinner. Subjects' numbers have gaps, as
    the real ones do: 4, 11, 18 and so on are left out, and those from 041 on are the test set. Equal arguments give
    equal bytes, for any number of workers; a subject does not change with the number of cases.

    Args:
        folder: gets ``images/`` and ``masks/``.
        cases: number of subjects; up to 34 are training cases.
        seed: another seed gives other subjects.
        workers: processes; 0 works in this one. More need an importable main module, as every spawned process.
        progress: called with the number of subjects written and of all.

    Returns:
        The folder.

    Raises:
        UsageError: no case is asked for, or the folder holds other subjects already.

    Example:
        >>> import tempfile
        >>> raw = write_aorta_phantom(tempfile.mkdtemp(), cases=1)
        >>> sorted(path.name for path in raw.rglob("*.mha"))
        ['subject001_CTA.mha', 'subject001_label.mha']

    References:
        Imran et al., The AortaSeg24 Challenge, 2025, arXiv:2502.05330 (layout and structures).
    """
    folder = Path(folder)
    if cases < 1 or workers < 0:
        found = f"cases={cases}, workers={workers}"
        raise UsageError(f"The aorta phantom needs at least one case and no negative number, got {found}; correct it.")
    orders = [_Order(folder, number, seed) for number in itertools.islice(_numbers(), cases)]
    _refuse_other_subjects(folder, orders)
    for written, _ in enumerate(_carry_out(orders, workers), start=1):
        if progress is not None:
            progress(written, cases)
    return folder


def _numbers() -> Iterator[int]:
    """Subjects' numbers, with a gap after every sixth, for readers that count instead of looking."""
    return (number for number in itertools.count(1) if number % 7 != 4)


def _paths(order: _Order) -> tuple[Path, Path]:
    subject = f"subject{order.number:03d}"
    return order.folder / "images" / f"{subject}_CTA.mha", order.folder / "masks" / f"{subject}_label.mha"


def _refuse_other_subjects(folder: Path, orders: Sequence[_Order]) -> None:
    own = {path for order in orders for path in _paths(order)}
    others = sorted(path for part in ("images", "masks") for path in (folder / part).glob("*") if path not in own)
    if others:
        raise UsageError(f"{folder} already holds {others[0].name} and perhaps more; give the phantom an empty folder.")


def _carry_out(orders: Sequence[_Order], workers: int) -> Iterator[None]:
    if workers < 2:
        yield from map(_write_subject, orders)
        return
    # Forking a process that has run torch can deadlock; a spawned one cannot.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_write_subject, orders)


def _write_subject(order: _Order) -> None:
    image_path, label_path = _paths(order)
    for path in (image_path, label_path):
        make_folder(path.parent)
    rng = subject_generator(order.number, order.seed)
    image, label, grid = scan(draw_tree(rng), rng)
    _write_mha(image_path, image, grid)
    _write_mha(label_path, label, grid)


def _write_mha(path: Path, voxels: NDArray[np.generic], grid: Grid) -> None:
    """A compressed MetaImage whose axes run to the left, to the back and to the head, as ITK's world does."""
    import SimpleITK  # a third of a second that readers of the data set need not wait

    volume: Any = SimpleITK.GetImageFromArray(voxels)
    right, front, head = grid.first_mm
    volume.SetOrigin((-right, -front, head))
    with whole_file(path) as unfinished:
        SimpleITK.WriteImage(volume, unfinished, useCompression=True, compressionLevel=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the phantom from the shell."""
    summary, _, example = (__doc__ or "").partition("Example:")
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.phantoms.aorta",
        description=summary.splitlines()[0],
        epilog=f"example:{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="folder that gets images/ and masks/")
    parser.add_argument("--cases", type=int, default=30, help="number of subjects (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other subjects (default: 0)")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 works in this one (default: 0)")
    chosen = parser.parse_args(arguments)

    def tell(written: int, cases: int) -> None:
        print(f"{written} of {cases} subjects", flush=True)

    try:
        write_aorta_phantom(chosen.out, cases=chosen.cases, seed=chosen.seed, workers=chosen.workers, progress=tell)
    except UsageError as error:
        parser.error(str(error))
