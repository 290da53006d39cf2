"""Optimizers of the family by name, and torch's divergence of outputs."""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from uumamba import optim

OPTIMIZERS: dict[str, Callable[..., optim.SharpnessAware]] = {
    "Plain": optim.Plain,
    "SAM": optim.SAM,
    "ASAM": optim.ASAM,
    "GSAM": optim.GSAM,
    "FriendlySAM": optim.FriendlySAM,
    "LookSAM": partial(optim.LookSAM, k=2),
    "LookSAM triggered": partial(optim.LookSAM, trigger=optim.AdaptiveTrigger(total_steps=5, start=-1e9, end=-1e9)),
    "MSAM": optim.MSAM,
    "StaleSAM": optim.StaleSAM,
    "SAGM": optim.SAGM,
    **{f"TRAM {trust}": partial(optim.TRAM, trust=trust) for trust in ("previous", "initial", "noise", "fisher")},
}


def torch_divergence(reference: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute the mean of KL(softmax(reference / tau) || softmax(logits / tau))."""
    then, now = (Categorical(logits=z.movedim(1, -1) / temperature) for z in (reference, logits))
    return kl_divergence(then, now).mean()
