"""Command line: quick help, short errors and exit codes."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from uumamba import cli
from uumamba.cli import main
from uumamba.runtime.devices import resolve_devices
from uumamba.runtime.errors import EndedWithAnother, UsageError
from uumamba.runtime.option_values import parse_seeds, parse_spacing

VERBS = ("run", "prepare", "train", "predict", "evaluate", "report", "demo", "doctor")
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """``command("prepare", ...)``: exit code and stderr."""

    def run(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        code = ended.value.code
        return (code if isinstance(code, int) else int(code is not None)), capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from data_prep.phantoms.heart.heart_phantom import write_phantom

    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, patients=5, seed=1, workers=0)
    return folder


@pytest.fixture
def patient(phantom: Path, tmp_path: Path) -> Path:
    """One phantom patient of a copied tree."""
    shutil.copytree(phantom, tmp_path / "raw")
    return sorted((tmp_path / "raw" / "training").iterdir())[0]


def options_of(verb: str, folder: Path) -> list[object]:
    if verb == "prepare":
        return [verb, "demo", "--raw", folder / "raw", "--out", folder / "out", "--workers", 0]
    return [verb, "demo", "--data", folder, "--out", folder / "out"]


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


def spoil_label(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    label = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(label.dataobj).astype(np.uint8)), label.affine, label.header), path)


def with_seven(values: np.ndarray) -> np.ndarray:
    values[0, 0, 0] = 7
    return values


SPOIL: dict[str, tuple[str, Callable[[Path], object], int]] = {
    "no Info.cfg": ("Info.cfg", lambda path: path.unlink(), 8),
    "no label": ("*_gt.nii.gz", lambda path: path.unlink(), 9),
    "truncated scan": ("*_frame??.nii.gz", lambda path: path.write_bytes(path.read_bytes()[:1000]), 9),
    "value 7": ("*_gt.nii.gz", lambda path: spoil_label(path, with_seven), 9),
    "shape": ("*_gt.nii.gz", lambda path: spoil_label(path, lambda values: values[:-1]), 9),
}


@pytest.mark.parametrize("fault", SPOIL)
def test_a_bad_case_is_named_and_the_others_are_prepared(
    fault: str, patient: Path, command: Command, tmp_path: Path
) -> None:
    pattern, spoil, left = SPOIL[fault]
    path = sorted(patient.glob(pattern))[0]
    spoil(path)
    code, text = command(*options_of("prepare", tmp_path))
    failed = patient.name if pattern == "Info.cfg" else path.name.removesuffix(".nii.gz").removesuffix("_gt")
    assert code == 3
    assert f"uumamba: failed: {failed}: " in text
    prepared = {case.parent.name for case in tmp_path.glob("out/cases/*/case.json")}
    assert len(prepared) == left
    assert failed not in prepared
    listed = json.loads((tmp_path / "out" / "failures.json").read_text(encoding="utf-8"))
    assert [row["case_id"] for row in listed] == [failed]


@pytest.mark.parametrize(
    ("verb", "options", "parts"),
    [
        ("prepare", [], ["--raw: got ", "/raw, which does not exist, expected "]),
        ("prepare", ["--set", "training.epoch=1"], ["training.epoch", "epochs"]),
        ("train", ["--set", "optim.base.lr=-0.1"], ["optim.base.lr", "-0.1"]),
        ("train", ["--set", "training.patch_size=[100,96]"], ["training.patch_size", "100", "96", "112"]),
        ("train", [], ["uumamba prepare"]),
        *(
            ("train", ["--device", name], [f"--device: got {name or repr('')},"])
            for name in ("foo", "cuda:x", "meta", "")
        ),
        ("train", ["--device", "cuda:99"], ["--device: got cuda:99,"]),
        ("train", ["--seeds", "zero"], ["--seeds: got zero,"]),
    ],
)
def test_wrong_use_ends_with_2_and_the_key_before_anything_is_made(
    verb: str, options: list[str], parts: list[str], command: Command, tmp_path: Path
) -> None:
    code, text = command(*options_of(verb, tmp_path), *options)
    assert code == 2
    assert all(part in text for part in parts), text
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_and_an_unknown_split_are_wrong_use(
    patient: Path, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "out").touch()
    assert command(*options_of("prepare", tmp_path))[0] == 2
    assert command("predict", tmp_path, "--input", tmp_path, "--out", tmp_path / "labels", "--split", "exam")[0] == 2


def test_a_run_without_a_checkpoint_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "run" / "fold_0").mkdir(parents=True)
    code, text = command("predict", tmp_path / "run", "--input", tmp_path, "--out", tmp_path / "predictions")
    assert code == 2
    assert f"MODEL: got {tmp_path / 'run'}," in text
    assert not (tmp_path / "predictions").exists()


def test_a_missing_prediction_is_an_error_that_names_it(patient: Path, command: Command, tmp_path: Path) -> None:
    labels, predictions = tmp_path / "labels", tmp_path / "predictions"
    labels.mkdir()
    predictions.mkdir()
    for path in sorted(patient.glob("*_gt.nii.gz")):
        shutil.copy(path, labels / path.name.replace("_gt", ""))
    kept, lost = sorted(labels.iterdir())
    shutil.copy(kept, predictions / kept.name)
    code, text = command("evaluate", "--predictions", predictions, "--labels", labels, "--out", tmp_path / "scores")
    assert code == 1
    assert lost.name.removesuffix(".nii.gz") in text
    assert not (tmp_path / "scores" / "scores.csv").exists()


@pytest.mark.parametrize("place", [0, 1, 6])
def test_debug_raises_the_error_before_and_after_a_verb(place: int, tmp_path: Path) -> None:
    arguments = [str(word) for word in options_of("prepare", tmp_path)]
    arguments.insert(place, "--debug")
    with pytest.raises(UsageError):
        main(arguments)


def test_seeds_and_devices_are_lists(refused: Any) -> None:
    assert parse_seeds(None) is None
    assert parse_seeds("0,1, 2") == [0, 1, 2]
    assert resolve_devices("cpu, cpu") == "cpu,cpu"
    with refused("--device", got="gpu"):
        resolve_devices("cpu,gpu")


@pytest.mark.parametrize("given", ["8,1.5", "8,1.5,x", "8,1.5,0", "8,1.5,inf", ""])
def test_an_assumed_spacing_is_three_positive_numbers(given: str, refused: Any) -> None:
    assert parse_spacing("8,1.5,1.25") == (1.25, 1.5, 8.0)
    with refused("--assume-spacing", got=given):
        parse_spacing(given)


def test_a_keyboard_interrupt_ends_a_verb_with_one_line_on_how_to_continue(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt  # as SIGINT does, unless the process was started with it ignored

    monkeypatch.setattr("uumamba.config.read_config", interrupted)
    code, text = command(*options_of("prepare", tmp_path))
    assert code == 130
    assert text.startswith("uumamba: Stopped by the keyboard")
    assert "--resume" in text
    assert text.count("\n") == 1


def test_a_process_that_ends_with_another_waits_until_the_reason_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(arguments: list[str]) -> None:
        raise EndedWithAnother("rank 0 failed")

    waited: list[float] = []
    monkeypatch.setattr(cli, "app", end)
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    with pytest.raises(SystemExit):
        cli.main(["train"])
    assert waited == [cli.REPORTER_FIRST_S]
    assert capsys.readouterr().err == ""
