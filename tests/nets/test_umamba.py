"""The three networks: official keys and shapes, what goes in and out, and that all of it learns."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch

from uumamba import nets
from uumamba.nets import UMambaBot, UMambaEnc

FACTS = sorted((Path(__file__).parent / "facts").glob("*.json"))
# InstanceNorm subtracts the mean, and with it any constant that the convolution before it added.
BIAS_BEFORE_NORM = re.compile(r"(stem|stages\.\d+)\.\d+\.(conv[12]|conv[12]\.conv)\.bias")


def test_there_are_facts_for_both_variants_in_both_dimensions():
    assert [path.stem for path in FACTS] == ["umamba_bot_2d", "umamba_bot_3d", "umamba_enc_2d", "umamba_enc_3d"]


@pytest.mark.parametrize("path", FACTS, ids=lambda path: path.stem)
def test_keys_and_shapes_are_those_of_the_released_networks(path):
    facts = json.loads(path.read_text(encoding="utf-8"))
    with torch.device("meta"):
        net = getattr(nets, facts["network"])(**facts["arguments"])
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == facts["shapes"]


def test_the_control_is_the_released_network_without_its_mamba_layer():
    facts = json.loads(next(path for path in FACTS if path.stem == "umamba_bot_3d").read_text(encoding="utf-8"))
    with torch.device("meta"):
        net = nets.ResEncUNet(**facts["arguments"])
    expected = {key: shape for key, shape in facts["shapes"].items() if not key.startswith("mamba_layer.")}
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == expected


def test_training_gives_logits_of_every_decoder_stage_finest_first(small_net, small_image, name, spatial_dims):
    image = small_image(spatial_dims)
    logits = small_net(name, spatial_dims)(image)
    halves = (2, 2) if spatial_dims == 2 else (1, 2, 2)
    coarse = tuple(size // step for size, step in zip(image.shape[2:], halves, strict=True))
    assert [tuple(output.shape) for output in logits] == [(2, 3, *image.shape[2:]), (2, 3, *coarse)]


def test_evaluation_gives_the_finest_logits_alone(small_net, small_image, name, spatial_dims):
    net, image = small_net(name, spatial_dims), small_image(spatial_dims)
    finest = net(image)[0]
    torch.testing.assert_close(net.eval()(image), finest)


def test_without_deep_supervision_there_is_one_head_with_the_same_name(small_net, small_image, name):
    deep, plain = small_net(name, 2).eval(), small_net(name, 2, deep_supervision=False)
    assert set(deep.state_dict()) - set(plain.state_dict()) == {
        "decoder.seg_layers.0.weight",
        "decoder.seg_layers.0.bias",
    }
    plain.load_state_dict(deep.state_dict(), strict=False)
    torch.testing.assert_close(plain(small_image(2)), deep(small_image(2)))


def test_every_parameter_gets_a_finite_nonzero_gradient(small_net, small_image, name, spatial_dims):
    net = small_net(name, spatial_dims).double()
    logits = net(small_image(spatial_dims).double())
    sum(output.softmax(1)[:, 0].square().mean() for output in logits).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, f"{key} has no gradient"
        assert parameter.grad.isfinite().all(), f"{key} has a gradient that is not finite"
        if BIAS_BEFORE_NORM.search(key):
            assert parameter.grad.abs().max() < 1e-12, f"{key} is before a norm and should have no gradient"
        else:
            assert parameter.grad.abs().max() > 1e-9, f"{key} has no gradient"


def test_smallest_patch_at_batch_one_trains(small_net, small_image, name, spatial_dims):
    size = small_net("ResEncUNet", spatial_dims).minimum_patch
    options = {"patch_size": size} if name == "UMambaEnc" else {}
    net = small_net(name, spatial_dims, **options)
    assert net.minimum_patch == size
    sum(output.square().sum() for output in net(small_image(spatial_dims, batch=1, size=size))).backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_a_bottleneck_of_one_voxel_is_accepted(small_net, small_image, spatial_dims):
    net = small_net("UMambaBot", spatial_dims)
    assert net(small_image(spatial_dims, batch=1, size=net.required_divisor))[0].isfinite().all()


def test_arguments_are_neither_changed_nor_kept(name):
    arguments = {
        "features": [4, 6, 8],
        "strides": [[1, 1], [2, 2], [2, 2]],
        "kernel_sizes": [[3, 3], [3, 3], [3, 3]],
        "encoder_blocks": [2, 2, 2],
        "decoder_blocks": [2, 2],
    }
    if name == "UMambaEnc":
        arguments["patch_size"] = [8, 8]
    before = copy.deepcopy(arguments)
    net = getattr(nets, name)(2, 1, 2, **arguments).eval()
    assert arguments == before
    arguments["strides"][1][0] = 5
    arguments["features"].clear()
    assert net.required_divisor == (4, 4)
    assert net(torch.zeros(1, 1, 8, 8)).shape == (1, 2, 8, 8)


def test_any_size_that_the_strides_divide_will_do(small_net, small_image, spatial_dims):
    net = small_net("UMambaBot", spatial_dims).eval()
    for factors in ((1, 2, 3), (3, 1, 2)):
        size = tuple(f * d for f, d in zip(factors[:spatial_dims], net.required_divisor, strict=True))
        assert net(small_image(spatial_dims, size=size)).shape == (2, 3, *size)


def test_a_size_that_the_strides_do_not_divide_is_refused(small_net, small_image, name):
    with pytest.raises(ValueError, match=r"the image has 18 voxels on spatial axis 0 .* set it to 16 or 20"):
        small_net(name, 2)(small_image(2, size=(18, 24)))


def test_mamba_layers_stand_where_the_released_networks_have_them():
    def stages(spatial_dims, count):
        strides = (1,) + (2,) * (count - 1)
        patch = (2**count,) * spatial_dims
        with torch.device("meta"):
            net = UMambaEnc(spatial_dims, 1, 2, features=(4,) * count, strides=strides, patch_size=patch)
        return sorted(int(stage) for stage in net.encoder.mamba_layers)

    assert stages(3, 4) == [0, 1, 2, 3]
    assert stages(2, 6) == [1, 3, 5]
    assert stages(2, 7) == [0, 2, 4, 6]


def test_channels_become_tokens_where_there_are_no_more_voxels_than_channels():
    arguments = {"features": (4, 8, 8), "strides": (1, 2, 2)}
    with torch.device("meta"):
        layers = UMambaEnc(3, 1, 2, **arguments, patch_size=(8, 8, 8)).encoder.mamba_layers
        wider = UMambaEnc(3, 1, 2, **arguments, patch_size=(8, 8, 12))
    # Stage 2 has 2 * 2 * 2 = 8 voxels and 8 channels, with the longer patch 12 voxels.
    assert [(layer.dim, layer.channel_tokens) for layer in layers.values()] == [(4, False), (8, False), (8, True)]
    assert wider.fixed_patch is None


def test_a_network_with_channel_tokens_refuses_another_patch_size(small_net, small_image):
    net = small_net("UMambaEnc", 2, patch_size=(8, 8))
    assert net.fixed_patch == (8, 8)
    with pytest.raises(ValueError, match=r"bakes the patch size \(8, 8\) into its weights; found \(8, 16\)"):
        net(small_image(2, size=(8, 16)))


def test_patch_size_that_the_strides_do_not_divide_is_refused_when_building(small_net):
    with pytest.raises(ValueError, match="patch_size has 10 voxels on spatial axis 1"):
        small_net("UMambaEnc", 2, patch_size=(8, 10))


def test_the_2d_network_uses_full_resolution_features_only_when_asked(small_net, small_image):
    """A change of the finest skip alone must reach the logits, or must not."""
    for asked in (False, True):
        net = small_net("ResEncUNet", 2, full_resolution_skip=asked).eval()
        skips = net.encoder(small_image(2))
        before = net.decoder(skips)
        after = net.decoder([skips[0] + 1, *skips[1:]])
        assert torch.equal(before, after) == (not asked)


def test_a_network_without_stem_reads_the_image_in_its_first_stage(small_net, small_image, name):
    net = small_net(name, 2, stem_blocks=0).eval()
    assert not any(key.startswith("encoder.stem") for key in net.state_dict())
    assert net(small_image(2)).shape == (2, 3, 16, 24)


def test_the_bottleneck_mixer_is_all_that_bot_adds_to_the_control(small_net, small_image):
    bot, control = small_net("UMambaBot", 2).eval(), small_net("ResEncUNet", 2).eval()
    control.load_state_dict({key: value for key, value in bot.state_dict().items() if "mamba_layer" not in key})
    skips = bot.encoder(small_image(2))
    torch.testing.assert_close(control.decoder(skips), control(small_image(2)))
    skips[-1] = bot.mamba_layer(skips[-1])
    torch.testing.assert_close(control.decoder(skips), bot(small_image(2)))


def test_channels_last_gives_the_same_logits(small_net, small_image, name, spatial_dims):
    layout = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
    net, image = small_net(name, spatial_dims).eval().double(), small_image(spatial_dims).double()
    expected = net(image)
    torch.testing.assert_close(net.to(memory_format=layout)(image.to(memory_format=layout)), expected)


def test_channels_last_is_kept_from_the_image_to_the_logits(name):
    patch = {"patch_size": (16, 16)} if name == "UMambaEnc" else {}
    net = getattr(nets, name)(2, 2, 3, features=(16, 32), strides=(1, 2), **patch).to(memory_format=torch.channels_last)
    image = torch.randn(2, 2, 16, 16).to(memory_format=torch.channels_last)
    assert all(logits.is_contiguous(memory_format=torch.channels_last) for logits in net(image))


def test_bfloat16_autocast_on_a_cpu_gives_finite_logits_and_gradients(small_net, small_image, name, spatial_dims):
    net = small_net(name, spatial_dims)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(small_image(spatial_dims))
    sum(output.float().square().mean() for output in logits).backward()
    assert all(output.isfinite().all() for output in logits)
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_same_seed_and_input_give_the_same_bits(small_net, small_image, name):
    one, other = (small_net(name, 2) for _ in range(2))
    for first, second in zip(one(small_image(2)), other(small_image(2)), strict=True):
        assert torch.equal(first, second)


def test_second_gradients_flow_through_the_whole_network(small_net, small_image):
    """Methods that differentiate a gradient (sharpness, invariance penalties) need it."""
    net = small_net("UMambaBot", 2, deep_supervision=False).double()
    weights = list(net.parameters())
    grads = torch.autograd.grad(net(small_image(2).double()).square().mean(), weights, create_graph=True)
    second = torch.autograd.grad(sum(grad.square().sum() for grad in grads), weights, allow_unused=True)
    by_name = dict(zip(dict(net.named_parameters()), second, strict=True))
    for key in ("encoder.stem.0.conv1.weight", "mamba_layer.mamba.A_log", "mamba_layer.mamba.dt_proj.bias"):
        assert by_name[key].isfinite().all()
        assert by_name[key].abs().max() > 0


def test_an_argument_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="kernel_size"):
        UMambaBot(2, 1, 2, features=(4, 8), strides=(1, 2), kernel_size=3)
