"""Table of what makes each tutorial short enough for a test."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs.manual_pages import Fence

FOLDER = "docs/tutorials/"

TINY_NET = (
    "--set net.features=[4,8] --set net.strides=[[1,1],[2,2]] --set net.encoder_blocks=[1,1] "
    "--set net.decoder_blocks=[1] --set inference.mirror=false --set inference.overlap=0"
)
TINY = (
    "--set training.epochs=1 --set training.batches_per_epoch=1 --set training.batch_size=2 "
    f"--set training.validate_every=1 --set training.patch_size=[32,32] --set schedule.warmup_epochs=0 {TINY_NET}"
)
COARSE = "--set preprocess.spacing_mm=[null,4,4]"


@dataclass(frozen=True)
class Smaller:
    """What makes a tutorial small: options appended to commands by their beginning, and text replaced in Python."""

    appended: Mapping[str, str] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)


HEARTS = {
    "python -m data_prep.phantoms.heart": "--patients 5",
    "uumamba prepare": f"--workers 0 {COARSE}",
    "uumamba run": f"--workers 0 {TINY} {COARSE}",
    "uumamba predict": "--no-preview",
}
SMALLER = {
    "first_scan": Smaller(),
    "acdc": Smaller(HEARTS),
    "own_data": Smaller(
        {
            "python -m data_prep.phantoms.lesions": "--cases 5",
            "python -m data_prep.phantoms.pictures": "--cases 5",
            "uumamba run": f"--workers 0 {TINY}",
            "uumamba predict": "--no-preview",
        }
    ),
    "optimizer": Smaller(replaced={"epochs = 40": "epochs = 1", "range(3)": "range(1)"}),
    "domain_generalization": Smaller(
        replaced={"epochs = 20": "epochs = 1", "range(3)": "range(1)", "train_ids.tolist()": "train_ids[:20].tolist()"}
    ),
    "remove_a_patient": Smaller(
        HEARTS | {"python -m data_prep.phantoms.heart": "--patients 20"}  # four are held out, the fewest that it takes
    ),
    "federated": Smaller(
        HEARTS
        | {
            "python -m data_prep.phantoms.heart": "--patients 10",  # two of each diagnosis
            "uumamba run acdc_federated": "--set federated.local_steps=1",
        },
        replaced={"rounds=30": "rounds=2"},
    ),
}


def shorten(fence: Fence) -> str:
    """Return the text of a fence, in a tutorial with its replacements."""
    text = fence.text
    if fence.page.startswith(FOLDER):
        for old, new in SMALLER.get(Path(fence.page).stem, Smaller()).replaced.items():
            text = text.replace(old, new)
    return text
