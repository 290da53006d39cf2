import csv
from collections import Counter

import nibabel as nib
import numpy as np

from data_prep import read_imagecas
from data_prep.phantoms.coronary.coronary_phantom import SHEET_NAME, write_coronary_phantom
from tests.data_prep.raw_layouts import file_bytes


def test_files_have_imagecas_names_in_shards_of_200_cases(coronary_raw, tmp_path, orders):
    names = {f"1-200/{number}.{kind}.nii.gz" for number in range(1, 6) for kind in ("img", "label")}
    assert set(file_bytes(coronary_raw)) == names | {SHEET_NAME}

    write_coronary_phantom(tmp_path, cases=201)
    assert [orders[at].folder.name for at in (0, 199, 200)] == ["1-200", "1-200", "201-400"]


def test_each_split_validates_on_another_fifth_and_never_on_a_test_case(tmp_path, orders):
    write_coronary_phantom(tmp_path, cases=40, test_cases=10)
    rows = list(csv.DictReader((tmp_path / SHEET_NAME).read_text(encoding="utf-8").splitlines()))

    assert list(rows[0]) == ["FileName", "Split-1", "Split-2", "Split-3", "Split-4"]
    assert [int(row["FileName"]) for row in rows] == list(range(1, 51))
    validated = [row["FileName"] for split in range(1, 5) for row in rows if row[f"Split-{split}"] == "Validation"]
    assert len(validated) == len(set(validated)) == 4 * 8
    for split in range(1, 5):
        given = [row[f"Split-{split}"] for row in rows]
        assert Counter(given) == {"Training": 32, "Validation": 8, "Testing": 10}
        assert given[40:] == ["Testing"] * 10


def test_images_are_hounsfield_units_with_the_headers_of_a_ct_series(coronary_raw):
    origins = set()
    for case in read_imagecas(coronary_raw)[0].cases:
        image, label = nib.load(case.image), nib.load(case.label)
        hu, spacing_mm = np.asarray(image.dataobj), np.array(image.header.get_zooms())
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
        assert -1024 <= hu.min() < -900 < 500 < hu.max() <= 3071
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        np.testing.assert_allclose(np.linalg.norm(image.affine[:3, :3], axis=0), spacing_mm, rtol=1e-6)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
        codes = [int(image.header[form]) for form in ("qform_code", "sform_code")]
        assert (codes, image.header.get_xyzt_units()[0]) == ([1, 1], "mm")
        assert np.all((spacing_mm >= 0.5) & (spacing_mm <= 0.6))
        origins.add(tuple(image.affine[:3, 3]))
    assert len(origins) == 5


def test_arteries_are_a_small_share_of_the_bright_voxels(coronary_raw):
    for case in read_imagecas(coronary_raw)[0].cases:
        hu, label = (np.asarray(nib.load(path).dataobj) for path in (case.image, case.label))
        arteries = hu[label == 1]
        bright = (hu > np.quantile(arteries, 0.05)) & (hu < np.quantile(arteries, 0.95))

        assert 0.001 < label.mean() < 0.02
        assert np.median(arteries) > 180
        # Few voxels with the brightness of an artery belong to one.
        assert np.mean(label[bright]) < 0.25
