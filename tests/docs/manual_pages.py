"""Pages of the manual: code fences, links, pictures and anchors."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

SHELL = ("console", "bash", "sh", "shell", "")
OUTSIDE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)  # a scheme: https:, mailto:
GENERATED = re.compile(r"docs/reference/api/\w+\.md#uumamba\.[\w.]+")
"""Anchors that mkdocstrings makes while the manual is built."""


@dataclass(frozen=True)
class Fence:
    """A code fence: page relative to the repository, first line, language, title and text."""

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def is_only_parsed(self) -> bool:
        """Whether its title says that it needs something that a test has not."""
        return self.title.startswith("needs")

    @property
    def is_file(self) -> bool:
        """Whether its title is the name of a file that it is the text of."""
        return re.fullmatch(r"[\w-]+\.(yaml|csv|json|py)", self.title) is not None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def write_files(fences: Iterable[Fence], folder: Path) -> None:
    """Write the fences that are files into a folder."""
    for fence in fences:
        if fence.is_file:
            (folder / fence.title).write_text(fence.text, encoding="utf-8")


def list_pages(repository: Path) -> list[str]:
    """List README and the pages of the manual, relative to the repository."""
    pages = [repository / "README.md", *sorted((repository / "docs").rglob("*.md"))]
    return [page.relative_to(repository).as_posix() for page in pages]


def read_fences(repository: Path, page: str) -> list[Fence]:
    """Return the code fences of a page in order."""
    found = []
    for token in _parse(repository / page):
        if token.type == "fence" and token.map:
            language, _, rest = token.info.strip().partition(" ")
            title = re.search(r'title="([^"]*)"', rest)
            found.append(Fence(page, token.map[0] + 1, language, title[1] if title else "", token.content))
    return found


def list_broken_links(repository: Path, page: str) -> list[str]:
    """Return the links and pictures of a page that lead to no file or no heading of the repository."""
    broken = []
    for link in _links(_parse(repository / page)):
        path, _, anchor = unquote(link).partition("#")
        target = (repository / page).parent / path if path else repository / page
        if OUTSIDE.match(link) or GENERATED.fullmatch(_relative(target, repository) + f"#{anchor}"):
            continue
        if not target.exists() or (anchor and anchor not in read_anchors(target)):
            broken.append(link)
    return broken


@cache
def read_anchors(page: Path) -> frozenset[str]:
    """Return the anchors of the headings of a page, as mkdocs and GitHub name them, and those that it names itself."""
    tokens, anchors = _parse(page), list[str]()
    for heading, inline in pairwise(tokens):
        if heading.type == "heading_open":
            text, named = re.subn(r"\s*\{:?\s*#([\w-]+)[^}]*\}\s*$", "", _plain(inline))
            anchors += re.findall(r"#([\w-]+)[^}]*\}\s*$", inline.content) if named else []
            for slug in dict.fromkeys((_slug_of_mkdocs(text), _slug_of_github(text))):
                anchors.append(slug)
                anchors += [f"{slug}{mark}{anchors.count(slug) - 1}" for mark in "_-" if anchors.count(slug) > 1]
    anchors += re.findall(r"\bid=\"([\w-]+)\"", page.read_text(encoding="utf-8"))
    return frozenset(anchors)


def _slug_of_mkdocs(text: str) -> str:
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


def _slug_of_github(text: str) -> str:
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


@cache
def _parse(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def _plain(inline: Token) -> str:
    return "".join(child.content for child in inline.children or () if child.type in {"text", "code_inline"})


def _links(tokens: list[Token]) -> Iterator[str]:
    for token in tokens:
        for name in ("href", "src"):
            if isinstance(link := token.attrs.get(name), str):
                yield link
        if token.type in {"html_block", "html_inline"}:
            yield from re.findall(r"\b(?:href|src)=\"([^\"]+)\"", token.content)
        yield from _links(token.children or [])


def _relative(target: Path, repository: Path) -> str:
    resolved = target.resolve()
    return resolved.relative_to(repository).as_posix() if resolved.is_relative_to(repository) else str(resolved)
