"""Decentralized trainings of a run, read from its folders for the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uumamba.config.bind import read_part
from uumamba.config.federated import build_topology
from uumamba.evaluation.site_curves import SiteTraining
from uumamba.federated import Topology
from uumamba.pipelines.run_layout import fold_folders, stored_run
from uumamba.training.run_folder import RunLog


def read_site_trainings(run: Path) -> list[SiteTraining]:
    """Read the decentralized trainings of a run, if any."""
    found = []
    for fold in fold_folders(run):
        stored, rows = stored_run(fold.path), RunLog(fold.path / "metrics.jsonl").rows()
        sites: Mapping[str, Any] = next((row["sites"] for row in rows if row.get("sites")), {})
        if stored and stored.get("federated") and sites:
            found.append(_make_training(fold.title, stored["federated"], rows, sites=len(sites)))
    return found


def _make_training(
    title: str, section: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, sites: int
) -> SiteTraining:
    part = read_part("federated", section, "federated")
    mixing = build_topology(part, [1] * sites)
    period = mixing.period if isinstance(mixing, Topology) else 1
    matrix = np.mean([mixing.matrix(step).toarray() for step in range(period)], axis=0)
    return SiteTraining(title, mixing.describe(part.gossip_steps), matrix, rows)
