"""The command line: quick, helpful, and one sentence with the right exit code for each bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from uumamba.cli import main

VERBS = ("run", "prepare", "train", "predict", "evaluate", "report", "demo")


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and everything printed on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    code = ended.value.code
    return (code if isinstance(code, int) else int(code is not None)), capsys.readouterr().err


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    """One phantom patient of a fresh tree."""
    from data_prep.phantoms.heart.heart_phantom import write_phantom

    write_phantom(tmp_path / "raw", patients=5, seed=1, workers=0)
    return sorted((tmp_path / "raw" / "training").iterdir())[0]


def prepare(capsys: pytest.CaptureFixture[str], folder: Path) -> tuple[int, str]:
    return command(capsys, "prepare", "demo", "--raw", folder / "raw", "--out", folder / "prepared", "--workers", 0)


def prepared_cases(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("prepared/cases/*/case.json")}


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb_shows_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    assert f"Example: uumamba {verb}" in " ".join(capsys.readouterr().out.split())


def test_help_loads_neither_torch_nor_monai() -> None:
    script = (
        "import sys\nfrom uumamba.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'monai', 'numpy', 'matplotlib', 'nibabel'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_raw_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, text = prepare(capsys, tmp_path)
    assert code == 2
    assert f"The raw folder {tmp_path / 'raw'} does not exist; give the folder" in text
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("missing", ["Info.cfg", "_gt.nii.gz"])
def test_a_patient_without_its_label_or_info_is_named_and_the_others_go_on(
    missing: str, patient: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lost = sorted(path for path in patient.iterdir() if path.name.endswith(missing))[0]
    lost.unlink()
    code, text = prepare(capsys, tmp_path)
    assert code == 3
    assert f"{patient.name}: Info.cfg: got" in text or f": label: got no file, expected {lost.name}" in text
    assert len(prepared_cases(tmp_path)) == (8 if missing == "Info.cfg" else 9)


def test_a_truncated_scan_is_named_and_the_others_go_on(
    patient: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    scan = sorted(patient.glob("*_frame??.nii.gz"))[0]
    scan.write_bytes(scan.read_bytes()[: scan.stat().st_size // 2])
    code, text = prepare(capsys, tmp_path)
    case_id = scan.name.removesuffix(".nii.gz")
    assert code == 3
    assert f"{case_id}: " in text
    assert case_id not in prepared_cases(tmp_path)
    assert len(prepared_cases(tmp_path)) == 9
    assert [
        row["case_id"] for row in json.loads((tmp_path / "prepared" / "failures.json").read_text(encoding="utf-8"))
    ] == [case_id]


@pytest.mark.parametrize("fault", ["value 7", "shape"])
def test_a_label_that_does_not_fit_is_named_with_what_was_found(
    fault: str, patient: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import nibabel as nib
    import numpy as np

    path = sorted(patient.glob("*_gt.nii.gz"))[0]
    label = nib.load(path)
    values = np.asarray(label.dataobj).astype(np.uint8)
    if fault == "shape":
        values = values[:-1]
    else:
        values[0, 0, 0] = 7
    nib.save(nib.Nifti1Image(values, label.affine, label.header), path)
    code, text = prepare(capsys, tmp_path)
    assert code == 3
    case_id = path.name.removesuffix("_gt.nii.gz")
    assert f"{case_id}: {'its label holds the value 7' if fault == 'value 7' else 'the image has the shape'}" in text
    assert len(prepared_cases(tmp_path)) == 9


def test_a_misspelt_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, text = command(
        capsys, "prepare", "demo", "--raw", tmp_path, "--out", tmp_path / "out", "--set", "training.epoch=1"
    )
    assert code == 2
    assert "training.epoch is not a known key (did you mean epochs?)" in text


def test_a_negative_learning_rate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, text = command(
        capsys, "train", "demo", "--data", tmp_path, "--out", tmp_path / "run", "--set", "optim.base.lr=-0.1"
    )
    assert code == 2
    assert "optim.base.lr" in text
    assert "-0.1" in text
    assert not (tmp_path / "run").exists()


def test_a_patch_that_the_strides_do_not_divide(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, text = command(
        capsys, "train", "demo", "--data", tmp_path, "--out", tmp_path / "run", "--set", "training.patch_size=[100,96]"
    )
    assert code == 2
    assert "training.patch_size has 100 voxels on spatial axis 0" in text
    assert "to 96 or 112" in text


def test_a_prepared_folder_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, text = command(capsys, "train", "demo", "--data", tmp_path, "--out", tmp_path / "run")
    assert code == 2
    assert str(tmp_path) in text
    assert "uumamba prepare" in text


def test_a_run_without_a_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "run" / "fold_0").mkdir(parents=True)
    code, text = command(capsys, "predict", tmp_path / "run", "--input", tmp_path, "--out", tmp_path / "predictions")
    assert code == 2
    assert "holds no checkpoint" in text
    assert not (tmp_path / "predictions").exists()


def test_an_output_beneath_a_regular_file(patient: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, text = command(
        capsys, "prepare", "demo", "--raw", tmp_path / "raw", "--out", tmp_path / "file" / "prepared", "--workers", 0
    )
    assert code == 2
    assert "which is no folder" in text


def test_a_missing_prediction_is_an_error_that_names_it(
    patient: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    labels, predictions = tmp_path / "labels", tmp_path / "predictions"
    labels.mkdir()
    predictions.mkdir()
    for path in sorted(patient.glob("*_gt.nii.gz")):
        shutil.copy(path, labels / path.name.replace("_gt", ""))
    kept, lost = sorted(labels.iterdir())
    shutil.copy(kept, predictions / kept.name)
    code, text = command(
        capsys, "evaluate", "--predictions", predictions, "--labels", labels, "--out", tmp_path / "scores"
    )
    assert code == 1
    assert lost.name.removesuffix(".nii.gz") in text
    assert not (tmp_path / "scores" / "scores.csv").exists()


@pytest.mark.parametrize("place", [0, 1, 6])
def test_debug_shows_the_traceback_wherever_it_stands(place: int, tmp_path: Path) -> None:
    from uumamba.runtime.errors import UsageError

    arguments = ["prepare", "demo", "--raw", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    arguments.insert(place, "--debug")
    with pytest.raises(UsageError, match="does not exist"):
        main(arguments)


@pytest.mark.parametrize("device", ["foo", "cuda:x", "meta", ""])
def test_a_device_that_is_none(device: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, text = command(capsys, "train", "demo", "--data", tmp_path, "--out", tmp_path / "run", "--device", device)
    assert code == 2
    assert f"--device: got {device or repr('')}, expected cpu, cuda, cuda:1 or auto." in text


def test_a_device_that_this_machine_lacks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, text = command(
        capsys, "predict", tmp_path, "--input", tmp_path, "--out", tmp_path / "out", "--device", "cuda:99"
    )
    assert code == 2
    assert "--device: got cuda:99, expected" in text


def test_the_keyboard_stops_a_verb_with_a_sentence_that_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt  # what SIGINT becomes, unless the process was started with it ignored

    monkeypatch.setattr("uumamba.config.read_config", interrupted)
    code, text = command(capsys, "prepare", "demo", "--raw", tmp_path, "--out", tmp_path / "out")
    assert code == 130
    assert text == (
        "uumamba: Stopped by the keyboard; what was finished stands. Give the command again to go on, train with "
        "--resume.\n"
    )
