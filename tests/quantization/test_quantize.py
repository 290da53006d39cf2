import ast
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from uumamba.nets import ResEncUNet, UMambaBot, UMambaEnc
from uumamba.nets.mamba import Mamba
from uumamba.ops import causal_convolution, selective_scan
from uumamba.optim import SAGM
from uumamba.quantization import (
    ActivationQuantizer,
    calibrate,
    count_steps,
    fake_quantize,
    packed_bytes,
    quantize_,
    quantized_layers,
    quantizer_scales,
    scale_groups,
)

Batches = list[tuple[Tensor, Tensor]]
MakeNet = Callable[..., nn.Module]
LAYERS = {
    "linear": (lambda: nn.Linear(40, 6), (2, 40), 0),
    "conv1d": (lambda: nn.Conv1d(4, 6, 5), (2, 4, 9), 0),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5), 0),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3), (2, 4, 4, 4, 4), 0),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 5), (2, 4, 9), 1),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 3), (2, 4, 5, 5), 1),
    "transposed3d": (lambda: nn.ConvTranspose3d(4, 6, 3), (2, 4, 3, 3, 3), 1),
}


@pytest.mark.parametrize(("make", "shape", "axis"), LAYERS.values(), ids=LAYERS)
def test_a_layer_of_any_kind_computes_with_rounded_weight_and_input(
    make: Callable[[], Any], shape: tuple[int, ...], axis: int
) -> None:
    net, x = nn.Sequential(make()), torch.randn(shape)
    plain = deepcopy(net[0])
    quantize_(net, weight_bits=2, act_bits=3, first_last_bits=None, per_channel=True)
    calibrate(net, [x])
    (layer,) = quantized_layers(net)
    assert layer.weight is not None
    assert layer.input is not None
    assert layer.weight.scale.shape == tuple(
        6 if index == axis and size == 6 else size if index == axis else 1
        for index, size in enumerate(plain.weight.shape)
    )
    channels = net[0].weight.unbind(axis)
    assert all(len(channel.unique()) <= 4 for channel in channels)
    weight_scale = 2 * plain.weight.abs().mean([a for a in range(plain.weight.ndim) if a != axis], keepdim=True)
    input_scale = 2 * x.abs().mean() / 3**0.5
    plain.weight.data = weight_scale * (plain.weight / weight_scale).clamp(-2, 1).round()
    torch.testing.assert_close(net(x), plain(input_scale * (x / input_scale).clamp(-4, 3).round()))


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ({}, {"0": 8, "2": 3, "4": 8}),
        ({"first_last_bits": None}, {"0": 3, "2": 3, "4": 3}),
        ({"overrides": {"0": None, "[24]": 5}}, {"2": 5, "4": 5}),
    ],
)
def test_first_and_last_layer_have_eight_bits_unless_overridden(make_net: MakeNet, options: Any, bits: Any) -> None:
    net = make_net(calibrated=False, **options)
    assert {layer.name: layer.weight.bits for layer in quantized_layers(net)} == bits


@pytest.mark.parametrize(
    ("options", "key", "got"),
    [
        *(
            ({key: bits}, key, bits)
            for key in ("weight_bits", "act_bits", "first_last_bits")
            for bits in (1, 9, 2.5, True)
        ),
        ({"overrides": {"0": 1}}, "overrides.0", 1),
        ({"overrides": {"head": 4}}, "overrides", "head"),
        ({"weight_bits": None, "act_bits": None}, "weight_bits", None),
        ({"overrides": {"*": None}}, "overrides", {"*": None}),
        ({"start_step": 5}, "start_step", 5),
        ({"start_step": 5, "weight_bits": None, "act_bits": None}, "weight_bits", None),
        ({"start_step": -1, "act_bits": None}, "start_step", -1),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], key: str, got: Any, refused: Any) -> None:
    with refused(key, got=got):
        quantize_(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), **options)


def test_an_override_without_match_is_refused_with_the_most_similar_names(refused: Any) -> None:
    net = UMambaBot(2, 1, 3, features=(4, 8, 8), strides=(1, 2, 2))
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)]
    with refused("overrides", got="decoder.seg_layer.1") as error:
        quantize_(net, overrides={"decoder.seg_layer.1": None})
    named = error.value.expected.partition(": ")[2].split(", ")
    assert named[0] == "decoder.seg_layers.1"
    assert {name.partition(" and ")[0] for name in named} <= set(names)
    assert named[-1].endswith(f" and {len(names) - 5} others")


NAMED: dict[str, Callable[[Callable[..., nn.Module], str], Any]] = {
    "input": lambda make, name: quantize_(make())(torch.ones(1, 4)),
    "input of zeros": lambda make, name: calibrate(quantize_(make()), [torch.zeros(1, 4)]),
    "input of NaN": lambda make, name: calibrate(quantize_(make()), [torch.full((2, 4), torch.nan)]),
    "weight": lambda make, name: quantize_(make(parametrizations.weight_norm)),
    "weight with deprecated norm": lambda make, name: quantize_(make(nn.utils.weight_norm)),
    "weight before start_step": lambda make, name: packed_bytes(quantize_(make(), act_bits=None, start_step=2)),
    "weight without shape": lambda make, name: quantize_(make(lambda _: nn.LazyLinear(4))),
}


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning", "ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("nested", [True, False], ids=["layer", "network"])
@pytest.mark.parametrize("case", NAMED)
def test_each_error_about_a_layer_names_its_weight_or_input(case: str, nested: bool, refused: Any) -> None:
    def make(change: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> nn.Module:
        layer = change(nn.Linear(4, 3))
        return nn.Sequential(layer) if nested else layer

    part = case.partition(" ")[0]
    with refused(f"0.{part}" if nested else part):
        NAMED[case](make, part)


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_per_channel_is_refused_without_an_axis_of_all_channels(kind: Any, groups: int, refused: Any) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), kind(4, 8, 3, groups=groups), nn.Linear(4, 4))

    net = make()
    with refused("per_channel") as error:
        quantize_(net, per_channel=True)
    assert "overrides={'1': None}" in error.value.fix
    assert not list(quantized_layers(net))
    assert len(list(quantized_layers(quantize_(net, per_channel=True, overrides={"1": None})))) == 2
    assert len(list(quantized_layers(quantize_(make())))) == 3
    assert len(list(quantized_layers(quantize_(make(), per_channel=True, weight_bits=None)))) == 3


class AttentionNet(nn.Module):
    """Two transformer layers, a recurrent layer, an embedding and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, words: Tensor) -> Any:
        x = self.embedding(words)
        for block in self.blocks:
            x = block(x)
        return self.head(self.recurrent(x)[0])


MATRICES = "embedding (Embedding), blocks.0.self_attn (MultiheadAttention), blocks.1.self_attn (MultiheadAttention)"


def test_one_warning_names_all_modules_with_matrices_in_full_precision() -> None:
    with pytest.warns(UserWarning, match="stay in full precision") as caught:
        quantize_(AttentionNet())
    (message,) = [str(each.message) for each in caught]
    assert f"{MATRICES}, recurrent (GRU) stay in full precision" in message
    for kind in (nn.Bilinear(2, 2, 2), nn.LSTMCell(2, 2), nn.EmbeddingBag(2, 2), nn.LSTM(2, 2), nn.RNN(2, 2)):
        with pytest.warns(UserWarning, match=rf"0 \({type(kind).__name__}\) stay in full precision"):
            quantize_(nn.Sequential(kind, nn.Linear(2, 2)))


@pytest.mark.filterwarnings("error")
def test_overrides_for_modules_in_full_precision_silence_the_warning(refused: Any) -> None:
    for make in (UMambaBot, UMambaEnc, ResEncUNet):
        patch = {"patch_size": (8, 8)} if make is UMambaEnc else {}
        quantize_(make(2, 1, 3, features=(4, 8, 8), strides=(1, 2, 2), **patch))
    quantize_(AttentionNet(), weight_bits=None)
    quantize_(AttentionNet(), overrides={"embedding": None, "*.self_attn*": None, "recur*": None})
    with refused("overrides", got="recurrent"):
        quantize_(AttentionNet(), overrides={"recurrent": 4})


def suggested(error: pytest.ExceptionInfo[Any]) -> dict[str, None]:
    """The overrides in an error's fix."""
    return dict(ast.literal_eval(error.value.fix.partition("overrides=")[2].partition("}")[0] + "}"))


@pytest.mark.filterwarnings("ignore:.*stay in full precision:UserWarning")
def test_calibration_names_all_inputs_without_values_and_suggests_overrides(refused: Any) -> None:
    words = torch.randint(9, (2, 5))
    unused = "blocks.0.self_attn.out_proj, blocks.1.self_attn.out_proj"
    with refused("batches", got=f"no value for the inputs of {unused}") as error:
        calibrate(quantize_(AttentionNet()), [words])
    assert suggested(error) == {"*.out_proj": None}
    calibrate(quantize_(AttentionNet(), overrides=suggested(error)), [words])


def test_heads_of_deep_supervision_are_calibrated_in_training_mode_only(refused: Any) -> None:
    net, x = UMambaBot(2, 1, 3, features=(4, 8, 8, 8), strides=(1, 2, 2, 2)), torch.randn(2, 1, 16, 16)
    quantize_(net)
    with refused("batches", got="no value for the inputs of decoder.seg_layers.0, decoder.seg_layers.1") as error:
        calibrate(net.eval(), [x])
    assert suggested(error) == {"decoder.seg_layers.0": None, "decoder.seg_layers.1": None}
    calibrate(net.train(), [x])


def test_networks_without_layers_and_quantized_networks_are_refused(make_net: MakeNet, refused: Any) -> None:
    net = make_net()
    with refused("net", got="ReLU"):
        quantize_(nn.ReLU())
    with refused("net", got="a quantized Sequential"):
        quantize_(net)
    with refused("net", got="Sequential"):
        count_steps(net, SGD(net.parameters(), lr=0.1))
    with refused("net", got="Linear"):
        calibrate(nn.Linear(2, 2), [])


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "normalised", [parametrizations.spectral_norm, parametrizations.weight_norm, nn.utils.weight_norm]
)
def test_a_weight_that_is_not_a_parameter_is_refused_without_changes(normalised: Any, refused: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 4), normalised(nn.Linear(4, 4)))
    with refused("1.weight"):
        quantize_(net, act_bits=None)
    assert not list(quantized_layers(net))
    assert len(list(quantized_layers(quantize_(net, act_bits=None, overrides={"1": None})))) == 1


@pytest.mark.parametrize(("make", "name"), [(lambda: nn.Linear(8, 4), "input"), (lambda: Mamba(8), "sequence")])
def test_an_input_given_by_its_name_is_also_rounded(make: Callable[[], nn.Module], name: str) -> None:
    layer, data = make(), torch.randn(2, 5, 8)
    quantize_(layer, weight_bits=None, act_bits=2, first_last_bits=None)
    calibrate(layer, [data])
    assert torch.equal(layer(**{name: data}), layer(data))


def test_calibration_averages_all_batches_and_uses_unsigned_levels_after_relu(make_net: MakeNet) -> None:
    net, xs = make_net(calibrated=False, weight_bits=None), [torch.randn(n, 6) for n in (3, 9)]
    calibrate(net, xs)
    quantizers: list[Any] = [layer.input for layer in quantized_layers(net)]
    first, second, _ = quantizers
    assert [quantizer.levels for quantizer in quantizers] == [(-128, 127), (0, 7), (-128, 127)]
    everything = torch.cat(xs)
    hidden = F.linear(everything, net[0].weight, net[0].bias).relu()
    assert first.scale.item() == pytest.approx(2 * everything.abs().mean().item() / 127**0.5)
    assert second.scale.item() == pytest.approx(2 * hidden.mean().item() / 7**0.5)


@pytest.mark.parametrize(
    ("batches", "key", "got"),
    [
        ([], "batches", "no batch"),
        ([[torch.ones(2, 6), torch.ones(2)]], "batches", "list"),
        ([{"image": torch.ones(2, 6)}], "batches", "dict"),
        ([torch.zeros(0, 6)], "batches", "no value for the inputs of 0, 2, 4"),
        ([torch.zeros(2, 6)], "0.input", "zeros only"),
        ([torch.full((2, 6), torch.nan)], "0.input", "NaN or infinite values"),
    ],
)
def test_wrong_batches_are_refused_and_leave_the_network_uncalibrated(
    make_net: MakeNet, batches: list[Any], key: str, got: str, refused: Any
) -> None:
    net = make_net(calibrated=False)
    with refused(key, got=got):
        calibrate(net, batches)
    with refused("0.input", got="no scale"):
        net(torch.ones(1, 6))


def test_a_mamba_block_computes_with_rounded_projections_and_their_inputs() -> None:
    net, x = nn.Sequential(Mamba(8)), torch.randn(2, 7, 8)
    quantize_(net, weight_bits=4, act_bits=4, first_last_bits=None)
    calibrate(net, [x])
    assert list(quantizer_scales(net)) == [
        *("0.in_proj.weight", "0.in_proj.input", "0.conv1d.weight", "0.x_proj.weight", "0.x_proj.input"),
        *("0.dt_proj.weight", "0.dt_proj.input", "0.out_proj.weight", "0.out_proj.input"),
    ]
    layers = {layer.name.removeprefix("0."): layer for layer in quantized_layers(net)}

    def rounded(name: str, values: Tensor) -> Tensor:
        quantizer = layers[name].input
        assert quantizer is not None
        return fake_quantize(values, quantizer.scale, -8, 7)

    def weight(name: str) -> Tensor:
        quantizer = layers[name].weight
        assert quantizer is not None
        return fake_quantize(layers[name].full_weight, quantizer.scale, -8, 7)

    block = net[0]
    inner, gate = F.linear(rounded("in_proj", x), weight("in_proj")).chunk(2, -1)
    inner = causal_convolution(inner.mT, weight("conv1d")[:, 0], block.conv1d.bias)
    projected = F.linear(rounded("x_proj", inner.mT), weight("x_proj"))
    delta, B, C = projected.split((block.dt_rank, block.d_state, block.d_state), -1)
    delta = F.linear(rounded("dt_proj", delta), weight("dt_proj"))
    options = {"z": gate.mT, "delta_bias": block.dt_proj.bias, "delta_softplus": True}
    scanned = selective_scan(inner, delta.mT, -block.A_log.exp(), B.mT, C.mT, block.D, **options)
    torch.testing.assert_close(net(x), F.linear(rounded("out_proj", scanned.mT), weight("out_proj")))


def test_every_parameter_of_a_quantized_u_mamba_changes_in_one_step() -> None:
    net, x = UMambaBot(2, 1, 3, features=(4, 8, 8), strides=(1, 2, 2)), torch.randn(2, 1, 8, 8)
    net.train()
    calibrate(quantize_(net, weight_bits=4, act_bits=4), [x])
    before = {name: param.clone() for name, param in net.named_parameters()}
    optimizer = SAGM(scale_groups(net), partial(AdamW, lr=1e-3), net=net)
    optimizer.step(lambda: sum(logits.square().mean() + logits[:, 0].mean() for logits in net(x)))
    # A bias before an instance norm has no effect, so its gradient is only rounding error.
    unchanged = [name for name, param in net.named_parameters() if torch.equal(param, before[name])]
    assert [name for name in unchanged if not name.endswith("bias")] == []
    assert any(name.endswith("input_quantizer.scale") for name in before)


@pytest.mark.parametrize(("dtype", "scale_dtype"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_scales_are_at_least_float32(dtype: torch.dtype, scale_dtype: torch.dtype) -> None:
    net, x = nn.Sequential(nn.Linear(4, 4)).to(dtype), torch.randn(8, 4, dtype=dtype)
    calibrate(quantize_(net), [x])
    net(x).sum().backward()
    assert {scale.dtype for scale in quantizer_scales(net).values()} == {scale_dtype}
    assert net(x).dtype == dtype


def test_a_moving_average_has_its_own_scales(make_net: MakeNet) -> None:
    net, x = make_net(), torch.randn(4, 6)
    average = AveragedModel(net, avg_fn=lambda old, new, count: (old + new) / 2)
    average.update_parameters(net)  # the first call copies the weights
    expected = net(x)
    assert torch.equal(average(x), expected)
    torch._foreach_mul_([scale.data for scale in quantizer_scales(net).values()], 3)
    assert torch.equal(average(x), expected)
    assert not torch.allclose(net(x), expected)


def test_a_state_dict_includes_calibration_or_its_absence(make_net: MakeNet, refused: Any) -> None:
    net, other, x = make_net(), make_net(calibrated=False), torch.randn(4, 6)
    torch._foreach_mul_([param.data for param in net.parameters()], 1.1)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))
    levels = [layer.input.levels for layer in quantized_layers(other) if layer.input]
    assert levels == [(-128, 127), (0, 7), (-128, 127)]
    net.load_state_dict(make_net(calibrated=False).state_dict())
    with refused("0.input", got="no scale"):
        net(x)


def test_the_state_of_other_bits_is_refused(make_net: MakeNet) -> None:
    with pytest.raises(RuntimeError, match=r"2\.input_quantizer has 3 bits, the loaded state 4"):
        make_net().load_state_dict(make_net(act_bits=4).state_dict())
    with pytest.raises(RuntimeError, match=r"2\.parametrizations\.weight\.0 has 3 bits, the loaded state 2"):
        make_net().load_state_dict(make_net(weight_bits=2).state_dict())


def test_scales_are_a_group_without_weight_decay(make_net: MakeNet) -> None:
    net = make_net()
    others, scales = scale_groups(net)
    assert {id(param) for param in scales["params"]} == {id(scale) for scale in quantizer_scales(net).values()}
    assert len(others["params"]) + len(scales["params"]) == len(list(net.parameters()))
    assert scales["weight_decay"] == 0


def train(net: nn.Module, optimizer: Optimizer, batches: Batches) -> None:
    for x, y in batches:
        optimizer.zero_grad()
        F.mse_loss(net(x), y).backward()
        optimizer.step()


def test_weights_are_in_full_precision_until_start_step_and_then_rounded(make_net: MakeNet, batches: Batches) -> None:
    delayed = make_net(weight_bits=7, act_bits=None, first_last_bits=None, per_channel=True, start_step=5)
    plain = make_net(act_bits=8, weight_bits=None, calibrated=False)
    for layer in (plain[0], plain[2], plain[4]):
        layer._forward_pre_hooks.clear()  # the same network in full precision
        del layer.input_quantizer
    optimizers = [SGD(net.parameters(), lr=0.05, momentum=0.9) for net in (delayed, plain)]
    count_steps(delayed, optimizers[0])
    for net, optimizer in zip((delayed, plain), optimizers, strict=True):
        train(net, optimizer, batches[:4])
    assert torch.equal(delayed[2].weight, plain[2].weight)
    for net, optimizer in zip((delayed, plain), optimizers, strict=True):
        train(net, optimizer, batches[4:5])
    full = plain[2].weight
    scale = 2 * full.abs().mean(1, keepdim=True) / 63**0.5
    torch.testing.assert_close(delayed[2].weight, scale * (full / scale).clamp(-64, 63).round())
    train(delayed, optimizers[0], batches[5:8])
    assert all(len(row.unique()) <= 128 for row in delayed[2].weight)


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_moving_average_has_nearly_the_scales_of_its_weights_at_start_step(
    make_net: MakeNet, batches: Batches, per_channel: bool
) -> None:
    net = make_net(weight_bits=3, act_bits=None, first_last_bits=None, per_channel=per_channel, start_step=20)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = AdamW(scale_groups(net), lr=0.05)
    count_steps(net, optimizer)
    optimizer.register_step_post_hook(lambda *_: average.update_parameters(net))
    train(net, optimizer, [(x, 20 * x[:, :3]) for x, _ in batches])  # weights grow for these targets
    for layer in quantized_layers(average.module):
        assert not layer.weight.is_delayed
        mean = layer.full_weight.abs().mean(*([1, True] if per_channel else []))
        torch.testing.assert_close(layer.weight.scale, 2 * mean / 3**0.5, rtol=0.1, atol=0)


@pytest.mark.parametrize("stop", [2, 5, 7])
def test_a_training_with_start_step_is_resumed_bit_for_bit(make_net: MakeNet, batches: Batches, stop: int) -> None:
    def build() -> tuple[nn.Module, SGD]:
        net = make_net(weight_bits=4, act_bits=None, start_step=5)
        optimizer = SGD(net.parameters(), lr=0.05, momentum=0.9)
        count_steps(net, optimizer)
        return net, optimizer

    net, optimizer = build()
    train(net, optimizer, batches[:stop])
    saved = deepcopy((net.state_dict(), optimizer.state_dict()))
    train(net, optimizer, batches[stop:10])
    other, resumed = build()
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    train(other, resumed, batches[stop:10])
    torch.testing.assert_close(net.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_an_activation_quantizer_scales_its_gradient_by_the_features_per_sample() -> None:
    quantizer = ActivationQuantizer(2)
    quantizer.set_scale(0.5, signed=False)
    quantizer(torch.full((4, 9), 7.0)).sum().backward()
    assert quantizer.scale.grad is not None
    assert quantizer.scale.grad.item() == pytest.approx(36 * 3 / (9 * 3) ** 0.5)  # each clipped value counts Qp = 3
