"""Tests of the search for ACDC's recipe."""

import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import acdc_search
from benchmarks.acdc_scores import summarize_scores
from benchmarks.heart_crops import cut_around_hearts
from data_prep.acdc import read_acdc
from uumamba.config import read_config
from uumamba.data.prepared import PreparedFolder
from uumamba.evaluation.scores import ScoreRow


def make_row(
    patient: str, phase: str, structure: str, dice: float, hd95: float, volume: float, true: float
) -> ScoreRow:
    return ScoreRow(
        case_id=f"{patient}_{phase}",
        patient_id=patient,
        phase=phase,
        group=None,
        domain="",
        structure=structure,
        dice=dice,
        hd95_mm=hd95,
        nsd=1.0,
        assd_mm=1.0,
        volume_ml=volume,
        label_volume_ml=true,
    )


def test_scores_in_one_row_are_means_over_frames_and_patients() -> None:
    rows = [
        make_row("a", phase, name, dice, hd95, volume, true)
        for name in ("RV", "MYO", "LV")
        for phase, dice, hd95, volume, true in (("ED", 0.9, 2.0, 100, 100), ("ES", 0.8, math.inf, 50, 40))
    ]
    found = summarize_scores(rows)
    assert found["dice"] == found["dice_LV"] == pytest.approx(0.85)
    assert (found["hd95_mm_RV"], found["missed"]) == (2.0, 3)
    assert found["lvef_mae"] == pytest.approx(10)  # 50 % instead of 60 %


def test_every_candidate_is_a_valid_configuration_and_changes_it() -> None:
    before = read_config(acdc_search.CONFIG, acdc_search.BASE).as_json()
    names = [step.name for step in acdc_search.list_steps()]
    assert len(set(names)) == len(names)
    for step in acdc_search.list_steps():
        for extra in step.candidates.values():
            settings = [each for each in extra if each != acdc_search.HEART_CROPS]
            config = read_config(acdc_search.CONFIG, [*acdc_search.BASE, *settings])
            config.check()
            assert config.as_json() != before


@pytest.mark.parametrize(
    ("dice", "hd95", "kept"),
    [(0.902, 20.0, True), (0.9005, 9.9, False), (0.9005, 8.0, True), (0.8985, 1.0, False), (0.8995, 8.9, True)],
)
def test_a_candidate_is_kept_for_dice_or_at_equal_dice_for_distances(dice: float, hd95: float, kept: bool) -> None:
    current = {"dice": 0.9, "hd95_mm": 10.0}
    found = acdc_search.find_best(current, {"a": {"dice": dice, "hd95_mm": hd95}, "b": {"dice": 0.5, "hd95_mm": 0.0}})
    assert found == ("a" if kept else None)


@pytest.mark.slow
def test_a_search_leaves_fold_0_out_and_reads_finished_trials(
    phantom: PreparedFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, table = phantom.path.parent / "raw", tmp_path / "search.json"
    command = ["--acdc", str(raw), "--out", str(tmp_path), "--json", str(table), "--quick"]
    assert acdc_search.main(command) == 0
    rows = json.loads(table.read_text())["rows"]
    steps = ["start", *["learning rate"] * 2, "heart-centred second stage", *["width"] * 3]
    assert [row["step"] for row in rows] == steps
    assert [row["kept"] for row in rows if row["step"] == "heart-centred second stage"] == [False]
    for name in ("prepared", "crops"):
        prepared = PreparedFolder(tmp_path / "quick" / f"{name}_1.5mm")
        assert {case.fold for case in prepared.manifest.cases} == {1, 2, 3, 4}
    kept = [json.loads(line) for line in (tmp_path / "search_trials.jsonl").read_text().splitlines()]
    assert len(kept) == len(rows)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(acdc_search, "train", fail)
    assert acdc_search.main(command) == 0


def test_frames_are_cut_around_their_labels_with_all_voxels_of_the_heart(
    phantom: PreparedFolder, tmp_path: Path
) -> None:
    raw = phantom.path.parent / "raw"
    before = {case.case_id: case for case in read_acdc(raw)[0].cases}
    after = {case.case_id: case for case in read_acdc(cut_around_hearts(raw, tmp_path, margin_mm=10.0))[0].cases}
    assert after.keys() == {name for name, case in before.items() if case.split == "training"}
    for name, case in after.items():
        whole, cut = (read_voxels(each.label) for each in (before[name], case))
        assert read_voxels(case.image).shape == cut.shape
        assert cut.size < whole.size
        assert np.array_equal(np.bincount(cut.ravel())[1:], np.bincount(whole.ravel())[1:])


def read_voxels(path: Any) -> NDArray[Any]:
    scan: Any = nib.load(path)
    return np.asarray(scan.dataobj)
