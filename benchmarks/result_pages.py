"""Pages ``docs/results/*.md``: all committed results, by theme."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.family_table import SOURCES, make_family_rows
from benchmarks.markdown import make_anchor
from benchmarks.result_tables import Result, count_verdicts, find_title, format_section, format_table, wrap
from uumamba.runtime.errors import require

Results = Mapping[Path, Result]
BY = "Written by `python -m benchmarks.readme_tables` from `benchmarks/results/`."


@dataclass(frozen=True)
class Theme:
    """Page of results.

    Attributes:
        page: file name without suffix.
        title: heading.
        about: description of the page.
        sources: benchmark of each result, by pattern of the result's file name.
    """

    page: str
    title: str
    about: str
    sources: Mapping[str, str]

    def select(self, results: Results) -> dict[Path, str]:
        """Select the results of the page, each with its benchmark."""
        return {
            path: module
            for pattern, module in self.sources.items()
            for path in results
            if self.find_source(path) == (pattern, module)
        }

    def find_source(self, path: Path) -> tuple[str, str] | None:
        """Return the first pattern that fits a file, with the benchmark."""
        return next((each for each in self.sources.items() if fnmatch(path.stem, each[0])), None)


THEMES = (
    Theme(
        "segmentation",
        "Segmentation of hearts and vessels",
        "Whole runs from raw scans to scores, on ACDC and on phantoms of other data sets, next to simple baselines; "
        "then the equality with released networks, and how scans unlike the training data and damaged files are "
        "handled. Times beside nnU-Net's are on [speed](speed.md).",
        {
            "acdc_cpu": "benchmarks.acdc_cpu",
            "acdc_minutes": "benchmarks.acdc_minutes",
            "acdc_search": "benchmarks.acdc_search",
            "demo": "benchmarks.demo",
            "coronary_phantom": "benchmarks.vessels",
            "aorta_phantom": "benchmarks.vessels",
            "official_networks": "benchmarks.official_networks",
            "unusual_inputs": "benchmarks.unusual_inputs",
            "fuzz_readers": "benchmarks.fuzz_readers",
        },
    ),
    Theme(
        "optimizers",
        "Sharpness-aware optimizers",
        "Cost of each optimizer, and the claims of each method's paper, measured on digits, text and hearts. "
        "[Which method, when](which_method.md) has the comparisons of long trainings on hearts in words.",
        {
            "hearts*": "benchmarks.claims.hearts",
            "sharpness_acdc": "benchmarks.claims.sharpness_acdc",
            "sharpness*": "benchmarks.claims.sharpness",
            "optim_step*": "benchmarks.optim_step",
        },
    ),
    Theme(
        "domain_generalization",
        "Domain generalization",
        "Methods that train on some domains (scanners, centres) for good results on others: the claims of UDIM and "
        "USEFUL on digits, and hearts in the style of another scanner.",
        {
            "domain_generalization*": "benchmarks.claims.domain_generalization",
            "acdc_vendor_shift*": "benchmarks.claims.acdc_vendor_shift",
        },
    ),
    Theme(
        "low_bits",
        "Low-bit training",
        "Training with weights and activations of 2 to 8 bits: the claims of GAQAT and of learned scales.",
        {"quantization*": "benchmarks.claims.quantization"},
    ),
    Theme(
        "federated_and_unlearning",
        "Decentralized training and unlearning",
        "Training by sites that exchange weights, and the removal of patients or samples from a trained model.",
        {
            "federated*": "benchmarks.claims.federated",
            "unlearn_hearts*": "benchmarks.unlearn_hearts",
            "unlearning*": "benchmarks.claims.unlearning",
        },
    ),
    Theme(
        "speed",
        "Speed and memory",
        "Medians of repeated runs that alternate with the compared program, on the machine that each table names.",
        {
            "predict*": "benchmarks.predict",
            "prepare*": "benchmarks.prepare",
            "train_step*": "benchmarks.train_step",
            "layer*": "benchmarks.layer",
            "scan*": "benchmarks.scan",
        },
    ),
)
FAMILY = """## The family

Passes and time are those of a training step relative to the base optimizer, on the network of `acdc_cpu`. Claims are
those of each method's paper, measured on digits, text and hearts, each a row of the tables below: how many hold / are
not distinguishable / do not hold. Copies of the weights include the backup; rules that combine two gradients briefly
keep two gradients in memory as well.

"""
HOW_TO_READ = """
## How results are made

Each table comes from a file in `benchmarks/results/`, which one command of `benchmarks/` has written; no figure is
typed. The module named below a table holds its protocol, and its `--help` shows how to repeat it. A file stores
machine, versions, commit, and the configurations that were used, complete; a test fails if one of them has changed
since. Machines had other work at times, so minutes compare roughly.

## How to read verdicts

A row of a table of claims compares a method with a control on one metric.

- **budget**: what both got the same amount of. Equal epochs or steps favour methods with several passes a step; equal
  time charges them.
- **difference**: value minus control, paired by seed, patient or repetition.
- **interval**: 95 % interval of the mean difference (Student's). It says nothing about other data sets, and intervals
  of few seeds are wide.
- **verdict**: `holds` if the whole interval is on the claimed side, `does not hold here` if the whole interval is on
  the other side, `not distinguishable` otherwise: the measurement cannot tell, which is not the same as equal.
- **p holm**, where it is given: p-value adjusted for all comparisons of the table by Holm's method; the verdict then
  follows from it. Other tables are not adjusted, so of twenty comparisons without any effect about one has an interval
  without 0.

`not measured` marks a figure that was planned and could not be measured yet.
"""


def make_result_pages(results: Results, folder: Path) -> dict[Path, str]:
    """Make the pages of all themes, and their index.

    Args:
        results: results by file.
        folder: folder of the pages.

    Raises:
        UsageError: a result belongs to no theme.
    """
    check_themes(results)
    pages = {folder / f"{theme.page}.md": make_page(theme, results) for theme in THEMES}
    return {folder / "index.md": make_index(results)} | pages


def check_themes(results: Results) -> None:
    """Raise for a result that belongs to no theme.

    Raises:
        UsageError: no pattern fits the file's name.
    """
    for path in results:
        require(
            any(theme.find_source(path) for theme in THEMES),
            path.name,
            got="no page for the result",
            expected="a name that a pattern of a theme fits",
            fix="add the name to THEMES in benchmarks/result_pages.py",
        )


def make_page(theme: Theme, results: Results) -> str:
    """Make the page of a theme."""
    sections = [format_section(path, results[path], module=module) for path, module in theme.select(results).items()]
    if theme.page == "optimizers":
        of_family = [result for path, result in results.items() if path.stem in SOURCES]
        sections = [FAMILY + format_table(list(make_family_rows(of_family))), *sections]
    read = wrap(f"{BY} [How to read the tables](index.md#how-to-read-verdicts).")
    none = ["No result is committed yet.\n"]
    return "\n".join([f"# {theme.title}\n\n{wrap(theme.about)}\n\n{read}\n", *(sections or none)])


def make_index(results: Results) -> str:
    """Make the index of the pages."""
    head = f"# Results\n\n{BY}\nCommitted measurements of uumamba and of the programs that it is compared with.\n"
    parts = [f"\n## {theme.title}\n\n{_describe_page(theme)}\n\n{_list_tables(theme, results)}" for theme in THEMES]
    return head + HOW_TO_READ + "".join(parts)


def _describe_page(theme: Theme) -> str:
    return wrap(f"[{theme.title}]({theme.page}.md): {theme.about[:1].lower()}{theme.about[1:]}")


def _list_tables(theme: Theme, results: Results) -> str:
    """List the tables of a page, with their sizes or verdicts."""
    lines = []
    for path in theme.select(results):
        title, rows = find_title(path, results[path]), results[path]["rows"]
        about = count_verdicts(rows) or f"{len(rows)} row{'s' * (len(rows) > 1)}."
        lines.append(f"- [{title}]({theme.page}.md#{make_anchor(title)}): {about}\n")
    return "".join(lines) or "No result is committed yet.\n"
