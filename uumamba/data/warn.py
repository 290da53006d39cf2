"""Warnings about scans that are repaired while they are read."""

import warnings
from functools import cache


class ScanWarning(UserWarning):
    """Warning of a repaired scan; the message names the case and the repair."""


class AcdcSpacingWarning(ScanWarning):
    """Warning of a spacing that was taken from pixdim.

    The affine has unit scale, as in all of ACDC.
    """


def warn_repaired(case_id: str, repair: str) -> None:
    """Warn of a repair, with the case's name in front."""
    warnings.warn(f"{case_id}: {repair}.", ScanWarning, stacklevel=3)


@cache
def warn_of_acdc_spacing() -> None:
    """Warn once a process: every scan of ACDC would say the same."""
    warnings.warn(
        "The affine (sform) has unit scale and qform_code is 0, as in ACDC; the spacing is taken from pixdim, here and "
        "in every such scan.",
        AcdcSpacingWarning,
        stacklevel=2,
    )
