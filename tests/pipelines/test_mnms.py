"""Small M&Ms download: cines to scores by vendor, on the command line."""

import csv
import os
import shutil
import signal
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
import pytest

import data_prep.mnms_frames
from tests.pipelines.run_files import MakeConfig, Refused, contents, read_json, set_options
from uumamba.cli import main
from uumamba.data.case import Manifest
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.datasets import read_dataset
from uumamba.pipelines.jobs import check_same_run
from uumamba.pipelines.run import run
from uumamba.pipelines.train import train
from uumamba.runtime.errors import UsageError
from uumamba.runtime.stop import StoppedOnRequest

SHEET = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
SHAPE, FRAMES = (40, 36, 3), 4
SPACING_MM = (3.0, 3.0, 10.0)
SHORT = ("dataset.name=mnms", "training.patch_size=[32,32]", "augment.mirror_axes=[]", "training.epochs=1")
# Code, part, vendor, ED, ES. Only these two frames of a cine are labelled.
PATIENTS = (
    *((f"A{n}", "Training/Labeled", "A", 0, 2) for n in range(5)),
    *((f"B{n}", "Training/Labeled", "B", 3, 1) for n in range(5)),
    ("C7", "Training/Unlabeled", "C", 0, 1),
    ("D7", "Validation", "D", 0, 1),
    ("A8", "Testing", "A", 0, 2),
    ("D8", "Testing", "D", 1, 3),
)


class Command(Protocol):
    """``command("prepare", ...)``: exit code, stdout and stderr."""

    def __call__(self, *arguments: object) -> tuple[int, str, str]: ...


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("COLUMNS", "100")

    def run_it(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return int(ended.value.code or 0), *capsys.readouterr()

    return run_it


def heart(vendor: str) -> np.ndarray:
    """Make a label of LV, MYO and RV with a vendor's size."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    size = 5 + "ABCD".index(vendor)
    from_lv, from_rv = np.hypot(y - 20, x - 22), np.hypot(y - 20, x - 8)
    plane = np.where(from_rv < size, 3, 0)
    plane = np.where(from_lv < size, 2, plane)
    return np.repeat(np.where(from_lv < size - 2, 1, plane)[:, :, None], SHAPE[2], axis=2).astype(np.uint8)


def save(path: Path, array: np.ndarray) -> None:
    image = nib.Nifti1Image(array, np.diag([*SPACING_MM, 1.0]))
    image.header.set_zooms((*SPACING_MM, 0.03)[: array.ndim])
    image.header.set_xyzt_units("mm", "sec")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def write_mnms(raw: Path) -> Path:
    brightness = np.array([60, 200, 120, 180])
    lines = [",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"]
    for number, (code, part, vendor, ed, es) in enumerate(PATIENTS):
        structures = heart(vendor)
        noise = np.random.default_rng(number).normal(0, 5, (*SHAPE, FRAMES))
        image, label = brightness[structures][..., None] + noise, np.zeros((*SHAPE, FRAMES), np.uint8)
        label[..., ed] = label[..., es] = structures
        save(raw / part / code / f"{code}_sa.nii.gz", image.astype(np.int16))
        if part != "Training/Unlabeled":
            save(raw / part / code / f"{code}_sa_gt.nii.gz", label)
        lines.append(f"{number},{code},x,{vendor},1,{ed},{es},44,NOR,F,1,1")
    (raw / SHEET).write_text("\n".join(lines) + "\n")
    return raw


@pytest.fixture(scope="module")
def mnms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Download that no test changes."""
    return write_mnms(tmp_path_factory.mktemp("download") / "OpenDataset")


@pytest.fixture
def own_mnms(mnms: Path, tmp_path: Path) -> Path:
    """Copy of the download, to be spoiled."""
    return Path(shutil.copytree(mnms, tmp_path / "OpenDataset"))


@pytest.fixture(scope="module")
def settings(tiny_overrides: tuple[str, ...]) -> list[str]:
    """``--set`` options of a short run."""
    return set_options(*tiny_overrides, *SHORT)


@pytest.fixture(scope="module")
def prepared(mnms: Path, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The download after ``uumamba prepare``."""
    out = tmp_path_factory.mktemp("mnms") / "prepared"
    with pytest.raises(SystemExit, match="0"):
        main(["prepare", "demo", "--raw", str(mnms), "--out", str(out), "--workers", "0", *settings])
    return out


def rows_of(scores: Path) -> list[dict[str, str]]:
    with (scores / "scores.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_verbs_lead_from_the_download_to_dice_by_vendor(
    mnms: Path, settings: list[str], command: Command, tmp_path: Path
) -> None:
    before = contents(mnms)
    data, trained, predicted = (tmp_path / name for name in ("prepared", "run", "predictions"))
    prepare = ["prepare", "demo", "--raw", mnms, "--out", data, "--workers", 0, *settings]
    code, _, said = command(*prepare)
    assert (code, said) == (
        0,
        f"frames: 13 of 13 patients\nprepare: 20 of 20 cases\n20 cases prepared, 0 reused, in {data}\n",
    )
    stamps = {path: path.stat().st_mtime_ns for path in (data / "frames").rglob("*.nii.gz")}
    assert len(stamps) == 4 * 13
    code, _, said = command(*prepare)
    assert (code, said.splitlines()[-1]) == (0, f"0 cases prepared, 20 reused, in {data}")
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "frames are reused"

    options = ["--data", data, "--out", trained, "--device", "cpu", *settings]
    code, _, said = command("train", "demo", *options, "--set", "dataset.domains={train: [A], validate: [A]}")
    assert code == 0
    assert "10 of 20 cases are used neither for training nor for validation: 10 of B" in said
    options = ["--input", data, "--out", predicted, "--device", "cpu", "--split", "test"]
    assert command("predict", trained, *options)[0] == 0
    domains = {"A8_frame00": "A", "A8_frame02": "A", "D8_frame01": "D", "D8_frame03": "D"}
    assert {path.name.removesuffix(".nii.gz") for path in predicted.glob("*.nii.gz")} == domains.keys()

    of_prepared, of_download = tmp_path / "scores", tmp_path / "again"
    for labels, out in ((data, of_prepared), (mnms, of_download)):
        arguments = ["--predictions", predicted, "--labels", labels, "--out", out, "--split", "test"]
        code, shown, _ = command("evaluate", *arguments)
        assert code == 0
        assert "Dice by domain" in shown
    assert rows_of(of_prepared) == rows_of(of_download)
    assert {row["case_id"]: row["domain"] for row in rows_of(of_prepared)} == domains
    summary = read_json(of_prepared / "summary.json")
    counts = [(each["domain"], each["n_cases"], each["n_patients"]) for each in summary["domains"]]
    assert counts == [("A", 2, 1), ("D", 2, 1)]
    assert contents(mnms) == before

    options = ["--predictions", predicted, "--out", of_prepared, "--split", "test", "--domain"]
    code, shown, _ = command("evaluate", "--labels", data, *options, "D")
    assert (code, {row["patient_id"] for row in rows_of(of_prepared)}) == (0, {"D8"})
    assert "Dice by domain" not in shown, "one domain only"
    for labels, domain in ((data, "E"), (predicted, "D")):
        code, _, said = command("evaluate", "--labels", labels, *options, domain)
        assert (code, said.startswith(f"uumamba: --labels: got {labels}, expected ")) == (2, True)


def test_a_run_that_leaves_a_vendor_out_scores_all_of_its_patients(
    mnms: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    config = tiny_config(*SHORT, "dataset.domains={leave_out: B}")
    result = run(config, raw=mnms, out=tmp_path)
    assert result.scores is not None
    assert {(row.patient_id, row.domain) for row in result.scores.rows} == {(f"B{n}", "B") for n in range(5)}
    fold = tmp_path / "run" / "fold_0"
    [start] = read_json(fold / "manifest.json")["starts"]
    assert start["cases"] == {"training": {"A": 10}, "validation": {"B": 10}}
    assert read_json(fold / "config.json")["run"]["dataset"] == {
        "name": "mnms",
        "domains": {"train": None, "validate": None, "leave_out": "B"},
    }
    check_same_run(config, tmp_path / "run")
    with pytest.raises(UsageError, match=r"dataset\.domains\.leave_out"):
        check_same_run(tiny_config(*SHORT, "dataset.domains={leave_out: A}"), tmp_path / "run")


def test_an_unknown_vendor_is_refused_before_anything_is_made(
    mnms: Path, prepared: Path, tiny_config: MakeConfig, tmp_path: Path, refused: Refused
) -> None:
    config = tiny_config(*SHORT, "dataset.domains={leave_out: D}")
    with refused("dataset.domains", got="D"):
        run(config, raw=mnms, out=tmp_path / "out")
    assert not (tmp_path / "out").exists(), "no frames are cut"
    with refused("dataset.domains", got="D"):
        train(config, data=prepared, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_read_only_download_is_prepared(mnms: Path, settings: list[str], forked_cli: Any, tmp_path: Path) -> None:
    raw, out = Path(shutil.copytree(mnms, tmp_path / "raw")), tmp_path / "prepared"
    for path in (*raw.rglob("*"), raw):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        arguments = ["prepare", "demo", "--raw", str(raw), "--out", str(out), "--workers", "0", *settings]
        assert forked_cli.run(*arguments, stderr=tmp_path / "said", before="obey_permissions()") == 0
        assert len(Manifest.read(out).select(split="training")) == 20
    finally:
        for path in (raw, *raw.rglob("*")):
            path.chmod(0o755)


def test_a_moved_prepared_folder_keeps_its_frames(prepared: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(prepared, tmp_path / "moved"))
    for case in PreparedFolder(moved).manifest.cases:
        assert case.image.is_relative_to(moved)
        assert case.image.is_file()


def test_a_stop_request_while_frames_are_cut_leaves_whole_files(
    mnms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = data_prep.mnms_frames.write_nifti, list[Path]()

    def write_and_stop(path: Path, *rest: Any, **more: Any) -> None:
        write(path, *rest, **more)
        written.append(path)
        if len(written) == 6:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(data_prep.mnms_frames, "write_nifti", write_and_stop)
        with pytest.raises(StoppedOnRequest, match="the frames of 2 of 13 patients"):
            read_dataset("mnms", mnms, frames=tmp_path / "frames")
    assert len(written) == 8
    stamps = {path: path.stat().st_mtime_ns for path in written}
    manifest, errors = read_dataset("mnms", mnms, frames=tmp_path / "frames")
    assert (len(manifest.cases), errors) == (24, [])
    assert {path: path.stat().st_mtime_ns for path in written} == stamps


def test_cases_are_listed_as_after_cutting_before_any_frame_is_cut(mnms: Path, tmp_path: Path) -> None:
    listed = read_dataset("mnms", mnms, frames=tmp_path / "frames", cut=False)
    assert not (tmp_path / "frames").exists()
    assert listed == read_dataset("mnms", mnms, frames=tmp_path / "frames")
    assert len(listed[0].cases) == 24


def without_column(raw: Path) -> None:
    lines = (raw / SHEET).read_text().splitlines()
    (raw / SHEET).write_text("\n".join(",".join(line.split(",")[:6]) for line in lines))


def spoil_three(raw: Path) -> None:
    """Spoil one sheet entry, one label and one scan."""
    (raw / SHEET).write_text((raw / SHEET).read_text().replace(",A1,x,A,1,0,2,", ",A1,x,A,1,,2,"))
    path = raw / "Training/Labeled/A2/A2_sa_gt.nii.gz"
    label = np.asarray(nib.load(path).dataobj).copy()
    label[0, 0, 0, 2] = 4
    save(path, label)
    os.truncate(raw / "Training/Labeled/A3/A3_sa.nii.gz", 500)


@pytest.mark.parametrize(("spoil", "code", "cases"), [(without_column, 2, 0), (spoil_three, 3, 14)])
def test_a_bad_download_is_reported_by_patient_and_the_others_are_prepared(
    own_mnms: Path, settings: list[str], command: Command, tmp_path: Path, spoil: Any, code: int, cases: int
) -> None:
    spoil(own_mnms)
    out = tmp_path / "prepared"
    found, _, said = command("prepare", "demo", "--raw", own_mnms, "--out", out, "--workers", 0, *settings)
    assert found == code
    assert [name in said for name in ("failed: A1", "failed: A2", "failed: A3")] == [code == 3] * 3
    assert "Traceback" not in said
    assert len(list(out.glob("cases/*/case.json"))) == cases


def test_frames_are_not_cut_into_the_download(own_mnms: Path, settings: list[str], command: Command) -> None:
    before = contents(own_mnms)
    for out in (own_mnms, own_mnms / "Training"):
        assert command("prepare", "demo", "--raw", own_mnms, "--out", out, *settings)[0] == 2
    assert contents(own_mnms) == before
