"""Restoring of weights, running statistics and random numbers after a pass."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter, is_
from threading import get_ident

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from uumamba.runtime.options import check_options

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class WeightBackup:
    """Buffers that hold the weights while they are perturbed, allocated once.

    Example:
        >>> weight, backup = torch.nn.Parameter(torch.tensor([0.1])), WeightBackup()
        >>> with backup.restore_after([weight]), torch.no_grad():
        ...     _ = weight.add_(1)
        >>> weight.item() == torch.tensor(0.1).item()
        True
    """

    def __init__(self) -> None:
        self._params: list[Tensor] = []
        self._kinds: list[object] = []
        self._buffers: list[Tensor] = []

    @contextmanager
    def restore_after(self, params: Sequence[Tensor]) -> Iterator[None]:
        """Copy the weights and restore them bit for bit after the block.

        Weights are also restored when the block raises. They are copied in place, never replaced, so views of weights
        in a data-parallel wrapper or a captured graph stay valid. Subtracting the perturbation instead would leave
        0.4 % of float32 entries one rounding off.
        """
        params = list(params)
        buffers = self._allocate(params)
        _copy(buffers, params)
        try:
            yield
        finally:
            _copy(params, buffers)
            torch.clear_autocast_cache()  # an outer autocast keeps low-precision copies of the weights

    def _allocate(self, params: list[Tensor]) -> list[Tensor]:
        """Return the last call's buffers if they fit, otherwise new buffers."""
        # Casting a network to another type keeps the identity of its parameters.
        kinds = [*map(attrgetter("dtype"), params), *map(Tensor.get_device, params)]
        if len(params) != len(self._params) or not all(map(is_, params, self._params)) or kinds != self._kinds:
            self._params, self._kinds, self._buffers = params, kinds, _buffers_like(params)
        return self._buffers


def _buffers_like(params: Sequence[Tensor]) -> list[Tensor]:
    """Allocate one piece of memory per type and device, which halves copying."""
    alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for param in params:
        alike.setdefault((param.dtype, param.device), []).append(param)
    buffers: dict[Tensor, Tensor] = {}
    for (dtype, device), members in alike.items():
        sizes = [param.numel() for param in members]
        piece = torch.empty(sum(sizes), dtype=dtype, device=device)
        for param, part in zip(members, piece.split(sizes), strict=True):
            strides = torch.empty_like(param, device="meta").stride()  # of a dense tensor with the same axis order
            buffers[param] = part.as_strided(param.shape, strides)
    return [buffers[param] for param in params]


@torch.no_grad()
def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)


@check_options
@contextmanager
def frozen_running_statistics(net: nn.Module | None) -> Iterator[None]:
    """Run forward passes in training mode without a change of running statistics.

    Every module with a ``running_mean`` is covered: batch norms, synchronised batch norms, and instance norms that
    track statistics. Values are copied and restored, so blocks may be nested, ``momentum=None`` (a cumulative average)
    counts its batches correctly, and a batch that is not finite changes nothing.

    Args:
        net: the network; None covers every module that this thread calls in the block. A call inside a compiled
            function is not seen, that of a compiled module is.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> with frozen_running_statistics(norm):
        ...     _ = norm(torch.tensor([[1.0], [3.0]]))
        >>> norm.running_mean, norm.num_batches_tracked
        (tensor([0.]), tensor(0))
    """
    thread, called = get_ident(), set[nn.Module]()
    kept: list[tuple[nn.Module, str, Tensor]] = []

    def keep(module: nn.Module, _: object = None) -> None:
        if torch.compiler.is_compiling():  # the compiler traces hooks; the call of the compiled module was seen
            return
        if module not in called and get_ident() == thread:
            modules = {*module.modules()} - called
            kept.extend((*found, getattr(*found).clone()) for found in _find_statistics(modules))
            called.update(modules)

    if net is None:
        watch = register_module_forward_pre_hook(keep)
    else:
        watch = None
        keep(net)
    try:
        yield
    finally:
        if watch is not None:
            watch.remove()
        with torch.no_grad():
            for module, name, value in kept:
                getattr(module, name).copy_(value)


class StatisticsBackup:
    """Copies of running statistics, to restore those that become NaN.

    Args:
        net: the network; None keeps nothing.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> backup = StatisticsBackup(norm)
        >>> _ = norm(torch.tensor([[1.0], [float("nan")]]))
        >>> backup.restore_not_finite()
        >>> norm.running_mean, norm.num_batches_tracked
        (tensor([0.]), tensor(0))
    """

    def __init__(self, net: nn.Module | None) -> None:
        found = [] if net is None else _find_statistics(net.modules())
        self._kept = [(module, name, getattr(module, name).clone()) for module, name in found]

    @torch.no_grad()
    def restore_not_finite(self) -> None:
        """Restore all statistics of each module with one that is not finite."""
        wrong = {module for module, name, _ in self._kept if not getattr(module, name).isfinite().all()}
        for module, name, value in self._kept:
            if module in wrong:
                getattr(module, name).copy_(value)


def running_statistics(net: nn.Module) -> list[Tensor]:
    """Return running means, variances and batch counts of a network, not copied."""
    return [getattr(*found) for found in _find_statistics(net.modules())]


def _find_statistics(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, str]]:
    return [
        (module, name)
        for module in modules
        if isinstance(getattr(module, "running_mean", None), Tensor)
        for name in STATISTICS
        if isinstance(getattr(module, name, None), Tensor)
    ]


class SharedDraws:
    """Random numbers of a first pass, drawn again in a second pass.

    Both passes draw the same numbers from torch's global generators, so dropout makes no difference between their
    outputs. The second pass restores the generators, so training continues with the same numbers as without that pass.

    Args:
        devices: called at each first pass; returns the devices that may draw, in addition to the CPU.

    Example:
        >>> draws = SharedDraws(lambda: [])
        >>> with draws.record():
        ...     first = torch.rand(2)
        >>> with draws.repeat():
        ...     second = torch.rand(2)
        >>> torch.equal(first, second)
        True
    """

    def __init__(self, devices: Callable[[], Iterable[torch.device]]) -> None:
        self._devices = devices
        self._cpu = torch.empty(0)
        self._cuda: dict[torch.device, Tensor] = {}

    @contextmanager
    def record(self) -> Iterator[None]:
        """Record the generators' states before the first pass."""
        self._cpu = torch.get_rng_state()
        self._cuda = {device: torch.cuda.get_rng_state(device) for device in self._devices() if device.type == "cuda"}
        yield

    @contextmanager
    def repeat(self) -> Iterator[None]:
        """Repeat the numbers in the second pass; restore the generators afterwards."""
        with torch.random.fork_rng(list(self._cuda)):
            torch.set_rng_state(self._cpu)
            for device, state in self._cuda.items():
                torch.cuda.set_rng_state(state, device)
            yield
