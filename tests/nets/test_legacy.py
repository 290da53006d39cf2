"""The older layout: the released keys and shapes, what each part computes, and that all of it learns."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from uumamba.nets import LegacyUMambaBot, LegacyUMambaEnc
from uumamba.nets.official_weights import without_duplicates

FACTS = sorted((Path(__file__).parent / "facts" / "released").glob("legacy_*.json"))
STAGES = {2: {"features": (4, 6, 6), "strides": (1, 2, 2)}, 3: {"features": (4, 6, 6), "strides": (1, (1, 2, 2), 2)}}
# InstanceNorm subtracts the mean, and with it any constant that the convolution before it added.
BIAS_BEFORE_NORM = re.compile(r"(stem\.convs\.0|blocks\.\d+\.conv[12])\.conv\.bias")


def small_net(kind, spatial_dims, **options):
    """Widths 4, 6, 6 (the last stage strides without a change of width), two input channels, three classes."""
    torch.manual_seed(0)
    return kind(spatial_dims, 2, 3, **(STAGES[spatial_dims] | options))


@pytest.fixture(params=(LegacyUMambaEnc, LegacyUMambaBot))
def kind(request):
    return request.param


@pytest.fixture
def image(spatial_dims):
    size = {2: (8, 12), 3: (2, 8, 12)}[spatial_dims]
    return torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(0))


def acdc(facts, kind):
    dims = facts["spatial_dims"]
    widths = [min(32 * 2**stage, {2: 512, 3: 320}[dims]) for stage in range(6)]
    kernels = [[3, 3]] * 6 if dims == 2 else [[1, 3, 3]] + [[3, 3, 3]] * 5
    with torch.device("meta"):
        return kind(dims, 1, 4, features=widths, strides=facts["strides"], kernel_sizes=kernels)


def test_there_are_facts_for_both_variants_in_both_dimensions():
    assert [path.stem for path in FACTS] == ["legacy_bot_2d", "legacy_bot_3d", "legacy_enc_2d", "legacy_enc_3d"]


@pytest.mark.parametrize("path", FACTS, ids=lambda path: path.stem)
def test_keys_and_shapes_are_those_of_the_released_network_without_duplicates(path):
    facts = json.loads(path.read_text(encoding="utf-8"))
    net = acdc(facts, LegacyUMambaEnc if "enc" in path.stem else LegacyUMambaBot)
    # Small tensors stand for the weights: a name's shape, drawn out of one number, holds no memory.
    released = {key: torch.zeros(()).expand(shape) for key, shape in facts["shapes"].items()}
    expected = {key: tuple(value.shape) for key, value in without_duplicates(released).items()}
    assert {key: tuple(value.shape) for key, value in net.state_dict().items()} == expected
    assert sum(weight.numel() for weight in net.parameters()) == facts["parameters"]


def test_acdc_in_3d_has_the_published_58_8_million_parameters():
    facts = json.loads(next(path for path in FACTS if path.stem == "legacy_enc_3d").read_text(encoding="utf-8"))
    millions = sum(weight.numel() for weight in acdc(facts, LegacyUMambaEnc).parameters()) / 1e6
    assert millions == pytest.approx(58.8, abs=0.05)


def test_training_gives_logits_of_every_decoder_stage_finest_first(kind, spatial_dims, image):
    logits = small_net(kind, spatial_dims)(image)
    coarse = [4, 6] if spatial_dims == 2 else [2, 4, 6]
    assert [list(output.shape) for output in logits] == [[2, 3, *image.shape[2:]], [2, 3, *coarse]]


def test_evaluation_gives_the_finest_logits_alone(kind, spatial_dims, image):
    net = small_net(kind, spatial_dims)
    finest = net(image)[0]
    torch.testing.assert_close(net.eval()(image), finest)


def test_without_deep_supervision_there_is_one_head_with_the_same_name(kind, spatial_dims, image):
    deep, plain = small_net(kind, spatial_dims).eval(), small_net(kind, spatial_dims, deep_supervision=False)
    extra = set(deep.state_dict()) - set(plain.state_dict())
    assert extra == {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"}
    plain.load_state_dict(deep.state_dict(), strict=False)
    torch.testing.assert_close(plain(image), deep(image))


def test_a_block_adds_to_its_convolutions_the_pooled_and_projected_input():
    block = small_net(LegacyUMambaEnc, 2).double().encoder.stages[1].blocks[0]
    for weight in block.parameters():
        torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(weight.numel()))
    features = torch.randn(2, 4, 8, 8, dtype=torch.float64)

    def norm(x, part):
        return F.instance_norm(x, weight=part.norm.weight, bias=part.norm.bias)

    inner = norm(F.conv2d(features, block.conv1.conv.weight, block.conv1.conv.bias, stride=2, padding=1), block.conv1)
    inner = F.conv2d(F.leaky_relu(inner, 0.01), block.conv2.conv.weight, block.conv2.conv.bias, padding=1)
    skip = norm(F.conv2d(F.avg_pool2d(features, 2), block.skip[1].conv.weight), block.skip[1])
    torch.testing.assert_close(block(features), F.leaky_relu(norm(inner, block.conv2) + skip, 0.01))


def test_every_block_starts_as_its_skip_alone():
    block = small_net(LegacyUMambaEnc, 2).encoder.stages[1].blocks[1]
    features = torch.randn(1, 6, 4, 4)
    torch.testing.assert_close(block(features), F.leaky_relu(features, 0.01))


def test_every_parameter_gets_a_finite_nonzero_gradient(kind, spatial_dims, image):
    net = small_net(kind, spatial_dims).double()
    for name, weight in net.named_parameters():
        if name.endswith("conv2.norm.weight"):  # starts at zero, and keeps what is before it without a gradient
            torch.nn.init.ones_(weight)
    logits = net(image.double())
    sum(output.softmax(1)[:, 0].square().mean() for output in logits).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, f"{key} has no gradient"
        assert parameter.grad.isfinite().all(), f"{key} has a gradient that is not finite"
        if BIAS_BEFORE_NORM.search(key):
            assert parameter.grad.abs().max() < 1e-12, f"{key} is before a norm and should have no gradient"
        else:
            assert parameter.grad.abs().max() > 1e-9, f"{key} has no gradient"


def test_any_size_that_the_strides_divide_will_do_and_no_other(kind):
    net = small_net(kind, 2).eval()
    assert net.fixed_patch is None
    assert net.required_divisor == (4, 4)
    assert net.minimum_patch == (4, 8)
    assert net(torch.zeros(1, 2, 4, 4)).shape == (1, 3, 4, 4)
    with pytest.raises(ValueError, match="the image has 10 voxels on spatial axis 1"):
        net(torch.zeros(1, 2, 8, 10))


def test_options_of_the_current_layout_are_refused(kind):
    with pytest.raises(TypeError, match="stem_blocks"):
        small_net(kind, 2, stem_blocks=1)
