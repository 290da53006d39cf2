"""Pages that would need a network."""

from types import SimpleNamespace

import pytest
from mkdocs.exceptions import PluginError

from docs.hooks.no_network import on_post_page

PAGE = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))


@pytest.mark.parametrize(
    "loaded",
    [
        '<script src="https://unpkg.com/shim"></script>',
        '<link rel="stylesheet" href="//fonts.example/a.css">',
        "<img alt=x src=http://a.example/b.png>",
    ],
)
def test_a_page_that_loads_from_the_network_is_refused(loaded: str) -> None:
    with pytest.raises(PluginError, match=r"index\.md loads"):
        on_post_page(f"<p>{loaded}</p>", page=PAGE)


@pytest.mark.parametrize("linked", ['<a href="https://arxiv.org/abs/1">x</a>', '<script src="../a.js"></script>'])
def test_a_link_to_follow_is_allowed(linked: str) -> None:
    assert on_post_page(linked, page=PAGE) == linked
