"""Copy of ACDC in the style of another vendor's scanner: same patients, files and labels, other images."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from data_prep.acdc import read_acdc
from data_prep.raw_folder import check_outside_raw, list_files
from data_prep.shell import print_progress, run_command
from uumamba.data.shifted_scan import write_shifted
from uumamba.data.vendor_styles import STYLES
from uumamba.runtime.errors import CaseError, require
from uumamba.runtime.files import whole_file

_NOT_COPIED = re.compile(r"patient\d+_(4d|frame\d+)\.nii\.gz")


def write_vendor_shift(
    raw: Path | str,
    out: Path | str,
    style: str,
    *,
    seed: int = 0,
    strength: float = 1.0,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> list[CaseError]:
    """Copy ACDC with every ED and ES image in one style, to test a model on another vendor.

    Labels, ``Info.cfg`` and all other files are copied byte for byte; an image keeps its header byte for byte. Cines
    (``*_4d.nii.gz``) and the images of faulty cases are left out, as they would show the patient in the old style.
    Preparing comes afterwards, as it would for a scan of that vendor, so an intensity normalisation sees the style.

    Args:
        raw: as for :func:`data_prep.acdc.read_acdc`; only read.
        out: gets the copy, in the same layout.
        style: a name of :data:`uumamba.data.vendor_styles.STYLES`.
        seed: another one gives other draws.
        strength: 0, an exact copy, to 1.
        advance: called with the images done and their number.

    Returns:
        An error for each case that is left out of the copy, as ACDC's reader or its image says.

    Raises:
        UsageError: there is no such style, the strength is not between 0 and 1, or ``out`` is inside of ``raw``.
    """
    raw, out = Path(raw), Path(out)
    require(style in STYLES, "style", got=style, expected=f"one of {', '.join(STYLES)}")
    require(0.0 <= strength <= 1.0, "strength", got=strength, expected="a number from 0 to 1")
    check_outside_raw(out, raw)
    manifest, errors = read_acdc(raw)
    images = {case.image: case.case_id for case in manifest.cases}
    for path in list_files(raw):
        target = out / path.relative_to(raw)
        if _NOT_COPIED.fullmatch(path.name):
            target.unlink(missing_ok=True)  # of an earlier call, when the case could be read
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
    """Write the copy from the shell; the exit code is 3 if some cases failed, 2 for wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.vendor_shift",
        description="Copy ACDC with its images in the style of another scanner; labels stay byte for byte.",
        epilog="Example: python -m data_prep.vendor_shift ACDC/database acdc_dark_blood --style dark_blood",
    )
    parser.add_argument("raw", type=Path, help="ACDC as it was downloaded; only read")
    parser.add_argument("out", type=Path, help="folder for the copy")
    parser.add_argument("--style", required=True, choices=STYLES)
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other draws (default: 0)")
    parser.add_argument("--strength", type=float, default=1.0, help="0 (none) to 1 (default: 1)")
    given = parser.parse_args(arguments)
    options = {"seed": given.seed, "strength": given.strength, "advance": print_progress("images")}
    return run_command(partial(write_vendor_shift, given.raw, given.out, given.style, **options))


if __name__ == "__main__":
    sys.exit(main())
