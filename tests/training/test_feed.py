"""Feeding: the same batches read ahead or not, nothing left running, and the seconds waited for them."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from uumamba.data.augment import Augment
from uumamba.optim import SAM
from uumamba.runtime.errors import CaseError
from uumamba.runtime.memory_shortage import OutOfMemoryError
from uumamba.runtime.seeds import generator_for, key_to_seed
from uumamba.training import Trainer
from uumamba.training.feed import Feed

Bits = Callable[[Path], dict[str, Any]]
AHEAD = pytest.mark.parametrize("read_ahead", [False, True], ids=["as asked", "ahead"])


def keyed_batches(epoch: int, *, count: int = 5) -> Iterator[dict[str, Any]]:
    for index in range(count):
        image = torch.randn(2, 1, 12, 12, generator=generator_for(epoch, index))
        seeds = torch.tensor([key_to_seed(epoch, index, sample) for sample in range(2)])
        yield {"image": image, "label": (image > 0).long(), "seed": seeds, "case_id": ["a", "b"]}


def strong() -> Augment:
    return Augment(patch_size=(8, 8), mirror_axes=(0, 1), rotation_probability=1.0, noise_probability=1.0)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("feed")}


def failing_at(number: int, error: Exception) -> Iterator[dict[str, Any]]:
    yield from keyed_batches(0, count=number)
    raise error


def test_reading_ahead_changes_no_byte_and_no_global_generator() -> None:
    before = torch.get_rng_state()
    with (
        Feed("cpu", augment=strong()).of(keyed_batches(0)) as asked,
        Feed("cpu", augment=strong(), read_ahead=True).of(keyed_batches(0)) as ahead,
    ):
        pairs = list(zip(asked, ahead, strict=True))
    assert len(pairs) == 5
    for one, other in pairs:
        assert all(torch.equal(one[key], other[key]) for key in ("image", "label", "seed"))
        assert one["image"].shape == (2, 1, 8, 8)
        assert one["case_id"] == other["case_id"]
    assert torch.equal(torch.get_rng_state(), before)
    assert not threads()


def test_one_batch_is_made_while_the_one_before_it_is_in_use_and_no_more() -> None:
    made, second = [], threading.Event()

    def source() -> Iterator[dict[str, Any]]:
        for index in range(4):
            made.append(index)
            if index == 1:
                second.set()
            yield {"image": torch.tensor(index)}

    with Feed("cpu", read_ahead=True).of(source()) as batches:
        assert next(batches)["image"] == 0
        assert second.wait(timeout=10), "the next is made without being asked for"
        time.sleep(0.05)
        assert made == [0, 1]


@AHEAD
def test_an_error_arrives_whole_after_the_batches_before_it(read_ahead: bool) -> None:
    error = CaseError("patient007_frame01", "its image is short", "prepare it anew")
    with (
        pytest.raises(CaseError, match="patient007_frame01: its image is short") as caught,
        Feed("cpu", read_ahead=read_ahead).of(failing_at(2, error)) as batches,
    ):
        assert sum(1 for _ in (next(batches), next(batches))) == 2
        next(batches)
    assert caught.value is error
    assert not threads()


@AHEAD
def test_an_error_of_the_augmentation_arrives_too(read_ahead: bool) -> None:
    def spoil(batch: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("the patch is too large")

    with (
        pytest.raises(ValueError, match="the patch is too large"),
        Feed("cpu", augment=spoil, read_ahead=read_ahead).of(keyed_batches(0)) as batches,
    ):
        next(batches)
    assert not threads()


@AHEAD
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_left_by_an_error_nothing_runs_on_and_the_source_is_closed(
    read_ahead: bool, error: type[BaseException]
) -> None:
    closed = []

    def source() -> Iterator[dict[str, Any]]:
        try:
            yield from keyed_batches(0)
        finally:
            closed.append(True)

    with pytest.raises(error), Feed("cpu", read_ahead=read_ahead).of(source()) as batches:
        next(batches)
        raise error
    assert closed == [True]
    assert not threads()


def test_the_seconds_waited_are_those_of_reading_that_no_step_covered() -> None:
    def slow() -> Iterator[dict[str, Any]]:
        for _ in range(3):
            time.sleep(0.1)
            yield {"image": torch.zeros(1)}

    waited = {}
    for read_ahead in (False, True):
        feed = Feed("cpu", read_ahead=read_ahead)
        with feed.of(slow()) as batches:
            for _ in batches:
                time.sleep(0.15)
        waited[read_ahead] = feed.waited_s
    assert waited[False] > 0.29
    assert 0.09 < waited[True] < 0.2, "only the first batch is waited for"


class RoomBetweenSteps:
    """An augmentation that finds no room while another thread's step runs, or never."""

    def __init__(self, *, ever: bool) -> None:
        self.ever, self.failed = ever, 0

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if not self.ever or threading.current_thread() is not threading.main_thread():
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nAnd a page more.")
        return batch | {"image": batch["image"] + 1}


def test_a_batch_without_room_beside_a_step_is_prepared_after_it() -> None:
    room = RoomBetweenSteps(ever=True)
    with Feed("cpu", augment=room, read_ahead=True).of(keyed_batches(0)) as batches:
        for batch, other in zip(batches, keyed_batches(0), strict=True):
            assert torch.equal(batch["image"], other["image"] + 1)
    assert room.failed == 5


@pytest.mark.parametrize("read_ahead", [False, True])
def test_a_batch_for_which_there_is_never_room_ends_it_with_the_cure(read_ahead: bool) -> None:
    feed = Feed("cpu", augment=RoomBetweenSteps(ever=False), read_ahead=read_ahead)
    said = r"batch of \(2, .*20.00 GiB.\); take a smaller training.batch_size"
    with pytest.raises(OutOfMemoryError, match=said), feed.of(keyed_batches(0)) as batches:
        next(batches)
    assert not threads()


def test_channels_last_reaches_images_of_two_and_three_dimensions() -> None:
    feed = Feed("cpu", channels_last=True)
    with feed.of(
        [{"image": torch.zeros(1, 2, *size), "label": torch.zeros(1)} for size in ((4, 5), (3, 4, 5))]
    ) as all_:
        flat, deep = all_
    assert flat["image"].stride(1) == deep["image"].stride(1) == 1


def trainer(run_dir: Path | None, *, read_ahead: bool, **options: Any) -> Trainer:
    """Everything keyed, but for dropout, which draws from the global generator."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Dropout(0.2), nn.Conv2d(4, 2, 1))
    defaults: dict[str, Any] = {"epochs": 3, "batches": keyed_batches, "augment": strong(), "log": [].append}
    return Trainer(
        net,
        lambda net, batch: nn.functional.cross_entropy(net(batch["image"]), batch["label"][:, 0]),
        SAM(net.parameters(), partial(torch.optim.SGD, lr=0.1, momentum=0.9), rho=0.05),
        read_ahead=read_ahead,
        run_dir=run_dir,
        progress=False,
        **defaults | options,
    )


@pytest.mark.parametrize("steps", [1, 5, 8])
def test_read_ahead_a_run_that_is_stopped_and_resumed_ends_as_one_that_only_reads_as_asked(
    steps: int, bits: Bits, tmp_path: Path
) -> None:
    trainer(tmp_path / "asked", read_ahead=False).fit()
    stopped = trainer(tmp_path / "ahead", read_ahead=True)
    count_step = stopped._count_step

    def count_and_save(loss: torch.Tensor) -> None:
        count_step(loss)
        if stopped.state.progress.steps_done == steps:
            assert stopped.folder is not None
            stopped.folder.save(stopped.state.checkpoint(None))
            raise KeyboardInterrupt

    stopped._count_step = count_and_save  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    assert not threads()
    trainer(tmp_path / "ahead", read_ahead=True).fit(resume=True)
    assert bits(tmp_path / "ahead" / "last.safetensors") == bits(tmp_path / "asked" / "last.safetensors")


@pytest.mark.parametrize("read_ahead", [False, True])
def test_each_epoch_says_the_share_of_its_time_that_was_waited(read_ahead: bool, tmp_path: Path) -> None:
    def slow(epoch: int) -> Iterator[dict[str, Any]]:
        for batch in keyed_batches(epoch, count=3):
            time.sleep(0.1)
            yield batch

    lines: list[str] = []
    run = trainer(tmp_path, read_ahead=read_ahead, batches=slow, epochs=2, augment=None, log=lines.append)
    run.fit()
    assert run.folder is not None
    for row in run.folder.log.rows():
        assert row["data_wait"] <= 1.0
        assert row["data_wait"] * row["seconds"] > 0.098 * (1 if read_ahead else 3), "ahead, the first one at least"
    assert all("data wait " in line for line in lines)


@pytest.mark.gpu
def test_on_a_gpu_batches_arrive_complete_and_equal_those_of_the_cpu() -> None:
    feed = Feed("cuda", augment=lambda batch: batch | {"image": batch["image"].roll(1, dims=0)}, read_ahead=True)
    with feed.of(keyed_batches(0)) as batches:
        for batch, other in zip(batches, keyed_batches(0), strict=True):
            assert batch["image"].is_cuda
            assert torch.equal(batch["image"].cpu(), other["image"].roll(1, dims=0))
    assert not threads()
