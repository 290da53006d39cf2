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
    "3 bits, a scale a channel": (perceptron, (64,), {"weight_bits": 3, "act_bits": 3, "per_channel": True}),
    "2 bits, convolutions": (convolutions, (1, 8, 8), {"weight_bits": 2, "act_bits": 2, "per_channel": True}),
    "a residual U-Net": (
        lambda: ResEncUNet(2, 1, 3, features=(4, 8), strides=(1, 2), deep_supervision=False),
        (1, 8, 8),
        {"weight_bits": 4, "act_bits": 4},
    ),
    "weights alone, on sequences": (sequences, (5, 64), {"weight_bits": 8, "act_bits": None}),
    "sequences in 8 bits, a scale a channel": (
        sequences,
        (5, 64),
        {"weight_bits": 8, "act_bits": 8, "per_channel": True},
    ),
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
    """Weights are int8 levels within the range of their bits, and each quantised input is clipped."""
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
    # Two layers that see the same values in the same levels share their nodes.
    assert bool(inputs) <= nodes["QuantizeLinear"] == nodes["Clip"] <= inputs
    assert nodes["DequantizeLinear"] == len(layers) + nodes["QuantizeLinear"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("native", "given"), [(True, 2), (True, 1), (False, 2)], ids=["installed", "one sample", "without the C++ library"]
)
def test_a_u_mamba_answers_batches_of_other_sizes_than_the_example(
    native: bool, given: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(native_library, "_LIBRARY", None)
    torch.manual_seed(0)
    net = UMambaBot(2, 1, 3, features=(4, 8), strides=(1, 2), deep_supervision=False).eval()
    quantize_(net, act_bits=8)
    images = torch.randn(5, 1, 8, 8)
    calibrate(net, [images])
    path = export_onnx(net, images[:given], tmp_path / "net.onnx")
    for batch in (1, 2, 3, 5):
        with torch.no_grad():
            expected = net(images[:batch])
        assert expected.std() > 0.1
        torch.testing.assert_close(run_onnx(path, images[:batch]), expected, rtol=0, atol=1e-4)


class CountsItsBatch(nn.Sequential):
    """Goes through its batch sample by sample, so that a graph of it has as many samples as the example."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(CountsItsBatch, self).forward(each) for each in x.split(1)])


@pytest.mark.slow
def test_a_network_whose_graph_is_for_one_batch_size_is_refused_for_any(tmp_path: Path, refused: Any) -> None:
    net, x = quantize_(CountsItsBatch(nn.Linear(6, 3)), act_bits=None), torch.randn(2, 6)
    with refused("dynamic_batch", got="a graph of CountsItsBatch with axis 0 of image is 2"):
        export_onnx(net, x, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []
    path = export_onnx(net, x, tmp_path / "net.onnx", dynamic_batch=False)
    torch.testing.assert_close(run_onnx(path, x), net(x).detach())


class AsksForTheSize(nn.Sequential):
    """Doubles its logits where a question about the number of samples is answered by yes."""

    def __init__(self, asks: Callable[[int], bool]) -> None:
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.asks = asks

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return 2 * logits if self.asks(x.shape[0]) else logits


QUESTIONS: dict[str, tuple[Callable[[int], bool], str]] = {
    "more than two": (lambda size: size > 2, "batch >= 3"),
    "less than eight": (lambda size: size < 8, "batch <= 7"),
    "odd": (lambda size: size % 2 == 1, r"Eq\(Mod\(batch, 2\), 1\)|Ne\(Mod\(batch, 2\), 0\)"),
    "one": (lambda size: size == 1, "another output for one sample"),
    "more than one": (lambda size: size > 1, "another output for one sample"),
}


@pytest.mark.slow
@pytest.mark.parametrize("act_bits", [None, 3])
@pytest.mark.parametrize(("asks", "found"), QUESTIONS.values(), ids=QUESTIONS)
def test_a_network_that_asks_for_the_number_of_samples_is_refused_as_one_for_any(
    asks: Callable[[int], bool], found: str, act_bits: int | None, tmp_path: Path, refused: Any
) -> None:
    net, x = quantize_(AsksForTheSize(asks), act_bits=act_bits), torch.rand(3, 6)
    if act_bits is not None:
        calibrate(net, [x])
    with refused("dynamic_batch") as error:
        export_onnx(net, x, tmp_path / "net.onnx")
    assert re.search(found, error.value.got)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("asks", [lambda size: size > 0, lambda size: size == 0], ids=["any", "none"])
def test_a_question_that_every_batch_answers_alike_is_no_hindrance(asks: Callable[[int], bool], tmp_path: Path) -> None:
    net, x = quantize_(AsksForTheSize(asks), act_bits=None), torch.rand(5, 6)
    path = export_onnx(net, x[:3], tmp_path / "net.onnx")
    for batch in (1, 2, 5):
        torch.testing.assert_close(run_onnx(path, x[:batch]), net(x[:batch]).detach())


class SubtractsTheSecond(nn.Sequential):
    """Has a path for several samples that fails on one."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits - logits[1] if x.shape[0] > 1 else logits


@pytest.mark.slow
def test_a_path_that_one_sample_cannot_take_is_refused(tmp_path: Path, refused: Any) -> None:
    net = quantize_(SubtractsTheSecond(nn.Linear(6, 3)), act_bits=None)
    with refused("dynamic_batch", got="a graph of SubtractsTheSecond with another output for one sample"):
        export_onnx(net, torch.rand(2, 6), tmp_path / "net.onnx")


class Branches(nn.Sequential):
    """Asks for the values, by an operation that holds two graphs."""

    def forward(self, x: Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda logits: 2 * logits, lambda logits: logits.clone(), (super().forward(x),))


class HoldsAnOperatorOfOnnx(nn.Sequential):
    """Has its last operation written as a node of its own choice."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        if not torch.onnx.is_in_onnx_export():
            return logits.relu()
        return torch.onnx.ops.symbolic("Relu", (logits,), dtype=logits.dtype, shape=logits.shape)


class Excludes(nn.Sequential):
    """Gives its first class no chance."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).masked_fill(torch.tensor([True, False, False]), -torch.inf)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Branches, HoldsAnOperatorOfOnnx, Excludes])
def test_a_graph_with_branches_onnx_operators_or_infinities_is_written(
    kind: type[nn.Sequential], tmp_path: Path
) -> None:
    net, x = quantize_(kind(nn.Linear(6, 3)), act_bits=None), torch.rand(5, 6)
    path = export_onnx(net, x[:2], tmp_path / "net.onnx")
    for images in (x[:1], x, -x):
        with torch.no_grad():
            expected = net(images)
        torch.testing.assert_close(run_onnx(path, images), expected)


class Encodes(nn.Module):
    """A part of torch whose code asks for the number of samples, and gives the same answer to all."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.first, self.part, self.last = nn.Linear(6, 16), part, nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        encoded = self.part(self.first(x))
        return self.last((encoded[0] if isinstance(encoded, tuple) else encoded).mean(1))


PARTS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: nn.LSTM(16, 16, batch_first=True),
    "transformer": lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("given", [1, 3])
@pytest.mark.parametrize("make", PARTS.values(), ids=PARTS)
def test_parts_of_torch_that_ask_for_one_sample_are_written_for_any(
    make: Callable[[], nn.Module], given: int, tmp_path: Path
) -> None:
    net, x = Encodes(make()), torch.randn(5, 4, 6)
    net.train(False)  # what is compared with the file must not drop out
    quantize_(net, act_bits=None, overrides={"part*": None})
    path = export_onnx(net, x[:given], tmp_path / "net.onnx")
    for batch in (1, 2, 5):
        torch.testing.assert_close(run_onnx(path, x[:batch]), net(x[:batch]).detach(), rtol=0, atol=1e-5)


class Pairs(nn.Sequential):
    """Adds every second sample to the one before, so that one alone has no answer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(-1, 2, 3).sum(1)


def test_a_network_that_fails_on_one_sample_is_refused_as_one_for_any(tmp_path: Path, refused: Any) -> None:
    net = quantize_(Pairs(nn.Linear(6, 3)), act_bits=None)
    with refused("dynamic_batch") as error:
        export_onnx(net, torch.zeros(2, 6), tmp_path / "net.onnx")
    assert "an error for one sample (shape" in error.value.got


@pytest.mark.slow
def test_a_weight_norm_of_old_is_refused_and_removed_or_replaced_written(tmp_path: Path, refused: Any) -> None:
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
def test_nothing_is_printed_of_packages_that_an_export_does_not_need(
    make_net: MakeNet, tmp_path: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    def levels() -> dict[str, int]:
        known = logging.Logger.manager.loggerDict.items()
        return {name: logger.level for name, logger in known if isinstance(logger, logging.Logger) and logger.level}

    torchs, before = logging.getLogger("torch"), levels()
    torchs.addHandler(caplog.handler)  # which hands nothing on to the root
    request.addfinalizer(lambda: torchs.removeHandler(caplog.handler))
    export_onnx(make_net(), torch.zeros(2, 6), tmp_path / "net.onnx")
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert levels() == before


@torch.library.custom_op("uumamba_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return 2 * x


doubled.register_fake(torch.empty_like)


class Doubles(nn.Sequential):
    """Holds an operator that no runtime knows."""

    def forward(self, x: Tensor) -> Any:
        return doubled(super().forward(x))


@pytest.mark.slow
def test_a_network_with_an_operation_that_onnx_lacks_is_refused(tmp_path: Path, refused: Any) -> None:
    net = quantize_(Doubles(nn.Linear(6, 3)), act_bits=None)
    with refused("net") as error:
        export_onnx(net, torch.randn(2, 6), tmp_path / "net.onnx")
    assert "uumamba_tests.doubled" in error.value.got
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused_before_torch_tries(
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
