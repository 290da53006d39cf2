"""Three domains of text that ships with Python, and a small transformer.

The transformer works on characters.
"""

import ast
import pydoc_data.topics
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.runtime.seeds import generator_for

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
CLASSES = len(CHARACTERS)
LENGTH, WIDTH, HEADS, LAYERS = 64, 64, 4, 2
BATCH = 16
HELD_OUT = 0.2


@cache
def load_domain(name: str) -> tuple[Tensor, Tensor]:
    """Return the training and held-out characters of one domain, int64.

    Args:
        name: ``"reference"``: the language reference of ``pydoc_data.topics``; ``"docstrings"`` and ``"code"``: of the
            standard library's top-level modules, docstrings without their indentation, code without docstrings and
            comments. Every fifth topic or module is held out.
    """
    parts = {"reference": _read_topics, "docstrings": _read_docstrings, "code": _read_code}[name]()
    train: list[str] = []
    held_out: list[str] = []
    for index, part in enumerate(parts):
        (held_out if index % round(1 / HELD_OUT) == 0 else train).append(part)
    return encode("\n".join(train)), encode("\n".join(held_out))


def encode(text: str) -> Tensor:
    """Convert text to indices into :data:`CHARACTERS`.

    Unknown characters become a question mark.
    """
    known = {character: index for index, character in enumerate(CHARACTERS)}
    return torch.tensor([known.get(character, known["?"]) for character in text])


def draw_batch(text: Tensor, *key: int | str) -> dict[str, Tensor]:
    """Draw a batch of pieces, keyed by ``key``.

    ``image`` holds the characters ``(batch, length)``, ``label`` each character's successor.
    """
    starts = torch.randint(len(text) - LENGTH, (BATCH,), generator=generator_for(*key))
    pieces = text[starts[:, None] + torch.arange(LENGTH + 1)]
    return {"image": pieces[:, :-1], "label": pieces[:, 1:]}


def cut_pieces(text: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
    """Cut ``count`` pieces at even distances, with their successors."""
    starts = torch.linspace(0, len(text) - LENGTH - 1, count).long()
    pieces = text[starts[:, None] + torch.arange(LENGTH + 1)]
    return pieces[:, :-1], pieces[:, 1:]


class CharacterNet(nn.Module):
    """Causal transformer for characters.

    It maps characters ``(batch, length)`` to logits ``(batch, classes, length)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, characters: Tensor) -> Tensor:
        """Return the logits of each character's successor."""
        embedded = self.embedding(characters) + self.position[: characters.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(embedded)))
        return logits.mT


class Block(nn.Module):
    """Transformer block: causal attention and a two-layer perceptron.

    Each has a residual connection.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.in_proj, self.out_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, length, width)`` to the same shape."""
        batch, length, _ = x.shape
        query, key, value = self.in_proj(self.norms[0](x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out_proj(attended.transpose(1, 2).reshape(x.shape))
        residual: Tensor = self.mlp(self.norms[1](x))
        return x + residual


def _read_topics() -> list[str]:
    return [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]


def _read_docstrings() -> list[str]:
    return ["\n\n".join(found) for tree in _parse_modules() if (found := list(_find_docstrings(tree)))]


def _read_code() -> list[str]:
    return [ast.unparse(_remove_docstrings(tree)) for tree in _parse_modules()]


def _parse_modules() -> Iterator[ast.Module]:
    """Parse the standard library's modules of medium size.

    No single module then dominates the text. Parsing removes comments.
    """
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-z]*.py")):
        if 4_000 < path.stat().st_size < 40_000:
            yield ast.parse(path.read_text(encoding="utf-8"))


def _find_docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield re.sub(r"\n{3,}", "\n\n", text)


def _remove_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree
