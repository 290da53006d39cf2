"""Calls as users of SAM, mamba_ssm, MONAI and torch type them, from the table of docs/how_to/first_calls.md."""

import pickle
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from uumamba.inference import Predictor
from uumamba.losses import FocalLoss, SoftDiceLoss
from uumamba.metrics import dice_coefficient
from uumamba.nets import Mamba, UMambaBot
from uumamba.ops import selective_scan
from uumamba.optim import SAM
from uumamba.runtime.errors import UsageError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how_to" / "first_calls.md"
ROW = re.compile(r"^\| `(?P<code>.+?)` \| (?P<verdict>right|refused) \| (?P<said>.+) \|$", re.MULTILINE)
ROWS = [found.groups() for found in ROW.finditer(PAGE.read_text(encoding="utf-8") if PAGE.exists() else "")]


def make_names() -> dict[str, Any]:
    """Make the names that the calls use."""
    torch.manual_seed(0)
    net, x, y, loss_fn = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1]), nn.CrossEntropyLoss()
    base = partial(torch.optim.SGD, lr=0.1)
    optimizer = SAM(net.parameters(), base)

    def torch_closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_fn(net(x), y)
        loss.backward()
        return loss

    u, delta, z = (torch.randn(2, 6, 9) for _ in range(3))
    A, D, bias = -torch.rand(6, 3), torch.randn(6), torch.randn(6)
    B, C = torch.randn(2, 3, 9), torch.randn(2, 3, 9)
    label = torch.randint(4, (2, 1, 8, 8))
    imported = (torch, partial, pickle, SAM, Mamba, UMambaBot, SoftDiceLoss, FocalLoss, Predictor)
    imported = (*imported, selective_scan, dice_coefficient)
    return {each.__name__: each for each in imported} | {
        "net": net,
        "x": x,
        "y": y,
        "loss_fn": loss_fn,
        "base": base,
        "optimizer": optimizer,
        "torch_closure": torch_closure,
        "first_loss": loss_fn(net(x), y),
        "scaler": torch.amp.GradScaler("cpu"),
        "u": u,
        "delta": delta,
        "A": A,
        "B": B,
        "C": C,
        "D": D,
        "z": z,
        "bias": bias,
        "reference": selective_scan(u, delta, A, B, C, D, z, bias, True, backend="reference"),
        "logits": torch.randn(2, 4, 8, 8),
        "label": label,
        "one_hot": nn.functional.one_hot(label[:, 0], 4).movedim(-1, 1),
        "segmenter": nn.Conv2d(1, 4, kernel_size=1),
        "volume": torch.randn(1, 3, 16, 12).numpy(),
    }


def run(code: str, names: dict[str, Any]) -> None:
    """Run a call as typed."""
    exec(code, names)  # rows of this project's own page: what a reader copies must run as it stands


def test_the_page_has_twenty_calls_and_every_row_is_read() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(ROWS) == len(lines) >= 20
    assert len({code for code, *_ in ROWS}) == len(ROWS)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # by torch's forward mode
@pytest.mark.parametrize(("code", "verdict", "said"), ROWS, ids=[code for code, *_ in ROWS])
def test_a_first_call_is_right_or_refused_with_the_line_to_write(code: str, verdict: str, said: str) -> None:
    names = make_names()
    if verdict == "refused":
        with pytest.raises(UsageError, match=f"^{re.escape(said)}$"):
            run(code, names)
    else:
        run(code, names)
        assert eval(said.strip("`"), names)
