import logging
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uumamba.nets import ResEncUNet, UMambaBot
from uumamba.ops import native_library
from uumamba.quantization import calibrate, export_onnx, quantize_, quantized_layers

MakeNet = Callable[..., nn.Module]


def convolutions() -> nn.Module:
    body = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, 2), nn.LeakyReLU()
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(6 * 12 * 12, 4))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.LeakyReLU(), nn.Linear(32, 10))


def sequences() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32, bias=False), nn.LeakyReLU(), nn.Linear(32, 64), nn.Flatten(1))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "3 bits, a scale per channel": (perceptron, (64,), {"weight_bits": 3, "act_bits": 3, "per_channel": True}),
    "2 bits, convolutions": (convolutions, (1, 8, 8), {"weight_bits": 2, "act_bits": 2, "per_channel": True}),
    "a residual U-Net": (
        lambda: ResEncUNet(2, 1, 3, features=(4, 8), strides=(1, 2), deep_supervision=False),
        (1, 8, 8),
        {"weight_bits": 4, "act_bits": 4},
    ),
    "weights only, on sequences": (sequences, (5, 64), {"weight_bits": 8, "act_bits": None}),
    "sequences in 8 bits": (sequences, (5, 64), {"weight_bits": 8, "act_bits": 8, "per_channel": True}),
}


@pytest.mark.slow  # torch's exporter takes seconds
@pytest.mark.parametrize(("make", "shape", "options"), CASES.values(), ids=CASES)
def test_onnx_runtime_gives_the_logits_of_torch(
    make: Callable[[], nn.Module], shape: tuple[int, ...], options: dict[str, Any], tmp_path: Path
) -> None:
    net, images = make().eval(), torch.rand(48, *shape)
    quantize_(net, **options)
    if options["act_bits"] is not None:
        calibrate(net, [images])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    path = export_onnx(net, images[:2], tmp_path / "net.onnx")
    with torch.no_grad():
        expected = net(images)
    logits = run_onnx(path, images)
    assert (logits - expected).abs().max() < 1e-4
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    check_graph(path, net)


def run_onnx(path: Path, images: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": images.numpy()})[0])


def check_graph(path: Path, net: nn.Module) -> None:
    """Check for int8 weight levels in range and clipped quantized inputs."""
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 21)]
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    layers = list(quantized_layers(net))
    for layer in layers:
        assert layer.weight is not None
        levels = stored[f"{layer.name}.parametrizations.weight.original"]
        assert levels.dtype == "int8"
        assert layer.weight.levels[0] <= levels.min() <= levels.max() <= layer.weight.levels[1]
    nodes = Counter(node.op_type for node in model.graph.node)
    inputs = sum(layer.input is not None for layer in layers)
    # Two layers with equal inputs and levels share their nodes.
    assert bool(inputs) <= nodes["QuantizeLinear"] == nodes["Clip"] <= inputs
    assert nodes["DequantizeLinear"] == len(layers) + nodes["QuantizeLinear"]


class ChangedLogits(nn.Sequential):
    """Network with a function of its logits as output."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(super().forward(x))


def doubled_if(condition: Callable[[int], bool]) -> nn.Module:
    return ChangedLogits(lambda logits: 2 * logits if condition(logits.shape[0]) else logits)


class Encoder(nn.Module):
    """Network with a torch layer that branches on the batch size."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.first, self.part, self.last = nn.Linear(6, 16), part, nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        encoded = self.part(self.first(x))
        return self.last((encoded[0] if isinstance(encoded, tuple) else encoded).mean(1))


def mask_first_class(logits: Tensor) -> Tensor:
    return logits.masked_fill(torch.tensor([True, False, False]), -torch.inf)


def branch(logits: Tensor) -> Any:
    return torch.cond(logits.sum() > 0, lambda x: 2 * x, lambda x: x.clone(), (logits,))


def relu_of_onnx(logits: Tensor) -> Tensor:
    if not torch.onnx.is_in_onnx_export():
        return logits.relu()
    return torch.onnx.ops.symbolic("Relu", (logits,), dtype=logits.dtype, shape=logits.shape)


def u_mamba() -> nn.Module:
    return UMambaBot(2, 1, 3, features=(4, 8), strides=(1, 2), deep_supervision=False)


FOR_ANY_SIZE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "U-Mamba": (u_mamba, (1, 8, 8), 2),
    "U-Mamba, one sample": (u_mamba, (1, 8, 8), 1),
    "U-Mamba without the C++ library": (u_mamba, (1, 8, 8), 2),
    "a condition that every size fulfils": (lambda: doubled_if(lambda size: size > 0), (6,), 3),
    "a branch on values": (lambda: ChangedLogits(branch), (6,), 2),
    "an operator of ONNX": (lambda: ChangedLogits(relu_of_onnx), (6,), 2),
    "an infinity": (lambda: ChangedLogits(mask_first_class), (6,), 2),
    "LSTM": (lambda: Encoder(nn.LSTM(16, 16, batch_first=True)), (4, 6), 1),
    "transformer": (lambda: Encoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)), (4, 6), 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FOR_ANY_SIZE)
def test_a_file_gives_the_logits_of_torch_for_every_batch_size(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "without" in case:
        monkeypatch.setattr(native_library, "_LIBRARY", None)
    make, shape, given = FOR_ANY_SIZE[case]
    torch.manual_seed(0)
    net, x = make().eval(), torch.randn(5, *shape)
    act_bits = 8 if "U-Mamba" in case else None
    quantize_(net, act_bits=act_bits, overrides={"part*": None} if isinstance(net, Encoder) else {})
    if act_bits:
        calibrate(net, [x])
    path = export_onnx(net, x[:given], tmp_path / "net.onnx")
    for batch in (1, 2, 3, 5):
        with torch.no_grad():
            expected = net(x[:batch])
        torch.testing.assert_close(run_onnx(path, x[:batch]), expected, rtol=0, atol=1e-4)


FOR_SOME_SIZES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "more than two": (lambda: doubled_if(lambda size: size > 2), "batch >= 3"),
    "less than eight": (lambda: doubled_if(lambda size: size < 8), "batch <= 7"),
    "odd": (lambda: doubled_if(lambda size: size % 2 == 1), r"Eq\(Mod\(batch, 2\), 1\)|Ne\(Mod\(batch, 2\), 0\)"),
    "one": (lambda: doubled_if(lambda size: size == 1), "another output for one sample"),
    "sample by sample": (
        lambda: ChangedLogits(lambda x: torch.cat([2 * each for each in x.split(1)])),
        "axis 0 of image is 3",
    ),
    "a path that fails for one": (
        lambda: ChangedLogits(lambda x: x - x[1] if x.shape[0] > 1 else x),
        "another output for one",
    ),
    "a path for three": (lambda: ChangedLogits(lambda x: x.view(-1, 3, 3).sum(1)), r"an error for one sample \(shape"),
}


@pytest.mark.slow
@pytest.mark.parametrize("act_bits", [None, 3])
@pytest.mark.parametrize(("make", "found"), FOR_SOME_SIZES.values(), ids=FOR_SOME_SIZES)
def test_a_graph_for_some_batch_sizes_is_refused_with_dynamic_batch(
    make: Callable[[], nn.Module], found: str, act_bits: int | None, tmp_path: Path, refused: Any
) -> None:
    net, x = quantize_(make(), act_bits=act_bits), torch.rand(3, 6)
    if act_bits:
        calibrate(net, [x])
    with refused("dynamic_batch") as error:
        export_onnx(net, x, tmp_path / "net.onnx")
    assert re.search(found, error.value.got)
    assert list(tmp_path.iterdir()) == []
    if "axis 0" in found:
        path = export_onnx(net, x, tmp_path / "net.onnx", dynamic_batch=False)
        torch.testing.assert_close(run_onnx(path, x), net(x).detach())


@pytest.mark.slow
def test_the_deprecated_weight_norm_is_refused_and_the_new_one_exported(tmp_path: Path, refused: Any) -> None:
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 6)
    with pytest.warns(FutureWarning, match="deprecated"):
        nn.utils.weight_norm(net[0])
    quantize_(net, act_bits=None, overrides={"0": None})
    expected = net(x).detach()
    with refused("0.weight"):
        export_onnx(net, x, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []
    nn.utils.remove_weight_norm(net[0])
    nn.utils.parametrizations.weight_norm(net[0])
    torch.testing.assert_close(run_onnx(export_onnx(net, x, tmp_path / "net.onnx"), x), expected)


@pytest.mark.slow
def test_an_export_logs_no_warning_and_restores_log_levels(
    make_net: MakeNet, tmp_path: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    def levels() -> dict[str, int]:
        known = logging.Logger.manager.loggerDict.items()
        return {name: logger.level for name, logger in known if isinstance(logger, logging.Logger) and logger.level}

    logger, before = logging.getLogger("torch"), levels()
    logger.addHandler(caplog.handler)  # torch's logger does not propagate to the root
    request.addfinalizer(lambda: logger.removeHandler(caplog.handler))
    export_onnx(make_net(), torch.zeros(2, 6), tmp_path / "net.onnx")
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert levels() == before


@torch.library.custom_op("uumamba_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return 2 * x


doubled.register_fake(torch.empty_like)


@pytest.mark.slow
def test_a_network_with_an_operation_that_onnx_lacks_is_refused(tmp_path: Path, refused: Any) -> None:
    net = quantize_(ChangedLogits(lambda logits: doubled(logits)), act_bits=None)
    with refused("net") as error:
        export_onnx(net, torch.randn(2, 6), tmp_path / "net.onnx")
    assert "uumamba_tests.doubled" in error.value.got
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_exported_is_refused_before_torchs_export(
    make_net: MakeNet, tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, path = torch.zeros(2, 6), tmp_path / "net.onnx"
    for key, net, example in [
        ("net", nn.Linear(6, 2), x),
        ("0.input", make_net(calibrated=False), x),
        ("0.bias", make_net().double(), x.double()),
        ("example", make_net(), x.half()),
        ("0.weight", make_net(act_bits=None, start_step=3), x),
    ]:
        with refused(key):
            export_onnx(net, example, path)
    with refused("output_name", got="x"):
        export_onnx(make_net(), x, path, input_name="x", output_name="x")
    monkeypatch.setattr("uumamba.quantization.onnx_export.find_spec", lambda name: None)
    with refused("onnx") as error:
        export_onnx(make_net(), x, path)
    assert "uumamba[onnx]" in error.value.fix
    assert list(tmp_path.iterdir()) == []
