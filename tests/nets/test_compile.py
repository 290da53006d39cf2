"""Compiled networks: traced forward and backward equal the original."""

import pytest
import torch

from uumamba.nets import UMambaBot, UMambaEnc

NETS = {
    "bottleneck, 2-D": lambda: UMambaBot(2, 1, 3, features=(4, 8), strides=(1, 2), encoder_blocks=(1, 1)),
    "encoder, 3-D": lambda: UMambaEnc(3, 1, 3, features=(2, 8), strides=(1, 2), patch_size=(2, 4, 4), stem_blocks=0),
}


def compute_outputs_and_gradients(net, image, run):
    logits = run(image)
    grads = torch.autograd.grad(sum(each.square().mean() for each in logits), list(net.parameters()))
    return [*logits, *grads]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
@pytest.mark.parametrize("net", NETS)
def test_compiled_network_gives_the_same_output_and_gradients(net):
    net = NETS[net]()
    image = torch.randn(1, 1, *((2,) if net.spatial_dims == 3 else ()), 4, 4)
    found, expected = (
        compute_outputs_and_gradients(net, image, run) for run in (torch.compile(net, backend="aot_eager"), net)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
