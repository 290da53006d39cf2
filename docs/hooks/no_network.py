"""Hook of mkdocs that refuses a page which would load something from the network."""

import re
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
