"""Phantom of microscope pictures: bright cells on an uneven background, with masks."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.phantoms.phantom_folder import Order, Progress, check_no_others, write_cases
from data_prep.phantoms.scanner_noise import draw_smooth_noise
from data_prep.raw_folder import list_files
from uumamba.runtime.files import whole_file
from uumamba.runtime.options import NonNegativeInt, PositiveInt, check_options
from uumamba.runtime.seeds import key_to_seed

SHAPE = (96, 128)
"""Rows and columns of a picture."""

_CELLS = (6, 12)
_RADIUS = (6.0, 13.0)


@check_options
def write_picture_phantom(
    folder: Path | str,
    *,
    cases: PositiveInt = 40,
    seed: int = 0,
    workers: NonNegativeInt = 0,
    progress: Progress = lambda written, total: None,
) -> Path:
    """Write pictures of cells and their masks as PNG.

    Files are ``images/cells_001.png`` (8-bit grey) and ``masks/cells_001.png`` (0 and 255) and so on. Debris is as
    bright as the cells but smaller, and the light is uneven, so that no threshold finds the cells. Equal arguments give
    equal pixels, for any number of workers.

    Args:
        folder: empty, or with the same phantom.
        cases: number of pictures.
        seed: another seed gives other pictures.
        workers: number of worker processes; 0 uses this process. Workers need an importable main module.
        progress: called with the number of pictures written and of all.

    Returns:
        The folder.

    Raises:
        UsageError: a count is too small, or the folder holds other files.

    Example:
        >>> import tempfile
        >>> raw = write_picture_phantom(tempfile.mkdtemp(), cases=1)
        >>> sorted(path.relative_to(raw).as_posix() for path in raw.rglob("*.png"))
        ['images/cells_001.png', 'masks/cells_001.png']
    """
    folder = Path(folder)
    orders = [Order(folder, number, seed) for number in range(1, cases + 1)]
    check_no_others(folder, list_files(folder), [path for order in orders for path in _list_paths(order)])
    write_cases(_write_case, orders, workers=workers, progress=progress)
    return folder


def draw_cells(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw a picture and its mask, ``(rows, columns)``."""
    rows, columns = np.meshgrid(*(np.arange(size, dtype=np.float32) for size in SHAPE), indexing="ij")
    wobble = draw_smooth_noise(rng, SHAPE, 4.0)
    wobble *= 1.5 / wobble.std()

    def draw_discs(count: int, radius: tuple[float, float]) -> NDArray[np.bool_]:
        mask = np.zeros(SHAPE, np.bool_)
        for _ in range(count):
            row, column = rng.uniform(0, SHAPE[0]), rng.uniform(0, SHAPE[1])
            mask |= np.hypot(rows - row, columns - column) + wobble < rng.uniform(*radius)
        return mask

    cells = draw_discs(int(rng.integers(*_CELLS)), _RADIUS)
    debris = draw_discs(16, (2.5, 3.5)) & ~cells
    light = draw_smooth_noise(rng, SHAPE, 40.0)
    light *= 25 / light.std()
    picture = 80 + light + 45 * (cells | debris) + 8 * rng.standard_normal(SHAPE)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8), cells


def _write_case(order: Order) -> None:
    picture, cells = draw_cells(np.random.default_rng(key_to_seed(order.seed, "picture phantom", order.number)))
    mask = np.where(cells, 255, 0).astype(np.uint8)
    for path, array in zip(_list_paths(order), (picture, mask), strict=True):
        with whole_file(path) as unfinished, unfinished.open("wb") as file:
            Image.fromarray(array).save(file, format="png")


def _list_paths(order: Order) -> list[Path]:
    """List the files of one case: its picture, then its mask."""
    return [order.folder / kind / f"cells_{order.number:03}.png" for kind in ("images", "masks")]
