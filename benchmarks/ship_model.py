r"""Store a trained run in the package, as a named model.

    python -m benchmarks.ship_model --name acdc --run runs/all --scored-run runs/fold_0 --scores scores.csv

The weights for prediction (the moving average, if there is one) are stored in float16 with the run's configuration in
``uumamba/models/NAME``, with a card and the licence of the weights. The figures of the card are those of ``--scores``:
the validation cases of fold 0 after a run with the same configuration. That run's choice of postprocessing is stored
with the weights. The configurations of both runs are compared.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.acdc_scores import summarize_scores
from benchmarks.model_card import make_card
from benchmarks.result_file import describe_commit, is_compatible
from uumamba.evaluation import read_scores
from uumamba.pipelines.models import CARD_NAME, LICENCE_NAME, SHIPPED, WEIGHTS_NAME, checkpoint_paths
from uumamba.pipelines.postprocessing import read_choice
from uumamba.quantization import holds_scales
from uumamba.runtime.errors import require
from uumamba.runtime.files import make_folder, write_text
from uumamba.training import Checkpoint, read_checkpoint, save_checkpoint

LARGEST_MB = 16.0


def main(given: Sequence[str] | None = None) -> int:
    """Write weights, card and licence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="name of the model")
    parser.add_argument("--run", type=Path, required=True, help="run on all cases")
    parser.add_argument("--scored-run", type=Path, required=True, help="run on fold 0")
    parser.add_argument("--scores", type=Path, required=True, help="scores.csv of fold 0 by the scored run")
    parser.add_argument("--models", type=Path, default=SHIPPED)
    options = parser.parse_args(given)
    paths = [checkpoint_paths(path)[0] for path in (options.run, options.scored_run)]
    run, scored = map(read_checkpoint, paths)
    require_same_recipe(run.config["run"], scored.config["run"])
    commit = describe_commit()  # before files change
    folder = make_folder(options.models / options.name)
    shipped = strip_checkpoint(run)
    shipped.config["run"]["inference"]["postprocess"] = list(read_choice([paths[1].parent])) or None
    save_checkpoint(folder / WEIGHTS_NAME, shipped)
    size_mb = (folder / WEIGHTS_NAME).stat().st_size / 1e6
    require(size_mb <= LARGEST_MB, "--run", got=f"{size_mb:.1f} MB", expected=f"at most {LARGEST_MB:g} MB")
    rows, count = read_scores(options.scores), sum(each.numel() for each in shipped.net.values())
    card = make_card(options.name, shipped.config, rows, parameters=count, size_mb=size_mb, commit=commit)
    write_text(folder / CARD_NAME, card)
    write_text(folder / LICENCE_NAME, make_licence(options.name, shipped.config))
    print(f"{folder}: {size_mb:.1f} MB, fold 0 {summarize_scores(rows)}")
    return 0


def require_same_recipe(own: Mapping[str, Any], scored: Mapping[str, Any]) -> None:
    """Raise if two runs differ in more than their prediction's postprocessing."""
    first, other = ({key: value for key, value in each.items() if key != "inference"} for each in (own, scored))
    different = [key for key in first if not is_compatible(first[key], other.get(key))]
    require(not different, "--scored-run", got=f"other {', '.join(different)}", expected="the configuration of --run")


def strip_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """Keep the weights for prediction, in float16, and the configuration.

    A quantized network's weights stay in float32, because some would be rounded to other levels.
    """
    weights = checkpoint.net if checkpoint.ema is None else checkpoint.ema
    if not holds_scales(weights):
        weights = {name: convert_to_half(value) for name, value in weights.items()}
    return Checkpoint(
        net=weights,
        ema=None,
        objective={},
        optimizer={},
        scheduler=None,
        random={},
        progress=checkpoint.progress,
        config=checkpoint.config,
    )


def convert_to_half(value: Tensor) -> Tensor:
    """Convert a floating-point tensor to float16; keep integer tensors."""
    return value.to(torch.float16).contiguous() if value.is_floating_point() else value


def make_licence(name: str, config: Mapping[str, Any]) -> str:
    """Make the licence file of the weights, with the data's licence."""
    return f"""Weights of the model {name}

These weights were trained on {config["dataset"]} and inherit the licence of its data: {config["licence"]}.
Commercial use is not allowed. Share changed weights under the same licence, and cite the data set:

{config["reference"]}

The text of the licence: https://creativecommons.org/licenses/by-nc-sa/4.0/legalcode
The code of uumamba has another licence, Apache 2.0.
"""


if __name__ == "__main__":
    sys.exit(main())
