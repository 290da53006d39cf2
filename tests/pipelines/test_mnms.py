"""M&Ms as it is downloaded, generated small: from whole cines to scores by the command line, vendor by vendor."""

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
import pytest

import data_prep.mnms_frames
from uumamba.cli import main
from uumamba.config import RunConfig
from uumamba.data.case import Manifest
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.datasets import read_dataset
from uumamba.pipelines.evaluate import evaluate_folder
from uumamba.pipelines.run import run
from uumamba.pipelines.train import refuse_another_run, train
from uumamba.runtime.errors import UsageError
from uumamba.runtime.stop import StoppedOnRequest

MakeConfig = Callable[..., RunConfig]
SHEET = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
SHAPE, FRAMES = (40, 36, 3), 4
SPACING_MM = (3.0, 3.0, 10.0)
MNMS = "dataset.name=mnms"
# Code, part, vendor, ED, ES. The cine's masks are empty but in those two frames.
PATIENTS = (
    *((f"A{n}", "Training/Labeled", "A", 0, 2) for n in range(5)),
    *((f"B{n}", "Training/Labeled", "B", 3, 1) for n in range(5)),
    ("C7", "Training/Unlabeled", "C", 0, 1),
    ("D7", "Validation", "D", 0, 1),
    ("A8", "Testing", "A", 0, 2),
    ("D8", "Testing", "D", 1, 3),
)


class Command(Protocol):
    """``command("prepare", ...)``: exit code, and what stood on stdout and on stderr."""

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
    """1 LV, 2 MYO, 3 RV as M&Ms has them; the hearts of vendors differ in size."""
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
    for at, (code, part, vendor, ed, es) in enumerate(PATIENTS):
        there = heart(vendor)
        noise = np.random.default_rng(at).normal(0, 5, (*SHAPE, FRAMES))
        image, label = brightness[there][..., None] + noise, np.zeros((*SHAPE, FRAMES), np.uint8)
        label[..., ed] = label[..., es] = there
        save(raw / part / code / f"{code}_sa.nii.gz", image.astype(np.int16))
        if part != "Training/Unlabeled":
            save(raw / part / code / f"{code}_sa_gt.nii.gz", label)
        lines.append(f"{at},{code},x,{vendor},1,{ed},{es},44,NOR,F,1,1")
    (raw / SHEET).write_text("\n".join(lines) + "\n")
    return raw


@pytest.fixture(scope="module")
def mnms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nobody writes to it."""
    return write_mnms(tmp_path_factory.mktemp("download") / "OpenDataset")


@pytest.fixture
def own_mnms(mnms: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(mnms, tmp_path / "OpenDataset"))


@pytest.fixture(scope="module")
def settings(tiny_overrides: tuple[str, ...]) -> list[str]:
    """As ``--set`` options."""
    small = ("training.patch_size=[32,32]", "augment.mirror_axes=[]", "training.epochs=1")
    return [word for each in (*tiny_overrides, MNMS, *small) for word in ("--set", each)]


@pytest.fixture(scope="module")
def prepared(mnms: Path, tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The download after ``uumamba prepare``."""
    out = tmp_path_factory.mktemp("mnms") / "prepared"
    with pytest.raises(SystemExit, match="0"):
        main(["prepare", "demo", "--raw", str(mnms), "--out", str(out), "--workers", "0", *_as_set(tiny_config)])
    return out


def _as_set(tiny_config: MakeConfig) -> list[str]:
    spacing = list(tiny_config().preprocess.spacing_mm)
    return ["--set", MNMS, "--set", f"preprocess.spacing_mm={json.dumps(spacing)}"]


def digests(folder: Path) -> dict[Path, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder): sha256(path.read_bytes()).hexdigest() for path in files}


def rows_of(scores: Path) -> list[dict[str, str]]:
    with (scores / "scores.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def perfect_predictions(folder: Path, split: str) -> Path:
    """Label maps in the order of ACDC (1 RV, 2 MYO, 3 LV), written without any of the code under test."""
    there_to_here = np.array([0, 3, 2, 1], np.uint8)
    for code, part, vendor, ed, es in PATIENTS:
        if part == {"training": "Training/Labeled", "test": "Testing"}[split]:
            for frame in (ed, es):
                save(folder / f"{code}_frame{frame:02d}.nii.gz", there_to_here[heart(vendor)])
    return folder


def test_the_whole_way_from_the_download_to_dice_by_vendor(
    mnms: Path, settings: list[str], command: Command, tmp_path: Path
) -> None:
    before = digests(mnms)
    data, trained, predicted = (tmp_path / name for name in ("prepared", "run", "predictions"))

    code, _, said = command("prepare", "demo", "--raw", mnms, "--out", data, "--workers", 0, *settings)
    assert (code, said) == (
        0,
        f"frames: 13 of 13 patients\nprepare: 20 of 20 cases\n20 cases prepared, 0 reused, in {data}\n",
    )
    assert command("train", "demo", "--data", data, "--out", trained, "--device", "cpu", *settings)[0] == 0
    options = ["--input", data, "--out", predicted, "--device", "cpu", "--split", "test"]
    assert command("predict", trained, *options)[0] == 0
    assert sorted(path.name for path in predicted.glob("*.nii.gz")) == [
        *("A8_frame00.nii.gz", "A8_frame02.nii.gz", "D8_frame01.nii.gz", "D8_frame03.nii.gz")
    ]

    of_prepared, of_download = tmp_path / "scores", tmp_path / "again"
    for labels, out in ((data, of_prepared), (mnms, of_download)):
        arguments = ["--predictions", predicted, "--labels", labels, "--out", out, "--split", "test"]
        code, shown, _ = command("evaluate", *arguments)
        assert code == 0
        assert "Dice by domain" in shown
    assert rows_of(of_prepared) == rows_of(of_download)
    assert {row["case_id"]: row["domain"] for row in rows_of(of_prepared)} == {
        "A8_frame00": "A",
        "A8_frame02": "A",
        "D8_frame01": "D",
        "D8_frame03": "D",
    }
    summary = json.loads((of_prepared / "summary.json").read_text(encoding="utf-8"))
    assert [(each["domain"], each["n_cases"], each["n_patients"]) for each in summary["domains"]] == [
        *(("A", 2, 1), ("D", 2, 1))
    ]
    assert digests(mnms) == before


def test_labels_of_the_download_are_scored_in_the_order_of_acdc(mnms: Path, tmp_path: Path) -> None:
    predictions = perfect_predictions(tmp_path / "predictions", "test")
    rows = evaluate_folder(predictions, mnms, tmp_path / "scores", split="test").rows
    assert {row.dice for row in rows} == {1.0}
    # 1 is the LV there: that its Dice is 1 with another volume than the RV's says that they were not exchanged.
    volume_ml = {row.structure: row.label_volume_ml for row in rows if row.case_id == "D8_frame01"}
    voxel_ml = np.prod(SPACING_MM) / 1000
    counts = np.bincount(heart("D").ravel())
    assert volume_ml == pytest.approx(
        {"LV": counts[1] * voxel_ml, "MYO": counts[2] * voxel_ml, "RV": counts[3] * voxel_ml}
    )
    assert len(set(volume_ml.values())) == 3


def test_one_vendors_cases_alone_are_scored_on_request(
    prepared: Path, mnms: Path, command: Command, tmp_path: Path
) -> None:
    predictions = perfect_predictions(tmp_path / "predictions", "test")
    arguments = ["--predictions", predictions, "--labels", prepared, "--out", tmp_path / "scores", "--split", "test"]
    code, shown, _ = command("evaluate", *arguments, "--domain", "D")
    assert code == 0
    assert {row["patient_id"] for row in rows_of(tmp_path / "scores")} == {"D8"}
    assert "Dice by domain" not in shown, "there is nothing to compare"
    code, _, said = command("evaluate", *arguments, "--domain", "E")
    assert (code, said) == (
        2,
        f"uumamba: {prepared} lists no case with a label in split test and domain E; score others.\n",
    )
    code, _, said = command("evaluate", *arguments[:2], "--labels", predictions, *arguments[4:6], "--domain", "D")
    assert (code, "has no folds, splits or domains; give a manifest" in said) == (2, True)


def test_a_run_of_one_command_leaves_a_vendor_out_and_scores_all_of_it(
    mnms: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    quick = (MNMS, "training.patch_size=[32,32]", "augment.mirror_axes=[]", "training.epochs=1")
    config = tiny_config(*quick, "dataset.domains={leave_out: B}")
    result = run(config, raw=mnms, out=tmp_path)
    assert result.scores is not None
    assert {(row.patient_id, row.domain) for row in result.scores.rows} == {(f"B{n}", "B") for n in range(5)}
    assert len(list((tmp_path / "predictions").glob("*.nii.gz"))) == 10
    [start] = json.loads((tmp_path / "run" / "fold_0" / "manifest.json").read_text(encoding="utf-8"))["starts"]
    assert start["cases"] == {"training": {"A": 10}, "validation": {"B": 10}}
    stored = json.loads((tmp_path / "run" / "fold_0" / "config.json").read_text(encoding="utf-8"))["run"]["dataset"]
    assert stored == {"name": "mnms", "domains": {"train": None, "validate": None, "leave_out": "B"}}
    refuse_another_run(config, tmp_path / "run")
    with pytest.raises(UsageError, match=r"another configuration:\n  dataset\.domains\.leave_out: B there, A here\n"):
        refuse_another_run(tiny_config(*quick, "dataset.domains={leave_out: A}"), tmp_path / "run")


def test_training_says_which_vendors_are_on_neither_side(
    prepared: Path, settings: list[str], command: Command, tmp_path: Path
) -> None:
    sentence = "train: 10 of 20 cases are neither trained nor validated on by dataset.domains: 10 of B\n"
    for domains, says in (("{train: [A], validate: [A]}", True), ("{leave_out: B}", False)):
        options = ["--data", prepared, "--out", tmp_path / str(says), "--device", "cpu", *settings]
        code, _, said = command("train", "demo", *options, "--set", f"dataset.domains={domains}")
        assert (code, said.startswith(sentence), "neither" in said) == (0, says, says)


@pytest.mark.parametrize(
    ("domains", "sentence"),
    [
        ("{leave_out: D}", "names D, but the training cases of M&Ms are of A, B; .* test cases of D with"),
        ("{train: [A, Siemens]}", "names Siemens, but the training cases of M&Ms are of A, B; name some of them"),
    ],
)
def test_a_vendor_that_is_not_there_is_refused_before_anything_is_prepared(
    mnms: Path, prepared: Path, tiny_config: MakeConfig, tmp_path: Path, domains: str, sentence: str
) -> None:
    config = tiny_config(MNMS, f"dataset.domains={domains}")
    with pytest.raises(UsageError, match=sentence):
        run(config, raw=mnms, out=tmp_path / "out")
    assert not (tmp_path / "out" / "prepared").exists()
    with pytest.raises(UsageError, match=sentence.replace("of M&Ms", "of .*prepared")):
        train(config, data=prepared, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_acdc_like_data_of_one_domain_cannot_leave_one_out(
    tiny_raw: Path, tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    config = tiny_config("dataset.domains={leave_out: acdc}")
    with pytest.raises(UsageError, match=r"divides several domains, but the training cases of .* are all of acdc"):
        train(config, data=tiny_prepared, out=tmp_path / "run")
    with pytest.raises(UsageError, match="divides several domains, but the training cases of phantom are all of acdc"):
        run(config, raw=tiny_raw, out=tmp_path / "out")


def test_a_download_that_is_read_only_is_prepared(
    mnms: Path, settings: list[str], forked_cli: Any, tmp_path: Path
) -> None:
    raw = Path(shutil.copytree(mnms, tmp_path / "raw"))
    for path in (*raw.rglob("*"), raw):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        arguments = ["--raw", raw, "--out", tmp_path / "prepared", "--workers", 0, *settings]
        said = tmp_path / "said"
        assert forked_cli.run("prepare", "demo", *map(str, arguments), stderr=said, before="obey_permissions()") == 0
        assert len(Manifest.read(tmp_path / "prepared").select(split="training")) == 20
    finally:
        for path in (raw, *raw.rglob("*")):
            path.chmod(0o755)


def test_a_second_call_cuts_no_frame_and_prepares_no_case_again(
    mnms: Path, settings: list[str], command: Command, tmp_path: Path
) -> None:
    arguments = ["prepare", "demo", "--raw", mnms, "--out", tmp_path / "prepared", "--workers", 0, *settings]
    assert command(*arguments)[0] == 0
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared" / "frames").rglob("*.nii.gz")}
    assert len(stamps) == 4 * 13
    code, _, said = command(*arguments)
    assert (code, said.splitlines()[-1]) == (0, f"0 cases prepared, 20 reused, in {tmp_path / 'prepared'}")
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_prepared_folder_that_was_moved_keeps_its_frames(prepared: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(prepared, tmp_path / "moved"))
    for case in PreparedFolder(moved).manifest.cases:
        assert case.image.is_relative_to(moved)
        assert case.image.is_file()


def test_a_request_to_stop_while_frames_are_cut_is_followed_and_leaves_whole_files(
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
        with pytest.raises(StoppedOnRequest, match="after cutting the frames of 2 of 13 patients; the same command"):
            read_dataset("mnms", mnms, frames=tmp_path / "frames")
    assert len(written) == 8
    stamps = {path: path.stat().st_mtime_ns for path in written}
    manifest, errors = read_dataset("mnms", mnms, frames=tmp_path / "frames")
    assert (len(manifest.cases), errors) == (24, [])
    assert {path: path.stat().st_mtime_ns for path in written} == stamps


def test_a_patient_who_left_the_download_is_no_case_although_the_frames_stand(own_mnms: Path, tmp_path: Path) -> None:
    whole, _ = read_dataset("mnms", own_mnms, frames=tmp_path / "frames")
    shutil.rmtree(own_mnms / "Training/Unlabeled")  # so that the sheet's rows without a folder are no errors
    shutil.rmtree(own_mnms / "Training/Labeled/A3")
    fewer, errors = read_dataset("mnms", own_mnms, frames=tmp_path / "frames")
    assert errors == []
    assert {case.patient_id for case in whole.cases} - {case.patient_id for case in fewer.cases} == {"A3"}


def without_column(raw: Path) -> None:
    lines = (raw / SHEET).read_text().splitlines()
    (raw / SHEET).write_text("\n".join(",".join(line.split(",")[:6]) for line in lines))


def without_ed(raw: Path) -> None:
    (raw / SHEET).write_text((raw / SHEET).read_text().replace(",A1,x,A,1,0,2,", ",A1,x,A,1,,2,"))


def with_value_4(raw: Path) -> None:
    path = raw / "Training/Labeled/A1/A1_sa_gt.nii.gz"
    label = np.asarray(nib.load(path).dataobj).copy()
    label[0, 0, 0, 2] = 4
    save(path, label)


@pytest.mark.parametrize(
    ("spoil", "exit_code", "sentence"),
    [
        (without_column, 2, f"uumamba: {{raw}}/{SHEET}: got no column ES"),
        (without_ed, 3, "uumamba: failed: A1: ED: got ''"),
        (with_value_4, 3, "uumamba: failed: A1: label: got the value 4 in frame 2 (ES)"),
        (
            lambda raw: os.truncate(raw / "Training/Labeled/A1/A1_sa.nii.gz", 500),
            3,
            "uumamba: failed: A1: A1_sa.nii.gz: got ",
        ),
    ],
)
def test_a_bad_download_is_one_sentence_and_the_others_are_prepared(
    own_mnms: Path,
    settings: list[str],
    command: Command,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    exit_code: int,
    sentence: str,
) -> None:
    spoil(own_mnms)
    out = tmp_path / "prepared"
    code, _, said = command("prepare", "demo", "--raw", own_mnms, "--out", out, "--workers", 0, *settings)
    assert code == exit_code
    assert said.splitlines()[-1].startswith(sentence.format(raw=own_mnms))
    assert len(list(out.glob("cases/*/case.json"))) == (0 if exit_code == 2 else 18)


def test_frames_are_not_cut_into_the_download(own_mnms: Path, settings: list[str], command: Command) -> None:
    before = digests(own_mnms)
    for out in (own_mnms, own_mnms / "Training"):
        code, _, said = command("prepare", "demo", "--raw", own_mnms, "--out", out, *settings)
        assert (code, f"expected a folder outside of {own_mnms}" in said) == (2, True)
    assert digests(own_mnms) == before
