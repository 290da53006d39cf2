"""Page ``docs/reference/configuration.md``: every key of a configuration."""

import re
from collections.abc import Iterator
from importlib import resources

from benchmarks.markdown import make_table
from benchmarks.reference.sections import Section, list_sections
from uumamba.config.load import shipped_configs

COLUMNS = ("key", "values", "default", "meaning")
HEAD = """# Configuration

Written by `python -m benchmarks.reference` from the code.

A configuration is a YAML file that describes one run. Wherever a command asks for CONFIG, give the path of a
file, such as `my_settings.yaml`, or the name of a shipped configuration:

```
uumamba run acdc_cpu --raw ACDC/database --out runs/acdc
```

`--set KEY=VALUE` overrides one key; the key has its section in front, and the value is YAML. The option may be
repeated:

```
uumamba run acdc_cpu --raw ACDC/database --out runs/acdc --set optim.base.lr=0.002 --set 'augment.scale=[0.8, 1.25]'
```

- An unknown key, a missing key, or a value of a wrong type or out of range ends the command before a file is written.
  The error names the key and the closest known one.
- A section with a `name` has the keys of that part only; those of other parts are unknown.
- Values are data: no Python, no import paths. Environment variables configure nothing.
- Lengths are in millimetres (`_mm`) or voxels, angles in degrees (`_deg`). Axes are through-plane first: `[Z, Y, X]`,
  in 2-D `[Y, X]`.
- The run's folder and every checkpoint hold the complete configuration, with all defaults, in `config.json`.
- A section with the default "its defaults" may be left out, or given in part.
- `auto` is replaced by a value from the training cases, as described in
  [scan folders](scan_folders.md#what-auto-means).
"""


def make_configuration_page() -> str:
    """Make the page."""
    sections = list(list_sections())
    return HEAD + _format_shipped() + "".join(map(format_section, sections))


def format_section(section: Section) -> str:
    """Format a section as heading, description and tables."""
    parts = [f"\n{'#' * section.level} {section.title}\n"]
    if section.about:
        parts.append(f"\n{section.about}\n")
    if section.names:
        parts.append("\n" + make_table(("name", "part"), [(f"`{name}`", text) for name, text in section.names.items()]))
    if section.keys:
        parts.append("\n" + make_table(COLUMNS, [key.cells for key in section.keys]))
    return "".join(parts)


def _format_shipped() -> str:
    rows = [(f"`{name}`", describe_shipped(name)) for name in shipped_configs()]
    return "\n## Shipped configurations\n\n" + make_table(("name", "what it is for"), rows)


def describe_shipped(name: str) -> str:
    """Return the first sentence of a shipped configuration's comment.

    Example:
        >>> describe_shipped("demo")
        "The phantom in ACDC's layout, minutes on two cores."
    """
    text = resources.files("uumamba.configs").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    comment = " ".join(_read_comment(text))
    return re.split(r"(?<=\.)\s", comment, maxsplit=1)[0]


def _read_comment(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line.removeprefix("#").strip()
