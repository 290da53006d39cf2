"""Random vessels of the aorta phantom: centrelines, diameters, zones and branches."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline, PchipInterpolator

from data_prep.phantoms.aorta.aorta_vessels import Flap, Pose, Tree, Vessel, has_gaps, has_smooth_bends
from data_prep.phantoms.curves import Points, compute_arc_lengths, interpolate
from uumamba.runtime.seeds import key_to_seed

ZONE_3_MM = 20.0
BOVINE_SHARE = 0.2
DISSECTED_SHARE = 0.8


def make_generator(number: int, seed: int) -> np.random.Generator:
    """Create the random generator of a subject, which draws the tree first."""
    return np.random.default_rng(key_to_seed(seed, "aorta phantom", number))


def draw_aorta_tree(rng: np.random.Generator) -> Tree:
    """Draw a subject's vessels, again if two vessels are too close."""
    while True:
        tree = _draw_candidate(rng)
        if has_smooth_bends(tree.vessels[0]) and has_gaps(tree.vessels):
            return tree


def _draw_candidate(rng: np.random.Generator) -> Tree:
    pose = _draw_pose(rng)
    bovine, dissected = bool(rng.random() < BOVINE_SHARE), bool(rng.random() < DISSECTED_SHARE)
    path = _draw_path(pose, rng)
    marks = _draw_marks(path, bovine, rng)
    diameters = {name: float(rng.uniform(*bounds)) for name, bounds in _DIAMETERS_MM.items()}
    radii = _draw_aortic_radii(marks, len(path), dissected, rng)
    starts = _compute_zone_starts(marks, diameters, pose.scale, rng.uniform(0.37, 0.47))
    aorta = Vessel("Aorta", "", path, radii, tuple(f"Zone{number}" for number in range(10)), starts)
    branches = [_draw_branch(name, aorta, marks, diameters, rng) for name in _DIRECTIONS]
    vessels = (aorta, *_draw_iliacs(aorta, diameters, rng), *branches)
    heights = {name: float(path[round(at), 2]) for name, at in marks.items()} | {"T6": float(path[round(starts[5]), 2])}
    return Tree(
        tuple(_transform_to_world(vessel, pose) for vessel in vessels),
        pose,
        _draw_flap(marks, pose.scale, rng) if dissected else None,
        bovine,
        heights,
    )


def _transform_to_world(vessel: Vessel, pose: Pose) -> Vessel:
    return replace(
        vessel,
        points_mm=pose.to_world(vessel.points_mm),
        radii_mm=pose.scale * vessel.radii_mm,
        starts_mm=tuple(pose.scale * start for start in vessel.starts_mm),
    )


def _draw_pose(rng: np.random.Generator) -> Pose:
    nod, lean, turn = np.deg2rad(rng.uniform(-1, 1, 3) * (9, 7, 12))
    rotation = _make_rotation(0, nod) @ _make_rotation(1, lean) @ _make_rotation(2, turn)
    sideways = (rng.uniform(-9, 9), rng.uniform(-100, 300), rng.uniform(55, 90))
    # The spine curves backwards in the chest and forwards in the loin.
    forwards = (-rng.uniform(2, 13), rng.uniform(60, 140), rng.uniform(60, 90))
    position = rng.uniform((-60, -60, -260), (60, 60, -140))
    return Pose(rng.uniform(0.88, 1.08), rotation, position, np.array([sideways, forwards]))


def _make_rotation(axis: int, angle: float) -> NDArray[np.float64]:
    first, second = (other for other in range(3) if other != axis)
    rotation = np.eye(3)
    rotation[first, first] = rotation[second, second] = np.cos(angle)
    rotation[first, second], rotation[second, first] = -np.sin(angle), np.sin(angle)
    return rotation


def _draw_path(pose: Pose, rng: np.random.Generator) -> Points:
    """Draw the aorta's centreline from root to bifurcation.

    It is in the body's frame, with one point per millimetre.
    """
    top = rng.uniform(250, 298)
    rise, span, swing = rng.uniform(30, 42), rng.uniform(64, 82), rng.uniform(0.35, 0.85)
    descent = _draw_descent(top - rise, pose, rng)
    across = span * np.array([np.sin(swing), np.cos(swing), 0.0])
    middle = descent[0] + across / 2
    angles = np.linspace(0, np.pi, 7)[:-1, None]
    skew = rng.uniform(-0.15, 0.15)
    up = np.sin(angles) * rise * np.array([0.0, 0.0, 1.0])
    arch = middle + (np.cos(angles) + skew * np.sin(angles) ** 2) * across / 2 + up
    root = arch[0] - (rng.uniform(12, 24), rng.uniform(2, 16), rng.uniform(34, 52))
    bulge = (arch[0] + root) / 2 + (rng.uniform(1, 6), rng.uniform(0, 5), 0)
    return _resample(np.concatenate([[root, bulge], arch, descent]))


def _draw_descent(top: float, pose: Pose, rng: np.random.Generator) -> Points:
    """Draw a tortuous course from the arch to the bifurcation.

    It passes the spine on the left and ends in front of it.
    """
    z = np.linspace(top, 0, 9)
    share = z / top
    angle = np.deg2rad(rng.uniform(5, 20) + rng.uniform(45, 60) * share ** rng.uniform(0.7, 1.3))
    distance = 31 + 4 * share
    spine_x, spine_y = pose.spine(z)
    waves = rng.uniform(0, 6.5, 2) * np.sin(z[:, None] / rng.uniform(20, 34, 2) + rng.uniform(0, 6.3, 2))
    bow = waves * np.sin(np.pi * share)[:, None] ** 0.5
    return np.stack(
        [spine_x - distance * np.sin(angle) + bow[:, 0], spine_y + distance * np.cos(angle) + bow[:, 1] + 2, z], axis=1
    )


def _resample(points: Points) -> Points:
    """Interpolate points by a smooth curve with one point per millimetre."""
    at = compute_arc_lengths(points)
    fine = CubicSpline(at, points)(np.linspace(0, at[-1], 4000))
    arc = compute_arc_lengths(fine)
    return interpolate(np.arange(0.0, arc[-1]), arc, fine)


def _draw_marks(path: Points, bovine: bool, rng: np.random.Generator) -> dict[str, float]:
    """Draw the origins of the branches, in millimetres from the root.

    The distance of the arch's branches from its top determines the type of the arch: the closer to the root, the
    higher the type.
    """
    top = int(np.argmax(path[:, 2]))
    subclavian = top + rng.uniform(-6, 22)
    carotid = subclavian - rng.uniform(15, 22)
    innominate = carotid - (rng.uniform(10, 12) if bovine else rng.uniform(17, 23))
    lower_renal = len(path) - 1 - rng.uniform(58, 92)
    other_renal = lower_renal - rng.uniform(0, 11)
    superior_mesenteric = other_renal - rng.uniform(17, 25)
    right_first = rng.random() < 0.6
    return {
        "Innominate": innominate,
        "LCC": carotid,
        "LSA": subclavian,
        "Celiac": superior_mesenteric - rng.uniform(17, 25),
        "SMA": superior_mesenteric,
        "RenalR": other_renal if right_first else lower_renal,
        "RenalL": lower_renal if right_first else other_renal,
        "Top": float(top),
        "Bifurcation": float(len(path) - 1),
    }


_DIAMETERS_MM = {
    "Innominate": (11.5, 14.0),
    "LCC": (8.8, 10.8),
    "LSA": (9.8, 12.0),
    "Celiac": (9.0, 11.2),
    "SMA": (9.0, 11.4),
    "RenalR": (8.8, 10.4),
    "RenalL": (8.8, 10.4),
    "Zone10": (11.8, 14.8),
    "Zone11": (9.8, 11.8),
    "InternalIliac": (9.0, 10.8),
}


def _compute_zone_starts(
    marks: Mapping[str, float], diameters: Mapping[str, float], scale: float, t6_share: float
) -> tuple[float, ...]:
    """Compute the zone borders of the Society for Vascular Surgery.

    Borders are the near and far edges of the ostia. T6 is at the share ``t6_share`` of the distance from zone 3 to the
    celiac artery.
    """
    below = {name: marks[name] + diameters[name] / 2 for name in diameters if name in marks}
    above = {name: marks[name] - diameters[name] / 2 for name in diameters if name in marks}
    zone_4 = below["LSA"] + ZONE_3_MM / scale
    t6 = zone_4 + t6_share * (above["Celiac"] - zone_4)
    renals = ("RenalR", "RenalL")
    return (
        0.0, below["Innominate"], below["LCC"], below["LSA"], zone_4, t6, above["Celiac"], above["SMA"],
        min(above[name] for name in renals), max(below[name] for name in renals),
    )  # fmt: skip


def _draw_aortic_radii(
    marks: Mapping[str, float], points: int, dissected: bool, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw the radius at each point, wider at dissections and aneurysms."""
    arch, loin = rng.uniform(12.2, 15.0), rng.uniform(7.8, 10.0)
    ascending, descending, celiac = arch * rng.uniform(1.05, 1.25), arch * rng.uniform(0.82, 0.98), loin * 1.2
    knots = {
        0.0: ascending * 0.95, 10.0: ascending * 1.18, 24.0: ascending, marks["Innominate"] - 6: ascending,
        marks["LSA"]: arch, marks["LSA"] + 40: descending, marks["Celiac"]: celiac, points - 1.0: loin,
    }  # fmt: skip
    at = np.arange(points, dtype=np.float64)
    radii = PchipInterpolator(sorted(knots), [knots[place] for place in sorted(knots)])(at)
    if dissected:
        radii *= 1 + rng.uniform(0.05, 0.3) * _evaluate_gaussian(at, marks["LSA"] + rng.uniform(40, 70), 35.0)
    if rng.random() < 0.35:
        radii *= 1 + rng.uniform(0.4, 0.8) * _evaluate_gaussian(at, points - rng.uniform(28, 38), rng.uniform(11, 14))
    if rng.random() < 0.25:
        radii *= 1 + rng.uniform(0.1, 0.25) * _evaluate_gaussian(at, marks["Innominate"] - 25, 18.0)
    return radii


def _evaluate_gaussian(at: NDArray[np.float64], centre: float, width: float) -> NDArray[np.float64]:
    return np.exp(-(((at - centre) / width) ** 2) / 2)


_DIRECTIONS: Mapping[str, tuple[tuple[float, float, float], ...]] = {
    # Directions (right, front, head) along the course of each branch.
    "Innominate": ((0.25, 0.25, 1.0), (0.55, 0.1, 1.0), (0.7, -0.1, 1.0)),
    "LCC": ((-0.05, 0.1, 1.0), (-0.2, 0.15, 1.0), (0.0, 0.05, 1.0)),
    "LSA": ((-0.25, -0.15, 1.0), (-0.35, -0.25, 1.0), (-0.9, -0.1, 0.7)),
    "Celiac": ((0.1, 1.0, -0.25), (0.3, 1.0, -0.1), (0.5, 0.9, 0.1)),
    "SMA": ((0.0, 1.0, -0.4), (0.05, 0.8, -0.9), (0.05, 0.45, -1.0)),
    "RenalR": ((1.0, 0.15, -0.1), (1.0, -0.45, -0.3), (1.0, -0.5, -0.25)),
    "RenalL": ((-1.0, 0.0, -0.1), (-1.0, -0.35, -0.25), (-1.0, -0.5, -0.15)),
}
_LENGTHS_MM = {
    "Innominate": (30, 42),
    "LCC": (32, 46),
    "LSA": (32, 46),
    "Celiac": (25, 34),
    "SMA": (36, 50),
    "RenalR": (36, 48),
    "RenalL": (28, 42),
}


def _draw_branch(
    name: str, aorta: Vessel, marks: Mapping[str, float], diameters: Mapping[str, float], rng: np.random.Generator
) -> Vessel:
    start = round(marks[name])
    points = _draw_course(
        aorta.points_mm[start], _DIRECTIONS[name], aorta.radii_mm[start] + rng.uniform(*_LENGTHS_MM[name]), rng
    )
    radii = diameters[name] / 2 * np.linspace(1.0, rng.uniform(0.9, 1.0), len(points))
    return Vessel(name, "Aorta", points, radii, (name,), (0.0,))


def _draw_iliacs(aorta: Vessel, diameters: Mapping[str, float], rng: np.random.Generator) -> list[Vessel]:
    """Draw the iliac arteries of both sides.

    Common and external artery of a side are one tube; the internal arteries are last.
    """
    tubes, internals = [], []
    for side, right in (("R", 1), ("L", -1)):
        spread = right * rng.uniform(0.38, 0.58)
        common = round(rng.uniform(42, 56))
        outwards = [(spread, 0.0, -1.0), (spread, -0.35, -1.0), (spread, -0.2, -1.0)]
        onwards = [*outwards, (0.9 * spread, 0.45, -1.0), (0.8 * spread, 0.7, -1.0), (0.4 * spread, 0.5, -1.0)]
        points = _draw_course(aorta.points_mm[-1], onwards, common + rng.uniform(50, 66), rng)
        wide, narrow = diameters["Zone10"] / 2, diameters["Zone11"] / 2
        radii = np.interp(np.arange(len(points)), [0, common - 8, common + 6], [wide, wide, narrow])
        iliac, internal = f"Iliac{side}", f"InternalIliac{side}"
        tubes.append(Vessel(iliac, "Aorta", points, radii, (f"Zone10{side}", f"Zone11{side}"), (0.0, common + 2.0)))
        directions = [(-0.1 * right, -1.0, -0.6), (-0.05 * right, -0.8, -1.0), (0.1 * right, -0.4, -1.0)]
        inner = _draw_course(points[common], directions, wide + rng.uniform(28, 38), rng)
        thickness = diameters["InternalIliac"] / 2 * np.linspace(1.0, 0.92, len(inner))
        internals.append(Vessel(internal, iliac, inner, thickness, (internal,), (0.0,)))
    return [*tubes, *internals]


def _draw_course(
    start: Points, directions: Sequence[tuple[float, float, float]], length_mm: float, rng: np.random.Generator
) -> Points:
    """Draw a path that turns through the given directions, each with noise.

    It has one point per millimetre.
    """
    wobble = rng.normal(0, 0.11, (len(directions), 3))
    steps = np.arange(round(length_mm)) + 0.5
    heading = PchipInterpolator(np.linspace(0, length_mm, len(directions)), np.array(directions) + wobble)(steps)
    heading /= np.linalg.norm(heading, axis=1, keepdims=True)
    return np.concatenate([start[None], start + np.cumsum(heading, axis=0)])


def _draw_flap(marks: Mapping[str, float], scale: float, rng: np.random.Generator) -> Flap:
    start = marks["LSA"] + rng.uniform(10, 28)
    ends = (marks["Celiac"] - 25, marks["RenalL"] + 10, marks["Bifurcation"] - 8)
    stop = ends[int(rng.choice(3, p=(0.25, 0.3, 0.45)))]
    return Flap(
        start_mm=scale * start,
        stop_mm=scale * stop,
        offset=rng.uniform(-0.3, 0.3),
        angle=rng.uniform(-np.pi, np.pi),
        twist=rng.choice((-1, 1)) * rng.uniform(0.3, 1.6) * np.pi / (scale * (stop - start)),
        thickness_mm=rng.uniform(1.4, 2.4),
    )
