"""Random coronary arteries: branching, courses on the heart and diameters."""

from collections.abc import Sequence

import numpy as np

from data_prep.phantoms.coronary.coronary_growth import STEP_MM, Branch, GrowingTree
from data_prep.phantoms.coronary.coronary_heart import CoronaryHeart


def draw_coronary_tree(
    heart: CoronaryHeart, rng: np.random.Generator, *, widths_mm: tuple[float, float]
) -> tuple[Branch, ...]:
    """Draw left and right coronary arteries with a few side branches each.

    Dominance, number, length and course of the branches are drawn. Arteries follow the heart's surface, taper, and have
    at least 2 mm of fat between them except at bifurcations. A side branch without that space is shortened or left out.

    Args:
        heart: the heart.
        rng: generator of all draws.
        widths_mm: smallest and largest diameter.

    Returns:
        The branches in the heart's frame, parents before children.

    Raises:
        NoSpaceError: a main artery does not fit.
    """
    tree = GrowingTree(heart, widths_mm, rng)
    scale = rng.uniform(0.85, 1.1)
    left_dominant = rng.random() < 0.25
    _grow_left(tree, scale, left_dominant)
    _grow_right(tree, scale, left_dominant)
    _grow_posterior(tree, "LCx" if left_dominant else "RCA")
    for parent, prefix, most, way in (
        ("LAD", "D", 3, ((10, 9), (24, 24), (32, 42), (36, 62))),
        ("LCx", "OM", 3, ((3, 15), (6, 34), (4, 55), (2, 75))),
        ("RCA", "AM", 2, ((-2, 14), (5, 30), (10, 46), (14, 60))),
    ):
        _grow_side(tree, parent, prefix, int(rng.integers(1, most + 1)), way)
    if rng.random() < 0.3:
        _grow_ramus(tree)
    if rng.random() < 0.5:
        _grow_conus(tree, own_ostium=rng.random() < 0.35)
    return tuple(tree.branches.values())


def left_tree(branches: Sequence[Branch]) -> frozenset[str]:
    """Return the names of the left main artery and its descendants.

    Args:
        branches: branches of a tree, parents before children.
    """
    names = {"LM"}
    for branch in branches:
        if branch.parent in names:
            names.add(branch.name)
    return frozenset(names)


def _grow_left(tree: GrowingTree, scale: float, left_dominant: bool) -> None:
    heart, rng = tree.heart, tree.rng
    groove, front, sheet = heart.groove_degrees, heart.anterior_degrees, tree.sheet
    fork = front + rng.uniform(42, 60)
    start = _start(heart, fork + rng.uniform(-15, 15), rng.uniform(0.72, 0.85))
    tree.grow("LM", [start, (fork, groove - rng.uniform(8, 14), sheet)], (4.1 * scale, 3.9 * scale), needed=True)
    end = len(tree.branches["LM"].centreline_mm) - 1
    first = tuple(tree.places("LM")[end])
    wiggle = rng.normal(0, 6, 4)
    corners = [
        first,
        (front + 24, groove + 2, sheet),
        (front + 8, groove + 18, sheet),
        (front + wiggle[0], 103 + wiggle[1], sheet),
        (front + wiggle[2], 128, sheet),
        (front + wiggle[3], rng.uniform(138, 168), sheet),
    ]
    tree.grow("LAD", corners, (3.5 * scale, 1.8), parent="LM", at=end, needed=True)
    last = rng.uniform(108, 135) if left_dominant else rng.uniform(45, 85)
    steps = np.arange(first[0] + 22, last, 24)
    corners = [first, *((degrees, groove + rng.normal(0, 2), sheet) for degrees in steps), (last, groove, sheet)]
    tree.grow("LCx", corners, (3.2 * scale, 2.4 if left_dominant else 1.9), parent="LM", at=end, needed=True)


def _grow_right(tree: GrowingTree, scale: float, left_dominant: bool) -> None:
    heart, rng = tree.heart, tree.rng
    groove, sheet = heart.groove_degrees, tree.sheet
    start = _start(heart, rng.uniform(-130, -105), rng.uniform(0.68, 0.82))
    last = rng.uniform(-220, -190) if left_dominant else heart.posterior_degrees - 360 - rng.uniform(14, 36)
    steps = np.arange(-152, last, -24)
    corners = [start, (-130, groove - 11, 0.5 * (start[2] + sheet) + 0.12)]
    corners += [*((degrees, groove + rng.normal(0, 2), sheet) for degrees in steps), (last, groove + 3, sheet)]
    tree.grow("RCA", corners, (3.7 * scale, 1.9 if left_dominant else 2.2), needed=True)


def _grow_posterior(tree: GrowingTree, parent: str) -> None:
    """Grow the posterior descending artery from the dominant vessel."""
    heart, rng, sheet = tree.heart, tree.rng, tree.sheet
    places = tree.places(parent)
    away = np.abs((places[:, 0] - heart.posterior_degrees + 180) % 360 - 180)
    at = int(np.argmin(away))
    if at + round(4 / STEP_MM) >= len(places):
        at = len(places) - round(6 / STEP_MM)
    first, behind = places[at], heart.posterior_degrees
    corners = [tuple(first), (0.5 * (first[0] + behind), heart.groove_degrees + 14, sheet)]
    corners += [(behind + rng.normal(0, 5), degrees, sheet) for degrees in (100, 118, rng.uniform(128, 148))]
    tree.grow("PDA", corners, (0.85 * tree.branches[parent].diameter_mm[at], 1.75), parent=parent, at=at)


def _grow_side(tree: GrowingTree, parent: str, prefix: str, number: int, way: Sequence[tuple[float, float]]) -> None:
    """Grow side branches along a parent.

    Args:
        tree: gets the branches.
        parent: name of the parent.
        prefix: names are ``D1``, ``D2`` and so on for the prefix ``D``.
        number: number of branches.
        way: corners of their courses, as offsets of longitude and colatitude in degrees.
    """
    rng, trunk = tree.rng, tree.branches[parent]
    places = tree.places(parent)
    for part in range(number):
        share = (part + rng.uniform(0.2, 0.8)) / number
        at = round((0.16 + 0.62 * share) * len(places))
        stretch = rng.uniform(0.5, 1.0) * (1.15 - 0.5 * share)
        turn = rng.normal(0, 5)
        corners = [tuple(places[at])]
        for step, (longitude, colatitude) in enumerate(way, start=1):
            sideways = longitude * stretch + turn * step / len(way)
            corners.append((places[at, 0] + sideways, places[at, 1] + colatitude * stretch, tree.sheet))
        width = min(0.85 * trunk.diameter_mm[at], rng.uniform(2.0, 2.7))
        tree.grow(f"{prefix}{part + 1}", corners, (width, 1.75), parent=parent, at=at)


def _grow_ramus(tree: GrowingTree) -> None:
    """Grow the ramus intermedius between both branches of the left main artery."""
    end = len(tree.branches["LM"].centreline_mm) - 1
    longitude, colatitude, _ = tree.places("LM")[end]
    corners = [(longitude + 2 * step, colatitude + 15 * step, tree.sheet) for step in range(5)]
    tree.grow("RI", corners, (2.5, 1.75), parent="LM", at=end)


def _grow_conus(tree: GrowingTree, *, own_ostium: bool) -> None:
    """Grow the conus branch from the right coronary artery or the aorta."""
    heart, rng, sheet = tree.heart, tree.rng, tree.sheet
    groove = heart.groove_degrees
    if own_ostium:
        start = _start(heart, rng.uniform(-100, -85), 0.95)
        ways = [(-98, groove + degrees, sheet) for degrees in (4, 22, 40)]
        tree.grow("CB", [start, (-98, groove - 16, 0.5 * (start[2] + sheet)), *ways], (2.1, 1.75))
    else:
        at = round(rng.uniform(0.1, 0.16) * len(tree.branches["RCA"].centreline_mm))
        ways = [(-112, groove + 14, sheet), (-100, groove + 26, sheet), (-96, groove + 40, sheet)]
        tree.grow("CB", [tuple(tree.places("RCA")[at]), *ways], (2.2, 1.75), parent="RCA", at=at)


def _start(heart: CoronaryHeart, longitude_degrees: float, height: float) -> tuple[float, ...]:
    return tuple(heart.locate(heart.ostium(longitude_degrees, height)[None])[0])
