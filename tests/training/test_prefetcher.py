"""Prefetching: the same batches read ahead or not, nothing left running, and the seconds waited for them."""

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.tiny_run import bits, die, rows_of
from uumamba.data.augment import Augment
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


def strong() -> Augment:
    return Augment(patch_size=(8, 8), mirror_axes=(0, 1), rotation_probability=1.0, noise_probability=1.0)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetcher")]


def test_reading_ahead_changes_no_byte_and_no_global_generator() -> None:
    before = torch.get_rng_state()
    with (
        Prefetcher("cpu", augment=strong()).prepare(keyed_batches(0)) as requested,
        Prefetcher("cpu", augment=strong(), read_ahead=True).prepare(keyed_batches(0)) as ahead,
    ):
        pairs = list(zip(requested, ahead, strict=True))
    assert len(pairs) == 5
    for one, other in pairs:
        assert all(torch.equal(one[key], other[key]) for key in ("image", "label", "seed"))
        assert one["image"].shape == (2, 1, 8, 8)
        assert one["case_id"] == other["case_id"]
    assert torch.equal(torch.get_rng_state(), before)


def test_one_batch_is_made_while_the_one_before_it_is_in_use_and_no_more() -> None:
    made, second = [], threading.Event()

    def source() -> Iterator[dict[str, Any]]:
        for index in range(4):
            made.append(index)
            if index == 1:
                second.set()
            yield {"image": torch.tensor(index)}

    with Prefetcher("cpu", read_ahead=True).prepare(source()) as batches:
        assert next(batches)["image"] == 0
        assert second.wait(timeout=10), "the next is made without a request"
        time.sleep(0.05)
        assert made == [0, 1]


@AHEAD
def test_an_error_of_the_source_or_the_augmentation_arrives_whole_where_its_batch_is_requested(
    read_ahead: bool,
) -> None:
    error = ValueError("patient007_frame01 is short")

    def source() -> Iterator[dict[str, Any]]:
        yield from keyed_batches(0, count=2)
        raise error

    def spoil(batch: dict[str, Any]) -> dict[str, Any]:
        raise error

    for batches, augment, good in ((source(), None, 2), (keyed_batches(0), spoil, 0)):
        prefetcher, found = Prefetcher("cpu", augment=augment, read_ahead=read_ahead), []
        with pytest.raises(ValueError, match="short") as caught, prefetcher.prepare(batches) as prepared:
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

    with pytest.raises(error), Prefetcher("cpu", read_ahead=read_ahead).prepare(source()) as batches:
        next(batches)
        raise error
    assert closed == [True]


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
    with Prefetcher("cpu", augment=room, read_ahead=True).prepare(keyed_batches(0, count=2)) as batches:
        for batch, other in zip(batches, keyed_batches(0, count=2), strict=True):
            assert torch.equal(batch["image"], other["image"] + 1)
    assert room.failed == 2


@AHEAD
def test_a_batch_for_which_there_is_never_room_ends_the_run_with_its_size(read_ahead: bool) -> None:
    prefetcher = Prefetcher("cpu", augment=RoomBetweenSteps(ever=False), read_ahead=read_ahead)
    expected = r"batch of \(2, .*20.00 GiB.\); take a smaller"
    with pytest.raises(OutOfMemoryError, match=expected), prefetcher.prepare(keyed_batches(0)) as batches:
        next(batches)


def test_channels_last_reaches_images_of_two_and_three_dimensions() -> None:
    images = [{"image": torch.zeros(1, 2, *size), "label": torch.zeros(1)} for size in ((4, 5), (3, 4, 5))]
    with Prefetcher("cpu", channels_last=True).prepare(images) as batches:
        assert [batch["image"].stride(1) for batch in batches] == [1, 1]


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
        **defaults | options,
    )


@pytest.mark.parametrize("steps", [1, 5, 8])
def test_read_ahead_and_resumed_a_run_ends_as_one_that_reads_on_request_and_never_stops(
    steps: int, tmp_path: Path
) -> None:
    trainer(tmp_path / "whole", read_ahead=False).fit()
    # Read ahead, the augmentation of batch n + 2 dies in step n + 1; the error is raised after it.
    die(trainer(tmp_path / "ahead", read_ahead=True, save_every_minutes=0), "augment", steps + 1)
    trainer(tmp_path / "ahead", read_ahead=True).fit(resume=True)
    found, expected = (bits(tmp_path / name / "last.safetensors") for name in ("ahead", "whole"))
    assert found == expected


@AHEAD
def test_the_seconds_waited_are_those_of_reading_that_no_step_covered(read_ahead: bool, tmp_path: Path) -> None:
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
    # Shares have four decimals and seconds three; read ahead, steps of 0.2 s cover all batches but the first.
    assert waited_s > (0.1 if read_ahead else 0.3) - 0.01
    assert not read_ahead or waited_s < 0.3 - 0.01
    assert "data wait " in lines[0]


@pytest.mark.gpu
def test_on_a_gpu_batches_arrive_complete_and_equal_those_of_the_cpu() -> None:
    prefetcher = Prefetcher(
        "cuda", augment=lambda batch: batch | {"image": batch["image"].roll(1, dims=0)}, read_ahead=True
    )
    with prefetcher.prepare(keyed_batches(0)) as batches:
        for batch, other in zip(batches, keyed_batches(0), strict=True):
            assert batch["image"].is_cuda
            assert torch.equal(batch["image"].cpu(), other["image"].roll(1, dims=0))
