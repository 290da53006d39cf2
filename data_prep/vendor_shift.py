"""Copy of ACDC with images in the style of another vendor."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
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
    style: str,
    *,
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
        style: a name of :data:`uumamba.data.vendor_styles.STYLES`.
        seed: another seed gives other draws.
        strength: from 0 (an exact copy) to 1.
        advance: called with the number of images done and of all.

    Returns:
        An error for each case left out, from ACDC's reader or from its image.

    Raises:
        UsageError: the style is unknown, the strength is not between 0 and 1, or ``out`` is inside of ``raw``.
    """
    raw, out = Path(raw), Path(out)
    require(style in STYLES, "style", got=style, expected=f"one of {', '.join(STYLES)}")
    check_output_folder(out, raw)
    manifest, errors = read_acdc(raw)
    images = {path: case.case_id for case in manifest.cases for path in case.images}
    for path in list_files(raw):
        target = out / path.relative_to(raw)
        if _NOT_COPIED.fullmatch(path.name):
            target.unlink(missing_ok=True)  # left by an earlier call
        else:
            with whole_file(target) as unfinished:
                unfinished.write_bytes(path.read_bytes())
    for done, (path, case_id) in enumerate(images.items(), start=1):
        try:
            write_shifted(path, out / path.relative_to(raw), style, case_id=case_id, seed=seed, strength=strength)
        except CaseError as error:
            errors.append(error)
        advance(done, len(images))
    return errors


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the copy from the shell, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.vendor_shift",
        description="Copy ACDC with its images in the style of another scanner; labels stay byte for byte.",
        epilog="Example: python -m data_prep.vendor_shift ACDC/database acdc_dark_blood --style dark_blood",
    )
    parser.add_argument("raw", type=Path, help="downloaded ACDC folder; only read")
    parser.add_argument("out", type=Path, help="folder for the copy")
    parser.add_argument("--style", required=True, choices=STYLES)
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other draws (default: 0)")
    parser.add_argument("--strength", type=float, default=1.0, help="0 (none) to 1 (default: 1)")
    return run_command(
        partial(write_vendor_shift, **vars(parser.parse_args(arguments)), advance=print_progress("images"))
    )


if __name__ == "__main__":
    sys.exit(main())
