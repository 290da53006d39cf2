"""Cost of a sharpness-aware optimizer step, in time and passes.

    python -m benchmarks.optim_step --json benchmarks/results/optim_step.json

Climb + restore: time of a complete ``step`` whose two passes only return prepared gradients, around a base that does
nothing, minus the same without perturbing the weights. The subtracted step is ``Plain`` for ours (one pass less, which
counts against ours), and the passes and base only for the others. The rest is norm, copy of the weights, perturbation
and restoring. `per tensor` is SAM as davda54/sam publishes it, implemented here from the algorithm: a loop over
tensors, each cloned before it moves and replaced by its clone afterwards. `one vector` is the cost of memory access:
norm, copy, perturbation and copy back, four kernels on one tensor with as many entries.

Passes: forward and backward passes of the network, including those of a teacher. Each counts by its measured time, in
units of one forward and backward pass. The exit code is 1 if a claim of the project does not hold.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.claims.equal_time import compute_ratios, time_in_rounds
from benchmarks.claims.members import MEMBERS
from benchmarks.claims.training import Recipe
from benchmarks.result_file import write_result
from benchmarks.scan import print_rows
from uumamba.config import read_config
from uumamba.optim import SAM, Plain
from uumamba.optim.passes import read_logits
from uumamba.pipelines.build import build_loss

CONFIG = "acdc_uu_mamba"
MANY, OURS, PER_TENSOR, PEER = "1500 tensors of 256", "ours", "per tensor", "pytorch_optimizer"
LIMIT = "one vector"
CLIMB_RESTORE = "climb + restore"
LEAST_RATIO = {PER_TENSOR: 2.0, PEER: 1.0}
MOST_PASSES = {"SAM": 2.0, "LookSAM(5)": 1.25, "MSAM": 1.05, "StaleSAM": 1.05, "MESA": 1.45}
STEPS = 5  # a period of LookSAM(5)


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--quick", action="store_true", help="few rounds and small patches, a minute or two")
    options = parser.parse_args(given)
    sets: dict[str, list[tuple[int, ...]]] = {
        MANY: [(256,)] * 1500,
        f"net of {CONFIG}": [tuple(p.shape) for p in build_umamba().parameters()],
    }
    rows = [
        row
        for name, shapes in sets.items()
        for row in measure_perturbation(name, shapes, rounds=10 if options.quick else 50)
    ]
    patch = (2, 64) if options.quick else (4, 96)
    rows += list(measure_passes(*patch, rounds=2 if options.quick else 5))
    print_rows(rows)
    notes = [] if find_spec("pytorch_optimizer") else [f"{PEER} is not installed and left out"]
    print(*notes, sep="\n")
    if options.json is not None:
        text = describe_table(*patch, notes)
        write_result(options.json, rows, title="A step of the optimizers", about=text, configs=[(CONFIG, ())])
    broken = list(find_broken_claims(rows))
    print(*broken, sep="\n", file=sys.stderr)
    return 1 if broken else 0


def describe_table(batch: int, side: int, notes: Sequence[str]) -> str:
    """Describe the table."""
    peer = "; ".join(notes)
    return (
        f"Alternating rounds with {torch.get_num_threads()} threads. Step: passes that only return prepared gradients, "
        "and a base that does nothing; climb + restore: this time minus the same without perturbing the weights. `per "
        "tensor` is davda54's published algorithm, reimplemented: a clone and a loop over tensors. The faster of the "
        "peer's two implementations is shown. The ratio is the row's median divided by that of `ratio to`. Rows of "
        "passes: forward and backward passes per step, those of a teacher by their measured time, on the network of "
        f"{CONFIG} with {batch} patches of {side} x {side}; times are of one step, medians over rounds of {STEPS}."
        f"{' ' + peer + '.' if peer else ''}"
    )


class NoOpOptimizer(Optimizer):
    """Base optimizer that does nothing."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # it returns no loss
        """Leave the weights unchanged."""


class PerTensorSAM:
    """SAM as in davda54/sam: a loop over tensors, cloned and restored."""

    def __init__(self, params: Sequence[nn.Parameter], rho: float = 0.05) -> None:
        self.params, self.rho = list(params), rho
        self.base = NoOpOptimizer(self.params)
        self.kept: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], object]) -> None:
        """Perturb along the current gradients, run the closure, restore and update."""
        norm = torch.stack([param.grad.norm(p=2) for param in self.params if param.grad is not None]).norm(p=2)
        scale = self.rho / (norm + 1e-12)
        for param in self.params:
            if param.grad is not None:
                self.kept[param] = param.data.clone()
                param.add_(param.grad * scale)
        self.zero_grad()
        closure()
        for param in self.params:
            if param.grad is not None:
                param.data = self.kept[param]
        self.base.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Clear all gradients."""
        self.base.zero_grad()


def measure_perturbation(name: str, shapes: Sequence[tuple[int, ...]], *, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield rows per implementation: the complete step, and perturbation only."""
    work = dict(make_steps(shapes))
    seconds = time_in_rounds(work, rounds=rounds)
    perturbation = {
        way: [step - rest for step, rest in zip(seconds[way], seconds[f"{way}, no perturbation"], strict=True)]
        for way in seconds
        if not way.endswith(", no perturbation")
    }
    if f"{PEER}, batched" in perturbation:
        fastest = min((PEER, f"{PEER}, batched"), key=lambda way: median(perturbation[way]))
        perturbation[PEER], seconds[PEER] = perturbation[fastest], seconds[fastest]
        del perturbation[f"{PEER}, batched"]
    for part, times in (("step", {way: seconds[way] for way in perturbation}), (CLIMB_RESTORE, perturbation)):
        for way, each in times.items():
            yield make_row(f"{part}, {way}", name, each, OURS, median(each) / median(times[OURS]))


def make_steps(shapes: Sequence[tuple[int, ...]]) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield a step with trivial passes per implementation.

    Each is followed by the same passes and base without perturbation.
    """
    yield OURS, _make_step(SAM, shapes)
    yield f"{OURS}, no perturbation", _make_step(Plain, shapes)
    params, give = _make_parameters(shapes)
    yield PER_TENSOR, partial(_run_both_passes, PerTensorSAM(params), give)
    yield f"{PER_TENSOR}, no perturbation", partial(_run_without_perturbation, NoOpOptimizer(params), give)
    if find_spec("pytorch_optimizer"):
        import pytorch_optimizer

        for name, batched in ((PEER, None), (f"{PEER}, batched", True)):
            params, give = _make_parameters(shapes)
            yield (
                name,
                partial(
                    _run_both_passes, pytorch_optimizer.SAM(params, NoOpOptimizer, rho=0.05, foreach=batched), give
                ),
            )
            yield f"{name}, no perturbation", partial(_run_without_perturbation, NoOpOptimizer(params), give)
    yield LIMIT, partial(_perturb_one_vector, *(torch.randn(sum(map(math.prod, shapes))) for _ in range(3)))
    yield f"{LIMIT}, no perturbation", lambda: None


def _perturb_one_vector(weights: Tensor, gradient: Tensor, kept: Tensor) -> None:
    length = torch.linalg.vector_norm(gradient).item()
    kept.copy_(weights)
    weights.add_(gradient, alpha=0.05 / length)
    weights.copy_(kept)


def _make_step(member: Callable[..., Any], shapes: Sequence[tuple[int, ...]]) -> Callable[[], object]:
    params, give = _make_parameters(shapes)
    return partial(member(params, NoOpOptimizer).step, give)


def _make_parameters(shapes: Sequence[tuple[int, ...]]) -> tuple[list[nn.Parameter], Callable[[], Tensor]]:
    """Make parameters, and a pass that sets their prepared gradients."""
    draw = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
    gradients = [torch.randn(shape, generator=draw) for shape in shapes]
    loss = torch.zeros(())

    def give() -> Tensor:
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = gradient
        return loss

    return params, give


def _run_both_passes(optimizer: Any, give: Callable[[], object]) -> None:
    give()
    optimizer.step(give)


def _run_without_perturbation(base: Optimizer, give: Callable[[], object]) -> None:
    for _ in range(2):
        give()
        base.zero_grad()
    base.step()


@dataclass(frozen=True)
class Passes:
    """Seconds of a training forward, a forward without graph, and a backward."""

    forward: float
    no_grad: float
    backward: float

    def convert(self, counts: Mapping[str, float]) -> float:
        """Convert counted passes to units of one forward and backward."""
        total = sum(counts[name] * getattr(self, name) for name in ("forward", "no_grad", "backward"))
        return total / (self.forward + self.backward)


def measure_passes(batch: int, side: int, *, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield passes and relative time of a step for every member.

    The time is relative to the base optimizer.
    """
    draw = torch.Generator().manual_seed(0)
    example = {
        "image": torch.randn(batch, 1, side, side, generator=draw),
        "label": torch.randint(4, (batch, 1, side, side), generator=draw),
    }
    recipes, counters = {}, {}
    for name in MEMBERS:
        if name == "SAF":
            continue  # supports classification only
        net = build_umamba()
        counters[name] = count_passes(net)
        base = partial(torch.optim.AdamW, lr=1e-4)
        recipes[name] = MEMBERS[name].build(net, build_loss(read_config(CONFIG)), base)
    work = {name: partial(_take_steps, recipe, example) for name, recipe in recipes.items()}
    time_in_rounds(work, rounds=0)  # fills the history of methods that use earlier steps
    for counter in counters.values():
        counter.clear()
    seconds = {name: [each / STEPS for each in found] for name, found in time_in_rounds(work, rounds=rounds).items()}
    share = time_passes(build_umamba(), example, rounds=rounds)
    relative = compute_ratios(seconds, "base")
    where = f"{batch} x {side} x {side}"
    for name, counter in counters.items():
        a_step = {kind: count / (STEPS * (rounds + 1)) for kind, count in counter.items()}
        passes = share.convert(Counter(a_step))
        yield make_row(f"step, {name}", where, seconds[name], "base", median(relative[name]), round(passes, 3))


def make_row(
    name: str, shape: str, seconds: Sequence[float], ratio_to: str, ratio: float, passes: float | None = None
) -> dict[str, Any]:
    return {
        "name": name,
        "shape": shape,
        "passes": passes,
        "median_s": round(median(seconds), 6),
        "min_s": round(min(seconds), 6),
        "peak_mb": None,
        "ratio_to": ratio_to,
        "ratio": round(ratio, 3),
    }


def count_passes(net: nn.Module) -> Counter[str]:
    """Count a network's forward and backward passes with hooks.

    Forward passes with and without a graph are counted separately. Copies of the network are included.
    """
    counts: Counter[str] = Counter()

    def count_backward(_: Tensor) -> None:
        counts["backward"] += 1

    def count_forward(module: nn.Module, args: Any, outputs: Any) -> None:
        output = read_logits(outputs)  # one output shows whether the pass has a graph
        if output.requires_grad:
            counts["forward"] += 1
            output.register_hook(count_backward)
        else:
            counts["no_grad"] += 1

    net.register_forward_hook(count_forward)
    return counts


def time_passes(net: nn.Module, example: Mapping[str, Tensor], *, rounds: int) -> Passes:
    """Measure the median time of each kind of pass."""
    outputs: list[Tensor] = []
    loss = build_loss(read_config(CONFIG))

    def forward() -> None:
        outputs[:] = [loss(net(example["image"]), example["label"])]

    def backward() -> None:
        outputs[0].backward()

    @torch.no_grad()
    def run_without_graph() -> None:
        net(example["image"])

    work: dict[str, Callable[[], object]] = {"forward": forward, "backward": backward, "no_grad": run_without_graph}
    seconds = time_in_rounds(work, rounds=max(rounds, 5))
    return Passes(**{name: median(each) for name, each in seconds.items()})


def _take_steps(recipe: Recipe, batch: dict[str, Tensor]) -> None:
    for _ in range(STEPS):
        recipe.step(batch)


def build_umamba() -> nn.Module:
    """Build the configuration's untrained network, in training mode."""
    torch.manual_seed(0)
    return read_config(CONFIG).build_net(classes=4)


def find_broken_claims(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a message per claim that the rows contradict."""
    for each in rows:
        part, _, name = each["name"].partition(", ")
        least = LEAST_RATIO.get(name)
        if part == CLIMB_RESTORE and least is not None and each["ratio"] < least:
            yield f"{each['shape']}: {name} takes {each['ratio']} times ours, claimed at least {least:g}"
        most = MOST_PASSES.get(name)
        if each["passes"] is not None and most is not None and each["passes"] > most:
            yield f"{name}: {each['passes']} passes per step, claimed at most {most:g}"


if __name__ == "__main__":
    sys.exit(main())
