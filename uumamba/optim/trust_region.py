"""How far a network's outputs are from those it had before, or from those it gives for a shaken input."""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from uumamba.optim.backup import WeightBackup, forget_casts
from uumamba.optim.rules import Memory, Slope
from uumamba.runtime.errors import UsageError
from uumamba.runtime.seeds import key_to_seed

Form = Literal["softmax", "sigmoid"]


@torch.no_grad()
def divergence(reference: Tensor, logits: Tensor, *, form: Form = "softmax") -> Tensor:
    r"""The Kullback-Leibler divergence of a network's answers from those of a reference.

    .. math:: \frac{1}{N} \sum_n \sum_c p_{nc} \log \frac{p_{nc}}{q_{nc}}, \qquad
              p = \mathrm{softmax}(\mathrm{reference}),\ q = \mathrm{softmax}(\mathrm{logits})

    summed over classes and averaged over samples, voxels or tokens, so it depends neither on the batch's size nor on
    how many there are. The sigmoid form takes each channel for a probability of its own and adds both its outcomes.
    A class that the reference gives no probability, such as one masked by ``-inf``, counts 0. In float32 or better.

    Args:
        reference: logits ``(batch, classes, *spatial)``.
        logits: those to compare, of the same shape.
        form: what makes probabilities of logits.

    Returns:
        A scalar without a gradient, not negative.

    Raises:
        ValueError: shapes differ, or there is one class to take the softmax of.

    Example:
        >>> certain, torn = torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> divergence(certain, torn)  # log 2
        tensor(0.6931)
    """
    if reference.shape != logits.shape or logits.ndim < 2:
        raise ValueError(
            f"the divergence compares logits of equal shapes (batch, classes, ...), got {tuple(reference.shape)} and "
            f"{tuple(logits.shape)}"
        )
    if form == "softmax" and logits.shape[1] == 1:
        raise ValueError('the softmax of one class is always 1; take form="sigmoid" for logits of one channel')
    precision = torch.promote_types(torch.promote_types(reference.dtype, logits.dtype), torch.float32)
    then, now = reference.to(precision), logits.to(precision)
    if form == "softmax":
        terms = _terms(then.log_softmax(1), now.log_softmax(1))
    else:
        terms = _terms(F.logsigmoid(then), F.logsigmoid(now)) + _terms(F.logsigmoid(-then), F.logsigmoid(-now))
    return terms.sum(1).mean().clamp_min(0)


def _terms(log_then: Tensor, log_now: Tensor) -> Tensor:
    probability = log_then.exp()
    return torch.where(probability == 0, 0.0, probability * (log_then - log_now))


class EarlierWeights:
    """Keeps a copy of the weights in the optimizer's memory, and runs its closures under it again.

    Args:
        follow: keep the weights of the step before; otherwise those before the first step, for good.
    """

    NAME = "trusted"

    def __init__(self, *, follow: bool) -> None:
        self._follow = follow

    @torch.no_grad()
    def keep(self, params: Sequence[Tensor], memory: Memory) -> None:
        """Keep the weights that stand now; to be called before each update of them."""
        known = [param for param in params if self.NAME in memory.get(param, {})]
        if known and self._follow:
            torch._foreach_copy_([memory[param][self.NAME] for param in known], known)
        for param in params:
            values = memory.setdefault(param, {})
            if self.NAME not in values:
                values[self.NAME] = param.detach().clone()

    def outputs(self, slope: Slope, backup: WeightBackup) -> Sequence[Any]:
        """What the closures return under the weights kept, or just returned where none are kept yet.

        Args:
            slope: at today's weights.
            backup: holds those meanwhile; the engine's own will do, as nothing has climbed yet.
        """
        kept = {param: values[self.NAME] for param, values in slope.memory.items() if self.NAME in values}
        if not kept:
            return slope.outputs
        with backup.restored_after(list(kept)):
            with torch.no_grad():
                torch._foreach_copy_(list(kept), list(kept.values()))
            forget_casts()
            return slope.replay()


class InputNoise:
    r"""Adds :math:`z \sim N(0, \sigma^2)` to what a network sees.

    The noise comes from a generator of its own, keyed by seed, number of the draw and rank: nothing that training draws
    is moved, and a resumed run draws what it would have drawn.

    Args:
        net: its first floating-point input takes the noise.
        sigma: the standard deviation.
        at: the output of this submodule takes it in place of the input, as an embedding of tokens should.
        seed: of the noise.

    Raises:
        ValueError: ``sigma`` is not positive, or there is neither a network nor a submodule.
    """

    def __init__(self, net: nn.Module | None, *, sigma: float, at: nn.Module | None = None, seed: int = 0) -> None:
        if not 0 < sigma < float("inf"):
            raise ValueError(f"sigma must be positive and finite, got {sigma}")
        if net is None and at is None:
            raise ValueError("noise needs to know what takes it; pass net=, or the submodule as noise_at=")
        self._net, self._at = net, at
        self._sigma = sigma
        self._seed = seed

    @contextmanager
    def added(self, numbers: MutableMapping[str, float]) -> Iterator[None]:
        """Every call inside is shaken.

        Args:
            numbers: where the draws are counted.

        Raises:
            UsageError: nothing was called that could be shaken, or its input or output is no floating-point tensor.
        """
        numbers["draws"] = numbers.get("draws", 0) + 1
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        shake = _Shake(self._sigma, seed=key_to_seed(self._seed, "input noise", int(numbers["draws"]), rank))
        handle = self._hook(shake)
        try:
            yield
        finally:
            handle.remove()
        if not shake.calls:
            raise UsageError(
                "The closure did not call the module whose input or output takes the noise, or called it where hooks "
                "are not seen, as inside a compiled network; pass as net= or noise_at= a module that it calls."
            )

    def _hook(self, shake: "_Shake") -> RemovableHandle:
        if self._at is not None:
            return self._at.register_forward_hook(lambda module, args, output: shake.output(output))
        assert self._net is not None  # the constructor saw to it
        return self._net.register_forward_pre_hook(
            lambda module, args, kwargs: shake.inputs(args, kwargs), with_kwargs=True
        )

    def outputs(self, slope: Slope) -> Sequence[Any]:
        """What the closures return for a shaken input."""
        with self.added(slope.numbers):
            return slope.replay()


class _Shake:
    """The noise of one draw, for as many calls as there are."""

    def __init__(self, sigma: float, *, seed: int) -> None:
        self.calls = 0
        self._sigma = sigma
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call's arguments, the first floating-point one shaken."""
        for index, value in enumerate(args):
            if _is_floating(value):
                return (*args[:index], self._shaken(value), *args[index + 1 :]), dict(kwargs)
        for name, value in kwargs.items():
            if _is_floating(value):
                return args, {**kwargs, name: self._shaken(value)}
        raise UsageError(
            "The network has no floating-point input that noise could be added to; pass as noise_at= the submodule "
            "whose output takes it, such as the embedding."
        )

    def output(self, output: Any) -> Tensor:
        """A submodule's output, shaken."""
        if not _is_floating(output):
            raise UsageError(
                f"The output of noise_at must be one floating-point tensor, got a {type(output).__name__}; name a "
                "submodule that returns one."
            )
        return self._shaken(output)

    def _shaken(self, value: Tensor) -> Tensor:
        self.calls += 1
        generator = self._generators.get(value.device)
        if generator is None:
            generator = self._generators[value.device] = torch.Generator(value.device).manual_seed(self._seed)
        noise = torch.randn(value.shape, generator=generator, device=value.device, dtype=value.dtype)
        return value + self._sigma * noise


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
