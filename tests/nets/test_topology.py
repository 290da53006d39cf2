"""What a user writes becomes the stages of the released networks, or one clear sentence."""

import pytest

from uumamba.nets.topology import Topology


def topology(spatial_dims=2, **options):
    return Topology.of(spatial_dims, **({"features": (4, 8, 8), "strides": (1, 2, 2)} | options))


@pytest.mark.parametrize(
    ("stages", "encoder", "decoder"),
    [
        # Released code: one block in encoder stage s >= ceil(n/2) and in decoder stage s >= ceil((n-1)/2 + 0.5).
        (6, (2, 2, 2, 1, 1, 1), (2, 2, 2, 1, 1)),
        (7, (2, 2, 2, 2, 1, 1, 1), (2, 2, 2, 2, 1, 1)),
        (5, (2, 2, 2, 1, 1), (2, 2, 2, 1)),
        (2, (2, 1), (2,)),
    ],
)
def test_default_blocks_are_those_of_the_released_constructors(stages, encoder, decoder):
    found = topology(features=(4,) * stages, strides=(1,) + (2,) * (stages - 1))
    assert (found.encoder_blocks, found.decoder_blocks, found.stem_blocks) == (encoder, decoder, 2)


def test_given_blocks_are_taken_as_they_are():
    found = topology(encoder_blocks=[3, 2, 4], decoder_blocks=[2, 3], stem_blocks=0)
    assert (found.encoder_blocks, found.decoder_blocks, found.stem_blocks) == ((3, 2, 4), (2, 3), 0)


def test_the_full_resolution_skip_is_joined_in_3d_alone_unless_asked_for():
    assert [topology(dims).full_resolution_skip for dims in (2, 3)] == [False, True]
    assert topology(full_resolution_skip=True).full_resolution_skip
    assert not topology(3, full_resolution_skip=False).full_resolution_skip


def test_divisor_and_minimum_patch_follow_the_strides():
    found = topology(3, strides=((1, 1, 1), (1, 2, 2), (2, 2, 4)))
    assert found.required_divisor == (2, 4, 8)
    assert found.minimum_patch == (2, 4, 16)
    assert found.feature_map_sizes((4, 8, 16)) == ((4, 8, 16), (4, 4, 8), (2, 2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims should be 2 or 3; found 1"),
        ({"features": (4,)}, r"features should name at least 2 stages; found \(4,\)"),
        ({"features": (4, 0, 8)}, "features should be 1 or more at every stage"),
        ({"strides": (1, 2)}, "strides should have 3 entries, one a stage as in features; found 2"),
        ({"strides": ((1, 1), (2, 2), (2, 2, 2))}, "strides should give 2 positive numbers a stage"),
        ({"strides": (2, 2, 2)}, r"strides\[0\] should be 1 on every axis, the full resolution; found \(2, 2\)"),
        ({"kernel_sizes": (3, 3)}, "kernel_sizes should have 3 entries"),
        ({"kernel_sizes": 2}, "kernel_sizes should be odd"),
        ({"encoder_blocks": (1, 1)}, r"encoder_blocks should have 3 numbers for 3 stages; found \(1, 1\)"),
        ({"encoder_blocks": ()}, r"encoder_blocks should have 3 numbers for 3 stages; found \(\)"),
        ({"decoder_blocks": (1, 1, 1)}, "decoder_blocks should have 2 numbers for 3 stages"),
        ({"decoder_blocks": (1, 0)}, "decoder_blocks should be 1 or more"),
        ({"stem_blocks": -1}, r"stem_blocks should be 0 \(no stem\) or more; found -1"),
    ],
)
def test_stages_that_do_not_agree_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        topology(**options)


@pytest.mark.parametrize(("size", "fix"), [((8, 10), "axis 1 to 8 or 12"), ((3, 8), "axis 0 to 4")])
def test_a_patch_that_the_strides_do_not_divide_is_refused_with_the_nearest_sizes(refused, size, fix):
    with refused("patch_size", got=size) as error:
        topology().check_patch(size, name="patch_size")
    assert error.value.fix.endswith(fix)
    with pytest.raises(ValueError, match="2 spatial axes"):
        topology().check_patch((8,))
