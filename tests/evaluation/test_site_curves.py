"""Curves and tables of sites that trained together."""

import io

import numpy as np
import pytest
from PIL import Image

from uumamba.evaluation.html_report import render_report
from uumamba.evaluation.scores import ScoreRow
from uumamba.evaluation.site_curves import SiteTraining, plot_sites
from uumamba.federated import exponential, ring


def make_training(sites: int, *, validated: bool = True) -> SiteTraining:
    names = [f"site {number}" for number in range(sites)]
    rows = [
        {"rounds": 5 * (epoch + 1), "consensus_distance": 0.5**epoch, "sent_megabytes": 100.0 * epoch}
        | ({"sites": dict.fromkeys(names, 0.1 * epoch)} if validated and epoch % 2 else {})
        for epoch in range(6)
    ]
    if validated:
        rows[-1]["sites_own"] = dict.fromkeys(names, 0.25)
        rows[-1]["sites"]["site 0"] = None
    graph = exponential(sites) if sites == 8 else ring(sites)
    return SiteTraining("fold 0", graph.describe(2), graph.matrix(0).toarray(), rows)


def test_scores_are_those_of_the_last_validation() -> None:
    first, second, *_ = make_training(5).list_scores()
    assert first == {"site": "site 0", "dice": None, "dice_own": 0.25}
    assert second == {"site": "site 1", "dice": pytest.approx(0.5), "dice_own": 0.25}
    assert make_training(5, validated=False).list_scores() == []


@pytest.mark.parametrize("sites", [2, 5, 8, 20, 60])
@pytest.mark.parametrize("validated", [True, False])
def test_any_number_of_sites_is_drawn(sites: int, validated: bool) -> None:
    picture = np.asarray(Image.open(io.BytesIO(plot_sites(make_training(sites, validated=validated)))).convert("L"))
    assert picture.shape[1] > 1000
    assert (picture < 128).mean() > 0.001


def test_the_report_has_the_graph_and_a_row_for_each_site() -> None:
    rows = [ScoreRow("a", "a", None, "RV", 0.5, 1.0, 0.5, 10.0, 11.0, 0.5, None)]
    html = render_report(rows, title="sites", sites=[make_training(5)])
    assert "Sites that trained together" in html
    assert "ring, 5 clients, 2 messages per client and step, spectral gap 0.4607, lambda^2 0.291" in html
    assert html.count('<th scope="row">site ') == 5
    assert "Sites that trained together" not in render_report(rows, title="one place")
