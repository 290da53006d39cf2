"""ACDC's validation patients in the styles of other scanners."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.claims.acdc import FOLD
from benchmarks.claims.run_log import print_progress
from uumamba.config import RunConfig
from uumamba.data.prepared import PreparedFolder
from uumamba.data.shifted_scan import write_shifted
from uumamba.data.vendor_styles import STYLES
from uumamba.pipelines.prepare import prepare
from uumamba.runtime.files import write_json

ORIGINAL = "original"
_MADE_OF = "style.json"


def prepare_styles(prepared: Path, out: Path, config: RunConfig) -> dict[str, Path]:
    """Prepare the validation patients in each style and the original one.

    The raw scan is shifted and then prepared, like a scan of that vendor. A folder made from the same style and
    patients is kept.

    Args:
        prepared: the prepared patients in their original style.
        out: gets ``<style>/``.
        config: configuration whose recipe is used.
    """
    manifest = PreparedFolder(prepared).manifest
    cases = manifest.select(fold=int(FOLD))
    folders = {ORIGINAL: prepared}
    for name, effect in STYLES.items():
        folder = folders[name] = out / name
        made_of = {"effect": repr(effect), "images": {case.case_id: str(case.image) for case in cases}}
        if _is_up_to_date(folder, made_of):
            continue
        print_progress(f"acdc: {len(cases)} scans as {name}")
        shifted = []
        for case in cases:
            image = folder / "scans" / f"{case.case_id}.nii.gz"
            [original] = case.images
            write_shifted(original, image, name, case_id=case.case_id)
            shifted.append(replace(case, image=image))
        prepare(replace(manifest, cases=tuple(shifted)), recipe=config.preprocess.build(), out=folder)
        write_json(folder / _MADE_OF, made_of)
    return folders


def _is_up_to_date(folder: Path, made_of: Mapping[str, object]) -> bool:
    try:
        return bool(json.loads((folder / _MADE_OF).read_text(encoding="utf-8")) == made_of)
    except (OSError, ValueError):
        return False
