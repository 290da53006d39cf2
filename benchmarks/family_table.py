"""Table of sharpness-aware optimizers: description, cost and claims.

Costs come from ``optim_step.json``, claims from the results that test the members' own papers. Results where a member
is only a comparison, such as the other vendor's scanner, are not counted. A member with several forms (``TRAM,
previous``; ``LookSAM(5)``) takes its cost from the first form and counts the claims of all forms.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SOURCES = ("optim_step", "sharpness", "sharpness_acdc")
ASCENT, NORMS = "`ascent=OutputBiasForgetting()`", "`norm_layers_only(net)`"
WORDS: Mapping[str, tuple[str, int | str, str]] = {
    "base": (
        "`Plain`",
        0,
        "the base optimizer alone, same interface; in few minutes its many steps win",
    ),
    "SAM": (
        "`SAM`",
        1,
        "descends with the gradient of the worst point nearby; try it first, at twice the time",
    ),
    "ASAM": ("`ASAM`", 1, "a neighbourhood that scales with the weights; `rho` ten times SAM's"),
    "GSAM": (
        "`GSAM`",
        1,
        "aims to lower the gap of the losses nearby and here; `rho` may follow the rate",
    ),
    "FriendlySAM": ("`FriendlySAM`", 2, "perturbs only along the batch-specific part of the gradient"),
    "SAGM": ("`SAGM`", 1, "the mean of both gradients, aligned; for a test set from elsewhere"),
    "LookSAM": (
        "`LookSAM`",
        2,
        "perturbs every k steps (here 5) or by an `AdaptiveTrigger`; for large batches",
    ),
    "MSAM": ("`MSAM`", 1, "perturbs along the base's momentum, before its only pass"),
    "StaleSAM": ("`StaleSAM`", 2, "perturbs along the last step's gradient; for a base without momentum"),
    "TRAM": ("`TRAM`", 2, "its radius is the distance that the outputs have moved; for fine-tuning"),
    "OBF": (ASCENT, 1, "perturbs to where the outputs' bias is forgotten; with SAM, ASAM, GSAM, FriendlySAM, TRAM"),
    "SAM, norms alone": (NORMS, 1, "parameter groups of which only norm layers are perturbed, for any optimizer here"),
    "MESA": ("`MESA`", 1, "an objective: stay close to the network's moving average; serves segmentation"),
    "SAF": ("`SAF`", "a table", "an objective: stay close to the network's outputs of past epochs; classification"),
}
VERDICTS = ("holds", "not distinguishable", "does not hold here")


def make_family_rows(results: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield one row per member, from the results named in :data:`SOURCES`."""
    rows = [row for result in results for row in result["rows"]]
    for member, (name, copies, words) in WORDS.items():
        steps = [
            row for row in rows if "passes" in row and _is_form_of(str(row["name"]).removeprefix("step, "), member)
        ]
        costs = [row for row in steps if row["passes"] is not None]
        claims = [row for row in rows if "verdict" in row and _is_form_of(str(row["method"]), member)]
        yield {
            "name": name,
            "passes a step": costs[0]["passes"] if costs else None,
            "time of a step": costs[0]["ratio"] if costs else None,
            "copies of the weights": copies,
            "claims, equal epochs": _count_verdicts(claims, "equal epochs"),
            "claims, equal time": _count_verdicts(claims, "equal time"),
            "what it does, and when to take it": words,
        }


def _is_form_of(name: str, member: str) -> bool:
    """Return whether a row's name is the member's or of its form."""
    others = WORDS.keys() - {member}
    return name == member or (name not in others and name.startswith((f"{member},", f"{member}(")))


def _count_verdicts(claims: Sequence[Mapping[str, Any]], budget: str) -> str | None:
    """Format the number of claims for each verdict, None without claims."""
    found = [row["verdict"] for row in claims if row["budget"] == budget]
    return " / ".join(str(found.count(verdict)) for verdict in VERDICTS) if found else None
