"""Warnings about scans that are repaired on reading."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


class ScanWarning(UserWarning):
    """Warning of a repaired scan, with the case and the repair."""


class AcdcSpacingWarning(ScanWarning):
    """Warning of a spacing from pixdim, not from the affine (ACDC)."""


class PixelSpacingWarning(ScanWarning):
    """Warning of a spacing of 1 mm per pixel (PNG)."""


def warn_repaired(case_id: str, repair: str) -> None:
    """Warn of a repair of a case."""
    warnings.warn(f"{case_id}: {repair}.", ScanWarning, stacklevel=3)


@contextmanager
def collect_repairs(case_id: str) -> Iterator[list[str]]:
    """Collect the repairs of a case of which a block warns.

    The warnings are shown all the same. Warnings that concern every scan of a kind are not collected.
    """
    repairs: list[str] = []
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield repairs
    finally:
        for each in caught:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
            if each.category is ScanWarning:
                repairs.append(str(each.message).removeprefix(f"{case_id}: "))


@cache
def warn_of_acdc_spacing() -> None:
    """Warn once per process, because every scan of ACDC has the fault."""
    warnings.warn(
        "The affine (sform) has unit scale and qform_code is 0, as in ACDC; the spacing is taken from pixdim, here and "
        "in every such scan.",
        AcdcSpacingWarning,
        stacklevel=2,
    )


@cache
def warn_of_pixel_spacing() -> None:
    """Warn once per process, because no PNG has a spacing."""
    warnings.warn(
        "PNG has no spacing: 1 mm per pixel is assumed, here and in every PNG, so distances are in pixels.",
        PixelSpacingWarning,
        stacklevel=2,
    )
