"""U-Mamba and its control: released weights, positions of Mamba layers."""

import json
from pathlib import Path

import pytest
import torch

from uumamba import nets
from uumamba.nets import UMambaEnc

FACTS = sorted((Path(__file__).parent / "facts").glob("*.json"))


def test_facts_cover_both_variants_in_both_dimensions():
    assert [path.stem for path in FACTS] == ["umamba_bot_2d", "umamba_bot_3d", "umamba_enc_2d", "umamba_enc_3d"]


@pytest.mark.parametrize("path", FACTS, ids=lambda path: path.stem)
def test_keys_and_shapes_are_those_of_the_released_networks(path):
    facts = json.loads(path.read_text(encoding="utf-8"))
    with torch.device("meta"):
        net = getattr(nets, facts["network"])(**facts["arguments"])
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == facts["shapes"]


def test_mamba_layers_are_where_the_released_networks_have_them():
    def stages(spatial_dims, count):
        strides = (1,) + (2,) * (count - 1)
        patch = (2**count,) * spatial_dims
        with torch.device("meta"):
            net = UMambaEnc(spatial_dims, 1, 2, features=(4,) * count, strides=strides, patch_size=patch)
        return sorted(int(stage) for stage in net.encoder.mamba_layers)

    assert stages(3, 4) == [0, 1, 2, 3]
    assert stages(2, 6) == [1, 3, 5]
    assert stages(2, 7) == [0, 2, 4, 6]


def test_channels_are_the_tokens_of_feature_maps_with_few_voxels():
    arguments = {"features": (4, 8, 8), "strides": (1, 2, 2)}
    with torch.device("meta"):
        layers = UMambaEnc(3, 1, 2, **arguments, patch_size=(8, 8, 8)).encoder.mamba_layers
        wider = UMambaEnc(3, 1, 2, **arguments, patch_size=(8, 8, 12))
    # Stage 2 has 2 * 2 * 2 = 8 voxels and 8 channels, with the longer patch 12 voxels.
    assert [(layer.dim, layer.channel_tokens) for layer in layers.values()] == [(4, False), (8, False), (8, True)]
    assert wider.fixed_patch is None


def test_a_patch_size_other_than_the_fixed_one_is_refused(small_net, small_image, refused):
    net = small_net("UMambaEnc", 2, patch_size=(8, 8))
    assert net.fixed_patch == (8, 8)
    with refused("image", got=(8, 16)):
        net(small_image(2, size=(8, 16)))
    with refused("patch_size", got=(8, 10)):
        small_net("UMambaEnc", 2, patch_size=(8, 10))


def test_full_resolution_skip_is_optional(small_net, small_image):
    """The finest skip changes the logits only with the option."""
    for has_skip in (False, True):
        net = small_net("ResEncUNet", 2, full_resolution_skip=has_skip).eval()
        skips = net.encoder(small_image(2))
        before = net.decoder(skips)
        after = net.decoder([skips[0] + 1, *skips[1:]])
        assert torch.equal(before, after) == (not has_skip)


@pytest.mark.parametrize("name", ["UMambaBot", "UMambaEnc", "ResEncUNet"])
def test_network_without_stem_has_the_image_as_input_of_its_first_stage(small_net, small_image, name):
    net = small_net(name, 2, stem_blocks=0).eval()
    assert not any(key.startswith("encoder.stem") for key in net.state_dict())
    assert net(small_image(2)).shape == (2, 3, 16, 24)


def test_bottleneck_layer_is_the_only_difference_of_bot_and_control(small_net, small_image):
    bot, control = small_net("UMambaBot", 2).eval(), small_net("ResEncUNet", 2).eval()
    control.load_state_dict({key: value for key, value in bot.state_dict().items() if "mamba_layer" not in key})
    skips = bot.encoder(small_image(2))
    torch.testing.assert_close(control.decoder(skips), control(small_image(2)))
    skips[-1] = bot.mamba_layer(skips[-1])
    torch.testing.assert_close(control.decoder(skips), bot(small_image(2)))
