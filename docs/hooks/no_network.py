"""Hooks of mkdocs for a manual that is read as files.

A page that would load something from the network is refused.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

_LOADED = re.compile(
    r"<(?:script|link|img|iframe|source|video|audio)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)"
)


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Raise if a finished page has a script, style or picture with an address in the network."""
    for address in _LOADED.findall(output):
        raise PluginError(f"{page.file.src_uri} loads {address}; the manual must work without a network")
    return output


def on_post_build(*, config: Any, **_: Any) -> None:
    """Remove the page 404, which belongs to a web server: its addresses begin at the server's root."""
    (Path(config.site_dir) / "404.html").unlink(missing_ok=True)
