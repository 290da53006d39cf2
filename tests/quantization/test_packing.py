from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from uumamba.quantization import packed_bytes, packed_weights, quantize_
from uumamba.quantization.packing import pack_bits, unpack_bits

MakeNet = Callable[..., nn.Module]


@given(st.integers(2, 8).flatmap(lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1)))))
def test_levels_are_packed_into_the_fewest_bytes_and_unpacked(case: tuple[int, list[int]]) -> None:
    bits, levels = case
    packed = pack_bits(torch.tensor(levels, dtype=torch.int64), bits=bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-len(levels) * bits // 8)
    assert unpack_bits(packed, bits=bits, count=len(levels)).tolist() == levels
    as_one_number = sum(level << (bits * index) for index, level in enumerate(levels))
    assert int.from_bytes(bytes(packed.tolist()), "little") == as_one_number


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_packed_weights_have_b_bits_per_level_and_unpack_to_the_networks_weights(
    bits: int, per_channel: bool, dtype: torch.dtype
) -> None:
    net = nn.Sequential(nn.Conv2d(8, 4, 3), nn.ConvTranspose2d(8, 4, 3), nn.Linear(64, 8)).to(dtype)
    count = sum(layer.weight.numel() for layer in net)
    quantize_(net, weight_bits=bits, act_bits=None, first_last_bits=None, per_channel=per_channel)
    scales = (4 + 4 + 8 if per_channel else 3) * (8 if dtype == torch.float64 else 4)
    assert packed_bytes(net) == count * bits // 8 + scales
    for name, packed in packed_weights(net).items():
        assert packed.unpack().dtype == dtype
        assert torch.equal(packed.unpack(), net.get_submodule(name).weight)


def test_each_layer_is_packed_with_its_own_bits() -> None:
    net = quantize_(nn.Sequential(*(nn.Linear(32, 32) for _ in range(3))), weight_bits=2, act_bits=None)
    assert [packed.nbytes for packed in packed_weights(net).values()] == [1024 + 4, 256 + 4, 1024 + 4]


@pytest.mark.parametrize("pack", [packed_weights, packed_bytes])
def test_weights_that_are_not_only_rounded_are_refused(
    make_net: MakeNet, pack: Callable[[nn.Module], Any], refused: Any
) -> None:
    with refused("net", got="Sequential"):
        pack(make_net(weight_bits=None))
    with refused("0.weight"):
        pack(make_net(act_bits=None, start_step=9))
    net = make_net(act_bits=None)
    nn.utils.parametrizations.spectral_norm(net[2])
    with refused("2.weight", got="WeightQuantizer and _SpectralNorm"):
        pack(net)
