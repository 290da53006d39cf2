"""Copy of ACDC with images in the style of another vendor."""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from data_prep.acdc import read_acdc
from data_prep.raw_folder import check_output_folder, list_files
from data_prep.shell import print_progress, run_command
from uumamba.data.shifted_scan import write_shifted
from uumamba.data.vendor_styles import STYLES
from uumamba.runtime.errors import CaseError, require
from uumamba.runtime.files import whole_file
from uumamba.runtime.options import Probability, check_options

_NOT_COPIED = re.compile(r"patient\d+_(4d|frame\d+)\.nii\.gz")


@check_options
def write_vendor_shift(
    raw: Path | str,
    out: Path | str,
    style: str | None = None,
    *,
    group_styles: Mapping[str, str] | None = None,
    seed: int = 0,
    strength: Probability = 1.0,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> list[CaseError]:
    """Copy ACDC with every ED and ES image in one vendor style.

    The copy tests a model on another vendor. Labels, ``Info.cfg`` and all other files are copied byte for byte, and so
    is the header of each image. Cines (``*_4d.nii.gz``) and the images of faulty cases are left out, since they would
    show the patient in the original style. Prepare the copy afterwards, so that intensity normalisation is applied to
    the shifted images.

    Args:
        raw: raw folder, see :func:`data_prep.acdc.read_acdc`; only read.
        out: folder for the copy, in the same layout.
        style: a name of :data:`uumamba.data.vendor_styles.STYLES`; None keeps the original images of groups without a
            style of their own.
        group_styles: style of the patients of each group (diagnosis), so that sites by group have a scanner each.
        seed: another seed gives other draws.
        strength: from 0 (an exact copy) to 1.
        advance: called with the number of images done and of all.

    Returns:
        An error for each case left out, from ACDC's reader or from its image.

    Raises:
        UsageError: no style is given, a style or group is unknown, the strength is not between 0 and 1, or ``out`` is
            inside of ``raw``.
    """
    raw, out = Path(raw), Path(out)
    group_styles = dict(group_styles or {})
    given = [*({style} - {None}), *group_styles.values()]
    for each in given or [None]:
        require(each in STYLES, "style", got=each, expected=f"one of {', '.join(STYLES)}")
    check_output_folder(out, raw)
    manifest, errors = read_acdc(raw)
    groups = {case.group for case in manifest.cases}
    for group in group_styles:
        known = ", ".join(sorted(filter(None, groups)))
        require(group in groups, "group_styles", got=group, expected=f"groups of {raw}: {known}")
    images = {path: case.case_id for case in manifest.cases for path in case.images}
    style_of = {case.case_id: group_styles.get(case.group or "", style) for case in manifest.cases}
    for path in list_files(raw):
        target = out / path.relative_to(raw)
        if _NOT_COPIED.fullmatch(path.name):
            target.unlink(missing_ok=True)  # left by an earlier call
        else:
            with whole_file(target) as unfinished:
                unfinished.write_bytes(path.read_bytes())
    for done, (path, case_id) in enumerate(images.items(), start=1):
        try:
            _write_image(path, out / path.relative_to(raw), style_of[case_id], case_id, seed=seed, strength=strength)
        except CaseError as error:
            errors.append(error)
        advance(done, len(images))
    return errors


def _write_image(source: Path, target: Path, style: str | None, case_id: str, *, seed: int, strength: float) -> None:
    if style is None:
        with whole_file(target) as unfinished:
            unfinished.write_bytes(source.read_bytes())
    else:
        write_shifted(source, target, style, case_id=case_id, seed=seed, strength=strength)


def _read_group_style(text: str) -> tuple[str, str]:
    group, separator, style = text.partition("=")
    if not separator or style not in STYLES:
        raise argparse.ArgumentTypeError(f"expected GROUP=STYLE with a style of {', '.join(STYLES)}")
    return group, style


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the copy from the shell, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.vendor_shift",
        description="Copy ACDC with its images in the style of another scanner; labels stay byte for byte.",
        epilog="Examples: python -m data_prep.vendor_shift ACDC/database acdc_dark_blood --style dark_blood; a scanner "
        "for each site of configs/acdc_federated.yaml: python -m data_prep.vendor_shift ACDC/database acdc_sites "
        "--group-style DCM=dark_blood --group-style HCM=coarse_matrix",
    )
    parser.add_argument("raw", type=Path, help="downloaded ACDC folder; only read")
    parser.add_argument("out", type=Path, help="folder for the copy")
    parser.add_argument("--style", choices=STYLES, help="style of all patients without a --group-style")
    parser.add_argument(
        "--group-style",
        dest="group_styles",
        metavar="GROUP=STYLE",
        type=_read_group_style,
        action="append",
        default=[],
        help="style of the patients of one group (diagnosis); may be repeated",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other draws (default: 0)")
    parser.add_argument("--strength", type=float, default=1.0, help="0 (none) to 1 (default: 1)")
    given = vars(parser.parse_args(arguments))
    given["group_styles"] = dict(given["group_styles"])
    return run_command(partial(write_vendor_shift, **given, advance=print_progress("images")))


if __name__ == "__main__":
    sys.exit(main())
