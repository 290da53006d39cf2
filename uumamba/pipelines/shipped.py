"""Trained models in the package, by name."""

from pathlib import Path

import uumamba

WEIGHTS_NAME, CARD_NAME, LICENCE_NAME = "model.safetensors", "CARD.md", "LICENSE"
_FOLDER = Path(uumamba.__file__).parent / "models"


def shipped_models() -> list[str]:
    """List the names of the models in the package.

    Each is a folder ``uumamba/models/<name>`` with weights, a card and the licence of the weights.
    """
    return sorted(path.parent.name for path in _FOLDER.glob(f"*/{WEIGHTS_NAME}"))


def find_shipped_model(model: Path | str) -> Path | None:
    """Find the weights of a model in the package, or None."""
    return _FOLDER / str(model) / WEIGHTS_NAME if str(model) in shipped_models() else None
