"""A network gives the same output when torch compiles it: forward and backward traced, run without generated code."""

import pytest
import torch

from uumamba.nets import UMambaBot, UMambaEnc

NETS = {
    "bottleneck, 2-D": lambda: UMambaBot(2, 1, 3, features=(8, 16), strides=(1, 2)),
    "encoder, 3-D": lambda: UMambaEnc(3, 1, 3, features=(4, 8), strides=(1, 2), patch_size=(4, 8, 8)),
}


def outputs_and_gradients(net, image, run):
    logits = run(image)
    logits = logits if isinstance(logits, list) else [logits]
    grads = torch.autograd.grad(sum(each.square().mean() for each in logits), list(net.parameters()))
    return [*logits, *grads]


@pytest.mark.parametrize("net", NETS)
def test_compiled_network_gives_the_same_output_and_gradients(net):
    torch.manual_seed(0)
    net = NETS[net]()
    image = torch.randn(1, 1, *((4,) if net.spatial_dims == 3 else ()), 8, 8)
    expected = outputs_and_gradients(net, image, net)
    found = outputs_and_gradients(net, image, torch.compile(net, backend="aot_eager"))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
