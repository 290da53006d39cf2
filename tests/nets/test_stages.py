"""Defaults of the released networks and validation of stages."""

import pytest

from uumamba.nets.stages import Topology


def topology(spatial_dims=2, **options):
    return Topology.build(spatial_dims, **({"features": (4, 8, 8), "strides": (1, 2, 2)} | options))


@pytest.mark.parametrize(
    ("stages", "encoder", "decoder"),
    [
        # Released code: one block in encoder stage s >= ceil(n/2) and in decoder stage s >= ceil((n-1)/2 + 0.5).
        (6, (2, 2, 2, 1, 1, 1), (2, 2, 2, 1, 1)),
        (5, (2, 2, 2, 1, 1), (2, 2, 2, 1)),
        (2, (2, 1), (2,)),
    ],
)
def test_default_blocks_are_those_of_the_released_constructors(stages, encoder, decoder):
    found = topology(features=(4,) * stages, strides=(1,) + (2,) * (stages - 1))
    assert (found.encoder_blocks, found.decoder_blocks, found.stem_blocks) == (encoder, decoder, 2)


def test_given_blocks_and_skip_replace_the_defaults():
    found = topology(encoder_blocks=[3, 2, 4], decoder_blocks=[2, 3], stem_blocks=0, full_resolution_skip=True)
    assert (found.encoder_blocks, found.decoder_blocks, found.stem_blocks) == ((3, 2, 4), (2, 3), 0)
    assert found.full_resolution_skip
    assert [topology(dims).full_resolution_skip for dims in (2, 3)] == [False, True]
    assert not topology(3, full_resolution_skip=False).full_resolution_skip


def test_divisor_and_minimum_patch_follow_the_strides():
    found = topology(3, strides=((1, 1, 1), (1, 2, 2), (2, 2, 4)))
    assert found.required_divisor == (2, 4, 8)
    assert found.minimum_patch == (2, 4, 16)
    assert found.feature_map_sizes((4, 8, 16)) == ((4, 8, 16), (4, 4, 8), (2, 2, 2))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spatial_dims", 1),
        ("features", (4,)),
        ("features", (4, 0, 8)),
        ("strides", (1, 2)),
        ("strides", ((1, 1), (2, 2), (2, 2, 2))),
        ("strides", (2, 2, 2)),
        ("kernel_sizes", (3, 3)),
        ("kernel_sizes", 2),
        ("encoder_blocks", (1, 1)),
        ("decoder_blocks", (1, 1, 1)),
        ("decoder_blocks", (1, 0)),
        ("stem_blocks", -1),
    ],
)
def test_invalid_stages_are_refused(refused, key, value):
    with refused(key, got=value):
        topology(**{key: value})


@pytest.mark.parametrize(("size", "fix"), [((8, 10), "axis 1 to 8 or 12"), ((3, 8), "axis 0 to 4"), ((8,), "")])
def test_patch_that_the_strides_do_not_divide_is_refused_with_the_nearest_sizes(refused, size, fix):
    with refused("patch_size", got=size) as error:
        topology().check_patch(size, name="patch_size")
    assert error.value.fix.endswith(fix)
