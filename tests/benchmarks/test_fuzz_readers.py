"""Tests of the readers on damaged files of every format."""

from pathlib import Path

import pytest

from benchmarks.fuzz_readers import COMPRESSED, FORMATS, Reference, flip_bits, fuzz


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def test_three_hundred_damaged_files_are_refused_or_equal_another_reading(folder: Path) -> None:
    with Reference() as reference:
        found = {suffix: fuzz(suffix, 300 // len(FORMATS), folder, reference, seed=7) for suffix in FORMATS}
    assert [line for each in found.values() for line in each.broken] == []
    for suffix, each in found.items():
        assert each.counts["refused"] > 0, suffix
        assert each.counts["equal"] > 0, suffix


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_no_flipped_bit_gives_another_voxel(folder: Path, suffix: str) -> None:
    assert flip_bits(suffix, 100, folder).broken == []
