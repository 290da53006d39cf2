"""Minimal training loop: network, objective, optimizer and steps.

It is written as in a notebook.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.optim import Optimizer

from uumamba.optim import SharpnessAware
from uumamba.optim.passes import Ascent
from uumamba.runtime.observer import Observer, RunView
from uumamba.training.schedule import cosine
from uumamba.types import Batch, Method

Base = Callable[..., Optimizer]


@dataclass(frozen=True)
class Recipe:
    """Parts of a training step."""

    net: nn.Module
    objective: nn.Module
    optimizer: SharpnessAware
    ascent: Ascent | None = None
    method: Method | None = None

    def step(self, batch: Batch) -> Tensor:
        """Make one training step and return its loss."""
        closure, added = partial(self.objective, self.net, batch), None
        if self.method is not None:
            added = self.method.at_weights(batch["image"], batch["label"], domains=batch.get("domain"))
        return self.optimizer.step(closure, ascent=self.ascent, at_weights=added)

    def begin_epoch(self, epoch: int) -> None:
        """Pass the epoch to an objective that uses it."""
        if isinstance(self.objective, Observer):
            self.objective.on_epoch_start(RunView(net=self.net, epochs_done=epoch))


def train(recipe: Recipe, batches: Iterable[tuple[int, Batch]], *, steps: int, warmup_steps: int = 0) -> None:
    """Train for ``steps`` steps over ``(epoch, batch)``.

    The learning rate falls to 0 along a cosine.
    """
    schedule = cosine(recipe.optimizer, steps, warmup_steps)
    recipe.net.train()
    epoch_before = None
    for _, (epoch, batch) in zip(range(steps), batches, strict=False):
        if epoch != epoch_before:
            recipe.begin_epoch(epoch)
            epoch_before = epoch
        recipe.step(batch)
        schedule.step()
    recipe.net.eval()
