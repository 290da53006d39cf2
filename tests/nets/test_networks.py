"""Contract of all networks: sizes, heads, gradients, layouts and precision."""

import copy
import re

import pytest
import torch

from uumamba import nets
from uumamba.runtime.errors import UsageError

# InstanceNorm subtracts the mean, and with it the bias of the convolution before it.
BIAS_BEFORE_NORM = re.compile(
    r"(stem|stages\.\d+)\.\d+\.(conv[12]|conv[12]\.conv)\.bias|(stem\.convs\.0|blocks\.\d+\.conv[12])\.conv\.bias"
)


def test_training_gives_logits_of_every_stage_finest_first_and_evaluation_the_finest(
    small_net, small_image, name, spatial_dims
):
    net, image = small_net(name, spatial_dims), small_image(spatial_dims)
    logits = net(image)
    halves = (2, 2) if spatial_dims == 2 else (1, 2, 2)
    coarse = tuple(size // step for size, step in zip(image.shape[2:], halves, strict=True))
    assert [tuple(output.shape) for output in logits] == [(2, 3, *image.shape[2:]), (2, 3, *coarse)]
    torch.testing.assert_close(net.eval()(image), logits[0])


def test_network_without_deep_supervision_has_one_head_with_the_same_name(small_net, small_image, name):
    deep, plain = small_net(name, 2).eval(), small_net(name, 2, deep_supervision=False)
    extra = set(deep.state_dict()) - set(plain.state_dict())
    assert extra == {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"}
    plain.load_state_dict(deep.state_dict(), strict=False)
    torch.testing.assert_close(plain(small_image(2)), deep(small_image(2)))


def test_every_parameter_gets_a_finite_nonzero_gradient(small_net, small_image, name, spatial_dims):
    net = small_net(name, spatial_dims).double()
    for key, weight in net.named_parameters():
        if key.endswith("conv2.norm.weight"):  # initially zero in legacy networks, so layers before it have no gradient
            torch.nn.init.ones_(weight)
    logits = net(small_image(spatial_dims).double())
    sum(output.softmax(1)[:, 0].square().mean() for output in logits).backward()
    for key, weight in net.named_parameters():
        largest = weight.grad.abs().max()
        assert largest < 1e-12 if BIAS_BEFORE_NORM.search(key) else 1e-9 < largest < torch.inf, key


def test_smallest_patch_at_batch_one_trains(small_net, small_image, name, spatial_dims):
    size = small_net("ResEncUNet", spatial_dims).minimum_patch
    net = small_net(name, spatial_dims, **({"patch_size": size} if name == "UMambaEnc" else {}))
    assert net.minimum_patch == size
    sum(output.square().sum() for output in net(small_image(spatial_dims, batch=1, size=size))).backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_only_sizes_that_the_strides_divide_are_allowed(small_net, small_image, name, spatial_dims, refused):
    net = small_net(name, spatial_dims).eval()
    assert net.required_divisor == ((4, 4) if spatial_dims == 2 else (2, 4, 4))
    if name == "UMambaEnc":
        net = small_net(
            name, spatial_dims, features=(2, 2, 2)
        ).eval()  # all feature maps have fewer channels than voxels
        assert net.fixed_patch is None
    for factors in ((1, 2, 3), (3, 1, 2), *(() if name == "UMambaEnc" else ((1, 1, 1),))):
        size = tuple(f * d for f, d in zip(factors[:spatial_dims], net.required_divisor, strict=True))
        assert net(small_image(spatial_dims, size=size)).shape == (2, 3, *size)
    size = (18, 24) if spatial_dims == 2 else (4, 18, 24)
    with refused("image", got=size):
        net(small_image(spatial_dims, size=size))


def test_arguments_are_neither_changed_nor_kept(name):
    arguments = {"features": [4, 6, 8], "strides": [[1, 1], [2, 2], [2, 2]], "kernel_sizes": [[3, 3], [3, 3], [3, 3]]}
    arguments |= {"encoder_blocks": [2, 2, 2], "decoder_blocks": [2, 2]}
    if name == "UMambaEnc":
        arguments["patch_size"] = [8, 8]
    before = copy.deepcopy(arguments)
    net = getattr(nets, name)(2, 1, 2, **arguments).eval()
    assert arguments == before
    arguments["strides"][1][0] = 5
    arguments["features"].clear()
    assert net.required_divisor == (4, 4)
    assert net(torch.zeros(1, 1, 8, 8)).shape == (1, 2, 8, 8)


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


def test_bfloat16_autocast_gives_finite_logits_and_gradients(small_net, small_image, name, spatial_dims):
    net = small_net(name, spatial_dims)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(small_image(spatial_dims))
    sum(output.float().square().mean() for output in logits).backward()
    assert all(output.isfinite().all() for output in logits)
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_same_seed_and_input_give_the_same_bits(small_net, small_image, name):
    one, other = (small_net(name, 2)(small_image(2)) for _ in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_unknown_argument_is_refused(small_net, name):
    key = "stem_blocks" if "Legacy" in name else "kernel_size"
    with pytest.raises((TypeError, UsageError), match=key):
        small_net(name, 2, **{key: 3})


def test_second_gradients_flow_through_the_whole_network(small_net, small_image):
    """Sharpness and invariance penalties differentiate a gradient."""
    net = small_net("UMambaBot", 2, deep_supervision=False).double()
    weights = dict(net.named_parameters())
    grads = torch.autograd.grad(net(small_image(2).double()).square().mean(), list(weights.values()), create_graph=True)
    keys = ("encoder.stem.0.conv1.weight", "mamba_layer.mamba.A_log", "mamba_layer.mamba.dt_proj.bias")
    for second in torch.autograd.grad(sum(grad.square().sum() for grad in grads), [weights[key] for key in keys]):
        assert 0 < second.abs().max() < torch.inf
