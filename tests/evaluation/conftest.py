"""A small cohort of known volumes, scored by the real functions."""

from collections.abc import Callable, Mapping

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
    """A pair with as many millilitres of each structure as asked for: voxels of 1 ml, laid out one after another."""

    def make(
        case_id: str,
        predicted: Mapping[str, int],
        labelled: Mapping[str, int],
        *,
        patient_id: str | None = None,
        phase: str | None = None,
        group: str | None = None,
    ) -> EvaluationPair:
        return EvaluationPair(
            case_id=case_id,
            patient_id=patient_id or case_id,
            prediction=label_map(predicted),
            label=label_map(labelled),
            spacing_mm=(10.0, 10.0, 10.0),
            phase=phase,
            group=group,
        )

    return make


@pytest.fixture(scope="session")
def cohort(make_pair: MakePair) -> tuple[ScoreRow, ...]:
    """Three patients at ED and ES; label EFs of the LV are 60, 50 and 20 %, one RV is missed and one is invented."""
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


def label_map(volumes_ml: Mapping[str, int]) -> np.ndarray:
    """RV fills the first of three slabs, MYO the second, LV the third, each from its beginning."""
    labels = np.zeros((3, 10, 10), np.uint8)
    for name, volume in volumes_ml.items():
        slab = labels[STRUCTURES[name] - 1].reshape(-1)
        slab[:volume] = STRUCTURES[name]
    return labels
