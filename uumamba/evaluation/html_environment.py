"""Environment of the HTML templates: escaping, number formats, embedded pictures."""

import base64
from functools import partial

from jinja2 import Environment, PackageLoader, StrictUndefined

from uumamba.evaluation.cards import format_number


def make_environment() -> Environment:
    """Make the environment that renders the templates of HTML pages."""
    environment = Environment(
        loader=PackageLoader("uumamba.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_number,
        "png": partial(_format_data_uri, kind="png"),
        "jpeg": partial(_format_data_uri, kind="jpeg"),
    }
    return environment


def _format_data_uri(picture: bytes, *, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(picture).decode("ascii")
