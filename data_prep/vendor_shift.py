"""ACDC as another vendor's scanner might show it: the same patients, files and labels, other images."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from data_prep.acdc import read_acdc
from data_prep.scan_files import files_below
from data_prep.shell import exit_code_of
from uumamba.data.shifted_scan import write_shifted
from uumamba.data.vendor_styles import STYLES
from uumamba.runtime.errors import CaseError, UsageError
from uumamba.runtime.files import whole_file

_NOT_SHIFTED = re.compile(r"patient\d+_(4d|frame\d+)\.nii\.gz")


def write_vendor_shift(
    raw: Path | str,
    out: Path | str,
    style: str,
    *,
    seed: int = 0,
    strength: float = 1.0,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> list[CaseError]:
    """Copy ACDC with every ED and ES image in one style, to test what a model holds against.

    Labels, ``Info.cfg`` and whatever else lies there are copied byte for byte; an image keeps its header byte for byte.
    Cines (``*_4d.nii.gz``) and the images of cases that are refused are left out, as they would show the patient in the
    old style. Preparing comes afterwards, as it would for a scan of that vendor, so an intensity normalisation meets
    the style.

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
        UsageError: there is no such style, the strength is not between 0 and 1, or ``out`` lies in ``raw``.
    """
    raw, out = Path(raw), Path(out)
    if style not in STYLES:
        raise UsageError(f"There is no style {style!r}; give one of {', '.join(STYLES)}.")
    if not 0.0 <= strength <= 1.0:
        raise UsageError(f"The strength of a style lies between 0 and 1, got {strength:g}.")
    if out.resolve().is_relative_to(raw.resolve()):
        raise UsageError(f"{out} lies in the raw folder {raw}, which is never written to; choose another folder.")
    manifest, errors = read_acdc(raw)
    images = {case.image: case.case_id for case in manifest.cases}
    for path in files_below(raw):
        if path in images:
            continue
        target = out / path.relative_to(raw)
        if _NOT_SHIFTED.fullmatch(path.name):
            target.unlink(missing_ok=True)  # of an earlier call, when the case could be read
            continue
        with whole_file(target) as unfinished:
            unfinished.write_bytes(path.read_bytes())
    for done, (path, case_id) in enumerate(images.items(), start=1):
        target = out / path.relative_to(raw)
        try:
            write_shifted(path, target, style, case_id=case_id, seed=seed, strength=strength)
        except CaseError as fault:
            target.unlink(missing_ok=True)
            errors.append(fault)
        advance(done, len(images))
    return errors


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the copy from the shell; 3 is the exit code when some cases failed, 2 of a wrong use."""
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
    options = {"seed": given.seed, "strength": given.strength, "advance": _say}
    return exit_code_of(partial(write_vendor_shift, given.raw, given.out, given.style, **options))


def _say(done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        print(f"images: {done} of {total}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
