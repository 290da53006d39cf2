from data_prep import read_aorta
from data_prep.aorta import MIRROR_PAIRS, SIDES, STRUCTURES
from tests.data_prep.raw_layouts import Aorta, CisUnet, case_ids, read_all


def test_subjects_from_41_on_are_test_cases_which_need_no_label(tmp_path):
    numbers = (*range(32, 41, 2), *range(41, 54, 3))
    for number in numbers:
        Aorta().write_patient(tmp_path, number)
    Aorta().files(tmp_path, 44)["label"][0].unlink()

    manifest = read_all(read_aorta, tmp_path)

    assert case_ids(manifest) == [f"subject{number:03d}" for number in numbers]
    # The released code tests on 041 to 053, and trains on 041 to 043 as well.
    assert case_ids(manifest, split="test") == [f"subject{number:03d}" for number in numbers if number > 40]
    assert sorted(case.fold for case in manifest.select(split="training")) == [0, 1, 2, 3, 4]
    assert manifest.by_id("subject044").label is None


def test_the_classes_are_numbered_as_in_the_challenge():
    branches = {"Innominate": 2, "LCC": 4, "LSA": 6, "Celiac": 11, "SMA": 13, "RenalR": 15, "RenalL": 16}
    iliacs = {"Zone10R": 18, "Zone10L": 19, "InternalIliacR": 20, "InternalIliacL": 21, "Zone11R": 22, "Zone11L": 23}
    zones = {f"Zone{n}": v for n, v in enumerate((1, 3, 5, 7, 8, 9, 10, 12, 14, 17))}
    assert branches | iliacs | zones == STRUCTURES


def test_every_class_with_a_side_is_marked_and_its_partner_named(tmp_path):
    lateral = {name for name in STRUCTURES if name.endswith(("R", "L"))}
    Aorta().write_patient(tmp_path, 1)
    manifest, _ = read_aorta(tmp_path)

    assert {name for pair in MIRROR_PAIRS for name in pair} == lateral
    assert all((right[-1], left[-1], right[:-1]) == ("R", "L", left[:-1]) for right, left in MIRROR_PAIRS)
    assert {name: side for name, side in SIDES.items() if name not in lateral} == {"LCC": "left", "LSA": "left"}
    assert all(SIDES[name] == {"R": "right", "L": "left"}[name[-1]] for name in lateral)
    assert manifest.extra == {"sides": SIDES, "mirror_pairs": [list(pair) for pair in MIRROR_PAIRS]}
    for words in ("arXiv:2502.05330", "arXiv:2401.13049"):
        assert words in manifest.reference
    assert "signed data agreement" in manifest.licence


def test_a_subject_found_in_both_namings_is_reported(tmp_path):
    for layout in (Aorta(), CisUnet()):
        layout.write_patient(tmp_path, 1)

    manifest, (error,) = read_aorta(tmp_path)

    assert (error.case_id, error.key, manifest.cases) == ("subject001", "image", ())
