"""Model of many classes, and prediction by it in a process that prints its largest size.

Run as a script: ``limited_memory.py MODEL SCAN OUT OPTIONS``, with the options of ``predict`` as JSON.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from uumamba.config import read_config
from uumamba.data.label_scheme import LabelScheme
from uumamba.runtime.allocator import reuse_freed_memory
from uumamba.training import Checkpoint, save_checkpoint


def save_model(
    path: Path,
    *,
    patch_size: Sequence[int],
    spacing_mm: Sequence[float | None],
    classes: int,
    sharpness: float = 1.0,
    overrides: Sequence[str] = (),
) -> Path:
    """Save an untrained model whose labels depend on the image; its logits are multiplied by ``sharpness``."""
    flat = len(patch_size) == 2
    strides = [[1] * len(patch_size), [2] * len(patch_size)]
    config = read_config(
        "demo",
        (
            f"net.spatial_dims={len(patch_size)}",
            f"net.strides={strides}",
            "net.features=[2,2]",
            "net.encoder_blocks=[1,1]",
            "net.decoder_blocks=[1]",
            f"preprocess.spacing_mm={json.dumps(list(spacing_mm))}",
            f"training.patch_size={list(patch_size)}",
            f"augment.mirror_axes={list(range(2 if flat else 3))}",
            "inference.windows_at_once=4",
            "inference.precision=float32",
            *overrides,
        ),
    )
    torch.manual_seed(0)
    net = config.build_net(classes=classes, channels=1)
    with torch.no_grad():
        for weight in [*net.parameters()][-2:]:
            weight.mul_(sharpness)
    stored = {
        "run": config.as_json(),
        "dataset": "noise",
        **LabelScheme({f"structure{k}": k for k in range(1, classes)}).to_json(),
    }
    progress = {"epochs_done": config.training.epochs, "steps_done": 1}
    checkpoint = Checkpoint(net.state_dict(), None, {}, {}, None, {}, progress, stored)
    save_checkpoint(path, checkpoint)
    return path


def predict_alone(model: Path, scan: Path, out: Path, **options: Any) -> dict[str, float]:
    """Predict in a new process; return its largest size, CPU time and number of structures."""
    command = [sys.executable, __file__, str(model), str(scan), str(out), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(model: str, scan: str, out: str, options: str) -> None:
    """Predict as the command line does, and print the process's largest size and its CPU time."""
    reuse_freed_memory()
    from uumamba.pipelines.predict import predict

    result = predict(model, [scan], out=out, progress=False, **json.loads(options))
    assert not result.failures, result.failures
    structures = sum(volume_ml > 0 for volume_ml in result.records[0].volumes_ml[0].values())
    print(json.dumps({"peak_mib": _measure_peak_mib(), "cpu_s": time.process_time(), "structures": structures}))


def _measure_peak_mib() -> float:
    """Return this program's largest size; that of ``getrusage`` may be of the tests that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
