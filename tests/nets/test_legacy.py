"""Blocks of the legacy layout.

Names and shapes of weights are tested in ``test_official.py``.
"""

import torch
import torch.nn.functional as F


def test_every_stage_has_two_blocks_by_default(small_net, name):
    if "Legacy" in name:
        topology = small_net(name, 2).topology
        assert (topology.encoder_blocks, topology.decoder_blocks) == ((2, 2, 2), (2, 2))


def test_strided_block_equals_its_formula(small_net):
    block = small_net("LegacyUMambaEnc", 2).double().encoder.stages[1].blocks[0]
    for weight in block.parameters():
        torch.nn.init.normal_(weight)
    features = torch.randn(2, 4, 8, 8, dtype=torch.float64)

    def norm(x, part):
        return F.instance_norm(x, weight=part.norm.weight, bias=part.norm.bias)

    inner = norm(F.conv2d(features, block.conv1.conv.weight, block.conv1.conv.bias, stride=2, padding=1), block.conv1)
    inner = F.conv2d(F.leaky_relu(inner, 0.01), block.conv2.conv.weight, block.conv2.conv.bias, padding=1)
    skip = norm(F.conv2d(F.avg_pool2d(features, 2), block.skip[1].conv.weight), block.skip[1])
    torch.testing.assert_close(block(features), F.leaky_relu(norm(inner, block.conv2) + skip, 0.01))


def test_initial_block_equals_its_skip(small_net):
    block = small_net("LegacyUMambaEnc", 2).encoder.stages[1].blocks[1]
    features = torch.randn(1, 6, 4, 4)
    torch.testing.assert_close(block(features), F.leaky_relu(features, 0.01))
