"""Reference outputs of TRAM: of earlier weights, or of a noisy input."""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from uumamba.optim.restore import WeightBackup
from uumamba.optim.rules import FirstPass, Memory
from uumamba.runtime.errors import require
from uumamba.runtime.options import Positive, check_options
from uumamba.runtime.seeds import key_to_seed

EARLIER = "trusted"


def store_weights(params: Sequence[Tensor], memory: Memory, *, replace: bool) -> None:
    """Store the current weights in the optimizer's memory, before an update.

    Args:
        params: the trained parameters.
        memory: the optimizer's memory, saved with the optimizer.
        replace: also replace weights stored before; otherwise the first ones stay.
    """
    for param in params:
        values = memory.setdefault(param, {})
        if replace or EARLIER not in values:
            values[EARLIER] = param.detach().clone()


def run_earlier_weights(first: FirstPass, backup: WeightBackup) -> Sequence[Any]:
    """Return the closures' outputs under the stored weights.

    Before the first stored weights these are the outputs of the first pass.

    Args:
        first: pass at the current weights.
        backup: holds the current weights meanwhile; the engine's own is free before the perturbation.
    """
    kept = {param: values[EARLIER] for param, values in first.memory.items() if EARLIER in values}
    if not kept:
        return first.outputs
    with backup.restore_after(list(kept)):
        torch._foreach_copy_(list(kept), list(kept.values()))
        torch.clear_autocast_cache()
        return first.replay()


class InputNoise:
    r"""Gaussian noise on a network's input or a submodule's output.

    The noise :math:`z \sim N(0, \sigma^2)` comes from a generator of its own, keyed by seed, number of the draw and
    rank: training draws the same numbers as without noise, and a resumed run draws the same noise as an uninterrupted
    run.

    Args:
        net: network whose first floating-point input gets the noise.
        sigma: standard deviation of the noise.
        at: submodule, such as an embedding of tokens, whose output gets the noise in place of the input.
        seed: seed of the noise.

    Raises:
        UsageError: ``sigma`` is not positive, or there is neither a network nor a submodule.
    """

    @check_options
    def __init__(self, net: nn.Module | None, *, sigma: Positive, at: nn.Module | None = None, seed: int = 0) -> None:
        require(net is not None or at is not None, "net", got=net, expected="a network, or a submodule as noise_at")
        self._net, self._at, self._sigma, self._seed = net, at, sigma, seed

    @contextmanager
    def add(self, numbers: MutableMapping[str, float]) -> Iterator[None]:
        """Add noise to every call inside a block.

        Args:
            numbers: counts the draws.

        Raises:
            UsageError: no module with noise was called, or its input or output is no floating-point tensor.
        """
        numbers["draws"] = numbers.get("draws", 0) + 1
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        seed = key_to_seed(self._seed, "input noise", int(numbers["draws"]), rank)
        generators: dict[torch.device, torch.Generator] = {}

        def add_noise(value: Tensor) -> Tensor:
            generator = generators.setdefault(value.device, torch.Generator(value.device).manual_seed(seed))
            noise = torch.randn(value.shape, generator=generator, device=value.device, dtype=value.dtype)
            return value + self._sigma * noise

        if self._at is not None:
            handle = self._at.register_forward_hook(partial(_change_output, add_noise))
        else:
            assert self._net is not None  # the constructor's condition
            handle = self._net.register_forward_pre_hook(partial(_change_input, add_noise), with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
        require(
            generators,
            "net" if self._at is None else "noise_at",
            got="a module that the closure does not call, or calls inside a compiled network",
            expected="a module that the closure calls, with hooks",
        )

    def run(self, first: FirstPass) -> Sequence[Any]:
        """Return the closures' outputs for a noisy input."""
        with self.add(first.numbers):
            return first.replay()


def _change_input(
    change: Callable[[Tensor], Tensor], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Change the first floating-point argument of a call."""
    named: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    name = next((name for name, value in named.items() if _is_floating(value)), None)
    require(
        name is not None,
        "net",
        got=type(module).__name__,
        expected="a network with a floating-point input",
        fix="pass noise_at",
    )
    named[name] = change(named[name])
    return tuple(named.pop(index) for index in range(len(args))), named


def _change_output(change: Callable[[Tensor], Tensor], module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
    """Change the output of a submodule."""
    require(
        _is_floating(output),
        "noise_at",
        got=type(module).__name__,
        expected="a submodule with one floating-point tensor as output",
    )
    return change(output)


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
