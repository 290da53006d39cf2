"""Label maps of known volumes and their scores."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from uumamba.evaluation import EvaluationPair, ScoreRow, evaluate

STRUCTURES = {"RV": 1, "MYO": 2, "LV": 3}
MakePair = Callable[..., EvaluationPair]


@pytest.fixture(scope="session")
def structures() -> dict[str, int]:
    return dict(STRUCTURES)


@pytest.fixture(scope="session")
def make_pair() -> MakePair:
    """Factory of pairs with given millilitres of each structure.

    Voxels of 1 ml fill one slab for each structure, from its first voxel on.
    """

    def make(
        case_id: str, predicted: Mapping[str, int], labelled: Mapping[str, int], *, patient_id: str = "", **given: Any
    ) -> EvaluationPair:
        maps = fill_slabs(predicted), fill_slabs(labelled)
        return EvaluationPair(case_id, patient_id or case_id, *maps, (10.0, 10.0, 10.0), **given)

    return make


@pytest.fixture(scope="session")
def cohort(make_pair: MakePair) -> tuple[ScoreRow, ...]:
    """Three patients at ED and ES.

    The label EFs of the LV are 60, 50 and 20 %. One RV is missed, and one is predicted where the label has none.
    """
    ml = dict
    pairs = [
        make_pair(
            "a_1", ml(RV=90, MYO=80, LV=100), ml(RV=100, MYO=80, LV=100), patient_id="a", phase="ED", group="NOR"
        ),
        make_pair("a_9", ml(RV=40, MYO=80, LV=50), ml(RV=50, MYO=80, LV=40), patient_id="a", phase="ES", group="NOR"),
        make_pair("b_1", ml(MYO=60, LV=80), ml(RV=100, MYO=70, LV=80), patient_id="b", phase="ED", group="NOR"),
        make_pair("b_7", ml(RV=60, MYO=70, LV=40), ml(RV=60, MYO=70, LV=40), patient_id="b", phase="ES", group="NOR"),
        make_pair("c_1", ml(RV=70, MYO=99, LV=99), ml(RV=70, MYO=99, LV=100), patient_id="c", phase="ED", group="DCM"),
        make_pair("c_8", ml(RV=5, MYO=99, LV=90), ml(MYO=99, LV=80), patient_id="c", phase="ES", group="DCM"),
    ]
    return evaluate(pairs, structures=STRUCTURES).rows


@pytest.fixture(scope="session")
def two_vendors(cohort: tuple[ScoreRow, ...]) -> tuple[ScoreRow, ...]:
    """Cohort with patients a, b of vendor A, c of vendor D."""
    return tuple(replace(row, domain="D" if row.patient_id == "c" else "A") for row in cohort)


def fill_slabs(volumes_ml: Mapping[str, int]) -> np.ndarray:
    """Label map of three slabs, of RV, MYO and LV."""
    labels = np.zeros((3, 10, 10), np.uint8)
    for name, volume in volumes_ml.items():
        slab = labels[STRUCTURES[name] - 1].reshape(-1)
        slab[:volume] = STRUCTURES[name]
    return labels
