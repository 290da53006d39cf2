"""Distance of a network's outputs from earlier or noisy ones."""

import math
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.optim.restore import WeightBackup
from uumamba.optim.rules import Memory, Slope
from uumamba.runtime.errors import require
from uumamba.runtime.seeds import key_to_seed

Form = Literal["softmax", "sigmoid"]


@torch.no_grad()
def divergence(reference: Tensor, logits: Tensor, *, form: Form = "softmax") -> Tensor:
    r"""Kullback-Leibler divergence of a network's outputs from a reference.

    .. math:: \frac{1}{N} \sum_n \sum_c p_{nc} \log \frac{p_{nc}}{q_{nc}}, \qquad
              p = \mathrm{softmax}(\mathrm{reference}),\ q = \mathrm{softmax}(\mathrm{logits})

    summed over classes and averaged over samples, voxels or tokens, so it depends neither on the batch size nor on the
    number of voxels. The sigmoid form takes each channel for a probability of its own and adds both its outcomes.
    A class to which the reference gives no probability, such as one masked by ``-inf``, adds 0. In float32 or better.

    Args:
        reference: logits ``(batch, classes, *spatial)``.
        logits: of the same shape, to compare with the reference.
        form: maps logits to probabilities.

    Returns:
        A scalar without a gradient, not negative.

    Raises:
        UsageError: shapes differ, or there is one class to take the softmax of.

    Example:
        >>> certain, torn = torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> divergence(certain, torn)  # log 2
        tensor(0.6931)
    """
    shape, found = tuple(reference.shape), tuple(logits.shape)
    require(shape == found and len(shape) > 1, "logits", got=found, expected=f"(batch, classes, ...) like {shape}")
    require(form != "softmax" or shape[1] > 1, "form", got=form, expected="sigmoid for logits of one channel")
    precision = torch.promote_types(torch.promote_types(reference.dtype, logits.dtype), torch.float32)
    then, now = reference.to(precision), logits.to(precision)
    if form == "softmax":
        terms = _divergence_terms(then.log_softmax(1), now.log_softmax(1))
    else:
        terms = _divergence_terms(F.logsigmoid(then), F.logsigmoid(now))
        terms = terms + _divergence_terms(F.logsigmoid(-then), F.logsigmoid(-now))
    return terms.sum(1).mean().clamp_min(0)


def _divergence_terms(log_then: Tensor, log_now: Tensor) -> Tensor:
    probability = log_then.exp()
    return torch.where(probability == 0, 0.0, probability * (log_then - log_now))


class EarlierWeights:
    """Copy of earlier weights, under which closures can run again.

    It is kept in the optimizer's memory, and so saved with it.

    Args:
        follow: keep the weights of the step before; otherwise the weights before the first step, for good.
    """

    NAME = "trusted"

    def __init__(self, *, follow: bool) -> None:
        self._follow = follow

    def keep(self, params: Sequence[Tensor], memory: Memory) -> None:
        """Keep the current weights; to be called before each update of them."""
        for param in params:
            values = memory.setdefault(param, {})
            if self._follow or self.NAME not in values:
                values[self.NAME] = param.detach().clone()

    def run(self, slope: Slope, backup: WeightBackup) -> Sequence[Any]:
        """Return the closures' outputs under the earlier weights.

        These are their last outputs while none are kept.

        Args:
            slope: at the current weights.
            backup: holds the current weights meanwhile; the engine's own is free, as nothing has climbed yet.
        """
        kept = {param: values[self.NAME] for param, values in slope.memory.items() if self.NAME in values}
        if not kept:
            return slope.outputs
        with backup.restored_after(list(kept)):
            torch._foreach_copy_(list(kept), list(kept.values()))
            torch.clear_autocast_cache()
            return slope.replay()


class InputNoise:
    r"""Gaussian noise on a network's input or a submodule's output.

    The noise :math:`z \sim N(0, \sigma^2)` comes from a generator of its own, keyed by seed, number of the draw and
    rank: training draws the same numbers as without it, and a resumed run draws the same noise as one that never
    stopped.

    Args:
        net: its first floating-point input gets the noise.
        sigma: the standard deviation.
        at: the output of this submodule gets it in place of the input, as an embedding of tokens should.
        seed: of the noise.

    Raises:
        UsageError: ``sigma`` is not positive, or there is neither a network nor a submodule.
    """

    def __init__(self, net: nn.Module | None, *, sigma: float, at: nn.Module | None = None, seed: int = 0) -> None:
        require(0 < sigma < math.inf, "sigma", got=sigma, expected="a finite positive number")
        require(net is not None or at is not None, "net", got=net, expected="the network, or a submodule as noise_at")
        self._net, self._at, self._sigma, self._seed = net, at, sigma, seed

    @contextmanager
    def added(self, numbers: MutableMapping[str, float]) -> Iterator[None]:
        """Add noise to every call inside.

        Args:
            numbers: where the draws are counted.

        Raises:
            UsageError: nothing that gets noise was called, or its input or output is no floating-point tensor.
        """
        numbers["draws"] = numbers.get("draws", 0) + 1
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        noise = _Noise(self._sigma, seed=key_to_seed(self._seed, "input noise", int(numbers["draws"]), rank))
        if self._at is not None:
            handle = self._at.register_forward_hook(noise.add_to_output)
        else:
            assert self._net is not None  # the constructor's condition
            handle = self._net.register_forward_pre_hook(noise.add_to_inputs, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
        require(
            noise.calls,
            "net" if self._at is None else "noise_at",
            got="a module that the closure does not call, or calls inside a compiled network",
            expected="one that it calls where hooks run",
        )

    def run(self, slope: Slope) -> Sequence[Any]:
        """Return the closures' outputs for a noisy input."""
        with self.added(slope.numbers):
            return slope.replay()


class _Noise:
    """Hooks that add one draw's noise to any number of calls."""

    def __init__(self, sigma: float, *, seed: int) -> None:
        self.calls = 0
        self._sigma, self._seed = sigma, seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def add_to_inputs(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Add noise to the first floating-point argument of a call."""
        named: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        first = next((name for name, value in named.items() if _is_floating(value)), None)
        require(
            first is not None,
            "net",
            got=type(module).__name__,
            expected="a network with a floating-point input",
            fix="pass noise_at",
        )
        named[first] = self._add(named[first])
        return tuple(named.pop(index) for index in range(len(args))), named

    def add_to_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
        """Add noise to a submodule's output."""
        require(
            _is_floating(output),
            "noise_at",
            got=type(module).__name__,
            expected="a submodule that returns one floating-point tensor",
        )
        return self._add(output)

    def _add(self, value: Tensor) -> Tensor:
        self.calls += 1
        if value.device not in self._generators:
            self._generators[value.device] = torch.Generator(value.device).manual_seed(self._seed)
        generator = self._generators[value.device]
        noise = torch.randn(value.shape, generator=generator, device=value.device, dtype=value.dtype)
        return value + self._sigma * noise


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
