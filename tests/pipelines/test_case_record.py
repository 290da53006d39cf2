"""Records of predicted cases."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.pipelines.run_files import save_nifti
from uumamba.data.warn import ScanWarning
from uumamba.pipelines.predict import predict
from uumamba.runtime.text_files import load_json


def test_a_record_holds_the_volumes_of_the_written_label_map(tiny_run: Path, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(1, 900, (40, 44, 3)).astype(np.int16)
    scan = save_nifti(tmp_path / "scan.nii.gz", voxels, (3.0, 3.0, 8.0))
    (path,) = predict(tiny_run, [scan], out=tmp_path / "out").written
    label = np.asarray(nib.load(path).dataobj)
    record = load_json(tmp_path / "out" / "records" / "scan.json")
    assert record["label"] == path.name
    assert record["images"] == [str(scan)]
    (volumes,) = record["volumes_ml"]
    assert volumes == {name: 0.072 * (label == value).sum() for name, value in {"RV": 1, "MYO": 2, "LV": 3}.items()}


def test_a_record_holds_the_repairs_of_its_scan(tiny_run: Path, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(1, 900, (40, 44, 3)).astype(np.int16)
    image = nib.Nifti1Image(voxels, np.diag([0.003, 0.003, 0.008, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "scan.nii.gz")
    with pytest.warns(ScanWarning, match="scan: its unit of length is 1000 mm; converted"):
        (record,) = predict(tiny_run, [tmp_path / "scan.nii.gz"], out=tmp_path / "out").records
    assert record.warnings == ("its unit of length is 1000 mm; converted to millimetres.",)
