"""Prefetching changes no batch, leaves no thread, and counts waiting times."""

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.flat_trainer import make_trainer
from tests.training.tiny_run import bits, die, rows_of
from uumamba.data.augment import Augment, nnunet_transforms
from uumamba.optim import SAM
from uumamba.runtime.memory_shortage import OutOfMemoryError
from uumamba.runtime.seeds import generator_for, key_to_seed
from uumamba.training import Prefetcher, Trainer

AHEAD = pytest.mark.parametrize("read_ahead", [False, True], ids=["on request", "ahead"])


def keyed_batches(epoch: int, *, count: int = 5) -> Iterator[dict[str, Any]]:
    for index in range(count):
        image = torch.randn(2, 1, 12, 12, generator=generator_for(epoch, index))
        seeds = torch.tensor([key_to_seed(epoch, index, sample) for sample in range(2)])
        yield {"image": image, "label": (image > 0).long(), "seed": seeds, "case_id": ["a", "b"]}


def make_augment() -> Augment:
    return Augment(
        nnunet_transforms(patch_size=(8, 8), mirror_axes=(0, 1), rotation_probability=1.0, noise_probability=1.0)
    )


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetcher")]


def test_prefetching_changes_no_byte_and_no_global_generator() -> None:
    before = torch.get_rng_state()
    with (
        Prefetcher(keyed_batches, augment=make_augment()).load(keyed_batches(0)) as requested,
        Prefetcher(keyed_batches, augment=make_augment(), read_ahead=True).load(keyed_batches(0)) as ahead,
    ):
        pairs = list(zip(requested, ahead, strict=True))
    assert len(pairs) == 5
    for one, other in pairs:
        assert all(torch.equal(one[key], other[key]) for key in ("image", "label", "seed"))
        assert one["image"].shape == (2, 1, 8, 8)
        assert one["case_id"] == other["case_id"]
    assert torch.equal(torch.get_rng_state(), before)


def test_exactly_one_batch_is_prefetched() -> None:
    made, second = [], threading.Event()

    def source() -> Iterator[dict[str, Any]]:
        for index in range(4):
            made.append(index)
            if index == 1:
                second.set()
            yield {"image": torch.tensor(index)}

    with Prefetcher(keyed_batches, read_ahead=True).load(source()) as batches:
        assert next(batches)["image"] == 0
        assert second.wait(timeout=10), "the next batch is made without a request"
        time.sleep(0.05)
        assert made == [0, 1]


@AHEAD
def test_an_error_of_batches_or_augmentation_is_raised_at_the_request_of_its_batch(
    read_ahead: bool,
) -> None:
    error = ValueError("patient007_frame01 is short")

    def source() -> Iterator[dict[str, Any]]:
        yield from keyed_batches(0, count=2)
        raise error

    def spoil(batch: dict[str, Any]) -> dict[str, Any]:
        raise error

    for batches, augment, good in ((source(), None, 2), (keyed_batches(0), spoil, 0)):
        prefetcher, found = Prefetcher(keyed_batches, augment=augment, read_ahead=read_ahead), []
        with pytest.raises(ValueError, match="short") as caught, prefetcher.load(batches) as prepared:
            found.extend(next(prepared) for _ in range(good))
            next(prepared)
        assert caught.value is error
        assert len(found) == good


@AHEAD
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_block_closes_the_source(read_ahead: bool, error: type[BaseException]) -> None:
    closed = []

    def source() -> Iterator[dict[str, Any]]:
        try:
            yield from keyed_batches(0)
        finally:
            closed.append(True)

    with pytest.raises(error), Prefetcher(keyed_batches, read_ahead=read_ahead).load(source()) as batches:
        next(batches)
        raise error
    assert closed == [True]


class SmallMemory:
    def __init__(self, *, always: bool) -> None:
        self.always, self.failed = always, 0

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.always or threading.current_thread() is not threading.main_thread():
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nAnd a page more.")
        return batch | {"image": batch["image"] + 1}


def test_a_batch_that_does_not_fit_during_a_step_is_loaded_after_it() -> None:
    augment = SmallMemory(always=False)
    with Prefetcher(keyed_batches, augment=augment, read_ahead=True).load(keyed_batches(0, count=2)) as batches:
        for batch, other in zip(batches, keyed_batches(0, count=2), strict=True):
            assert torch.equal(batch["image"], other["image"] + 1)
    assert augment.failed == 2


@AHEAD
def test_a_batch_that_never_fits_ends_the_run_with_its_shape(read_ahead: bool) -> None:
    prefetcher = Prefetcher(keyed_batches, augment=SmallMemory(always=True), read_ahead=read_ahead)
    expected = r"batch of \(2, .*20.00 GiB.\)\. Fix: use a smaller"
    with pytest.raises(OutOfMemoryError, match=expected), prefetcher.load(keyed_batches(0)) as batches:
        next(batches)


def test_channels_last_applies_to_images_of_two_and_three_dimensions() -> None:
    images = [{"image": torch.zeros(1, 2, *size), "label": torch.zeros(1)} for size in ((4, 5), (3, 4, 5))]
    prefetcher = Prefetcher(keyed_batches)
    prefetcher.move_to("cpu", channels_last=True)
    with prefetcher.load(images) as batches:
        assert [batch["image"].stride(1) for batch in batches] == [1, 1]


def trainer(run_dir: Path | None, *, read_ahead: bool, **options: Any) -> Trainer:
    """Build a run in which only dropout draws from the global generator."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Dropout(0.2), nn.Conv2d(4, 2, 1))
    defaults: dict[str, Any] = {"epochs": 3, "batches": keyed_batches, "augment": make_augment(), "log": [].append}
    return make_trainer(
        net,
        lambda net, batch: nn.functional.cross_entropy(net(batch["image"]), batch["label"][:, 0]),
        SAM(net.parameters(), partial(torch.optim.SGD, lr=0.1, momentum=0.9), rho=0.05),
        read_ahead=read_ahead,
        run_dir=run_dir,
        **defaults | options,
    )


@pytest.mark.parametrize("steps", [1, 5, 8])
def test_a_resumed_run_with_prefetching_equals_an_uninterrupted_one_without(steps: int, tmp_path: Path) -> None:
    trainer(tmp_path / "whole", read_ahead=False).fit()
    # With prefetching the augmentation of batch n + 2 fails in step n + 1; the error is raised after that step.
    die(trainer(tmp_path / "ahead", read_ahead=True, save_every_minutes=0), "augment", steps + 1)
    trainer(tmp_path / "ahead", read_ahead=True).fit(resume=True)
    found, expected = (bits(tmp_path / name / "last.safetensors") for name in ("ahead", "whole"))
    assert found == expected


@AHEAD
def test_the_waited_seconds_are_those_of_reading_outside_of_steps(read_ahead: bool, tmp_path: Path) -> None:
    def slow(epoch: int) -> Iterator[dict[str, Any]]:
        for batch in keyed_batches(epoch, count=3):
            time.sleep(0.1)
            yield batch

    lines: list[str] = []
    options: dict[str, Any] = {"batches": slow, "epochs": 1, "augment": None, "log": lines.append}
    run = trainer(tmp_path, read_ahead=read_ahead, **options)
    run.optimizer.register_step_post_hook(lambda *_: time.sleep(0.2))
    run.fit()
    (row,) = rows_of(tmp_path)
    waited_s = row["data_wait"] * row["seconds"]
    # Shares have four decimals and seconds three; with prefetching, steps of 0.2 s hide all batches but the first.
    assert waited_s > (0.1 if read_ahead else 0.3) - 0.01
    assert not read_ahead or waited_s < 0.3 - 0.01
    assert "data wait " in lines[0]


@pytest.mark.gpu
def test_batches_on_a_gpu_equal_those_on_the_cpu() -> None:
    prefetcher = Prefetcher(
        keyed_batches, augment=lambda batch: batch | {"image": batch["image"].roll(1, dims=0)}, read_ahead=True
    )
    prefetcher.move_to("cuda")
    with prefetcher.load(keyed_batches(0)) as batches:
        for batch, other in zip(batches, keyed_batches(0), strict=True):
            assert batch["image"].is_cuda
            assert torch.equal(batch["image"].cpu(), other["image"].roll(1, dims=0))
