from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from uumamba.quantization import packed_bytes, packed_weights, quantize_
from uumamba.quantization.packing import pack_bits, unpack_bits
from uumamba.runtime.errors import UsageError

MakeNet = Callable[..., nn.Module]


@given(st.integers(2, 8).flatmap(lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1)))))
def test_levels_come_back_from_as_few_bytes_as_hold_them(case: tuple[int, list[int]]) -> None:
    bits, levels = case
    packed = pack_bits(torch.tensor(levels, dtype=torch.int64), bits=bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-len(levels) * bits // 8)
    assert unpack_bits(packed, bits=bits, count=len(levels)).tolist() == levels
    as_one_number = sum(level << (bits * index) for index, level in enumerate(levels))
    assert int.from_bytes(bytes(packed.tolist()), "little") == as_one_number


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("per_channel", [False, True])
def test_packed_weights_take_their_bits_and_unpack_to_what_the_network_computes_with(
    bits: int, per_channel: bool
) -> None:
    net = nn.Sequential(nn.Conv2d(64, 32, 3), nn.ConvTranspose2d(64, 16, 3), nn.Linear(512, 32))
    size = sum(layer.weight.nbytes for layer in net)
    quantize_(net, weight_bits=bits, act_bits=None, first_last_bits=None, per_channel=per_channel)
    assert size * bits / 32 < packed_bytes(net) <= size * (bits / 32) * 1.05
    for name, packed in packed_weights(net).items():
        assert torch.equal(packed.unpack(), net.get_submodule(name).weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_types_unpack_in_their_own(dtype: torch.dtype) -> None:
    net = quantize_(nn.Sequential(nn.Linear(64, 64)).to(dtype), weight_bits=4, act_bits=None, per_channel=True)
    unpacked = packed_weights(net)["0"].unpack()
    assert unpacked.dtype == dtype
    assert torch.equal(unpacked, net[0].weight)


def test_layers_of_other_bits_are_packed_in_theirs() -> None:
    net = quantize_(nn.Sequential(*(nn.Linear(32, 32) for _ in range(3))), weight_bits=2, act_bits=None)
    assert [packed.nbytes for packed in packed_weights(net).values()] == [1024 + 4, 256 + 4, 1024 + 4]


def test_packing_is_refused_where_weights_are_not_rounded(make_net: MakeNet) -> None:
    with pytest.raises(UsageError, match="No weight of this network is quantised"):
        packed_weights(make_net(weight_bits=None))
    with pytest.raises(UsageError, match=r"weight of 0 is not rounded before 9 more steps; train on"):
        packed_bytes(make_net(act_bits=None, start_step=9))


def test_a_weight_that_is_computed_anew_beside_its_rounding_is_not_packed(make_net: MakeNet) -> None:
    net = make_net(act_bits=None)
    nn.utils.parametrizations.spectral_norm(net[2])
    rule = r"weight of 2 is rounded and also computed from other .* spectral norm do; remove that .*{'2': None}"
    with pytest.raises(UsageError, match=rule):
        packed_weights(net)
    with pytest.raises(UsageError, match=rule):
        packed_bytes(net)
