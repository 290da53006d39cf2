from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from data_prep.phantoms.heart.heart_painting import paint_heart
from data_prep.phantoms.heart.heart_shape import HABITS, compute_bounding_circle, draw_heart
from data_prep.phantoms.heart.heart_shape import compute_end_diastole as end_diastole
from data_prep.phantoms.heart.heart_shape import compute_end_systole as end_systole
from data_prep.phantoms.heart.heart_tissue import LABEL_OF_TISSUE, Tissue

STEP_MM = 0.5
GRID = np.arange(-110, 110, STEP_MM, dtype=np.float32)
U, V = np.meshgrid(GRID, GRID, indexing="ij")


def paint(phase, z_mm):
    tissues = np.zeros(U.shape, dtype=np.uint8)
    paint_heart(tissues, U, V, z_mm, phase)
    return tissues


def volumes_ml(phase, step_mm=4.0):
    """Compute the volumes of RV, MYO and LV from fine planes."""
    planes = [LABEL_OF_TISSUE[paint(phase, z)] for z in np.arange(step_mm / 2, phase.end_mm, step_mm)]
    counts = np.bincount(np.concatenate(planes, axis=None), minlength=4)[1:]
    return counts * STEP_MM**2 * step_mm / 1000


@pytest.fixture(params=list(HABITS))
def heart(request):
    return draw_heart(request.param, np.random.default_rng(3))


def test_systole_ejects_the_drawn_fraction_keeps_the_myocardium_and_moves_the_base(heart):
    phases = end_diastole(heart), end_systole(heart)
    diastole, systole = (volumes_ml(phase) for phase in phases)
    formula = np.pi * heart.lv_radius_mm**2 * heart.lv_length_mm * heart.taper / (heart.taper + 1) / 1000
    walls = [phase.outer_radius_mm - phase.cavity_radius_mm for phase in phases]

    assert diastole[2] == pytest.approx(formula, rel=0.05)
    assert 1 - systole[2] / diastole[2] == pytest.approx(heart.lv_ejection, abs=0.04)
    assert systole[1] == pytest.approx(diastole[1], rel=0.08)
    assert systole[0] < diastole[0]
    assert walls[1] > walls[0]
    assert phases[1].base_mm > phases[0].base_mm == 0


def test_atria_above_the_base_are_not_labelled_and_beyond_the_apex_there_is_no_tissue(heart):
    for phase in (end_diastole(heart), end_systole(heart)):
        above, below = paint(phase, phase.base_mm - 1), paint(phase, phase.base_mm + 1)

        assert (above == Tissue.ATRIUM).any()
        assert not LABEL_OF_TISSUE[above].any()
        assert set(np.unique(LABEL_OF_TISSUE[below])) == {0, 1, 2, 3}
        assert not paint(phase, phase.end_mm + 0.1).any()


def test_myocardium_surrounds_the_cavity_in_every_plane(heart):
    for phase in (end_diastole(heart), end_systole(heart)):
        for z_mm in np.linspace(phase.base_mm + 1, phase.end_mm - 1, 5):
            label = LABEL_OF_TISSUE[paint(phase, z_mm)]
            cavity = label == 3
            assert set(np.unique(label[binary_dilation(cavity) & ~cavity])) <= {2}


def test_papillary_muscles_are_part_of_the_labelled_cavity(heart):
    assert (paint(end_diastole(heart), 0.5 * heart.lv_length_mm) == Tissue.PAPILLARY).any()
    assert LABEL_OF_TISSUE[Tissue.PAPILLARY] == LABEL_OF_TISSUE[Tissue.LV_BLOOD] == 3


def test_infarcted_myocardium_is_thin_at_the_scar_in_both_phases():
    drawn = draw_heart("MINF", np.random.default_rng(0))
    heart = replace(drawn, harmonics=(0j, 0j), scar_direction=-1 + 0j, septal_bulge_mm=0.0, lean=(0.0, 0.0))

    for phase in (end_diastole(heart), end_systole(heart)):
        label = LABEL_OF_TISSUE[paint(phase, phase.base_mm + 0.3 * phase.length_mm)]
        middle = len(GRID) // 2
        scarred, healthy = np.count_nonzero(label[:middle, middle] == 2), np.count_nonzero(label[middle, :middle] == 2)
        assert scarred < 0.85 * healthy


def test_the_bounding_circle_fits_the_heart_at_its_base(heart):
    radius, centre_u = compute_bounding_circle(heart)
    labelled = LABEL_OF_TISSUE[paint(end_diastole(replace(heart, lean=(0.0, 0.0))), 0.5)] > 0

    distance = np.hypot(U - centre_u, V)[labelled].max()
    assert distance <= 1.25 * radius
    assert distance >= 0.8 * radius
