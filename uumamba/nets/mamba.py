"""Mamba block, and its layer for feature maps."""

from math import ceil, log
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uumamba.ops import causal_convolution, selective_scan
from uumamba.runtime.autocast import full_precision
from uumamba.runtime.errors import require
from uumamba.runtime.memory_format import to_channels_last
from uumamba.runtime.options import check_options


class Mamba(nn.Module):
    r"""Gated selective state-space model, compatible with mamba_ssm.

    .. math:: \text{out} = W_o\,\mathrm{scan}(\mathrm{silu}(\mathrm{conv}(x)), \Delta, A, B, C, D, z), \quad
              (x, z) = W_i\,\text{input}, \quad A = -\exp(\text{A\_log})

    The step sizes, B and C are projections of the convolved x. The block is causal: the output at position l depends on
    positions up to l. Parameters have mamba_ssm's names, shapes and initial values. The bias of ``dt_proj`` is only the
    ``delta_bias`` of the scan; its initial values are the inverse softplus of step sizes, log-uniform in [0.001, 0.1].

    As in mamba_ssm, ``A_log`` and ``D`` carry the mark ``_no_weight_decay = True``, also in copies. The mark changes
    nothing by itself: give marked parameters a group without decay, as in the example.

    Args:
        d_model: channels of the sequence.
        d_state: states per channel.
        d_conv: width of the causal depthwise convolution.
        expand: ratio of inner channels to ``d_model``.

    Example:
        >>> Mamba(8)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
        >>> marked = [each for each in Mamba(8).parameters() if getattr(each, "_no_weight_decay", False)]
        >>> groups = [{"params": marked, "weight_decay": 0.0}]  # and a second group with the others
        >>> [tuple(each.shape) for each in marked]
        [(16, 16), (16,)]

    References:
        Gu & Dao, *Mamba: Linear-Time Sequence Modeling with Selective State Spaces*, 2023, arXiv:2312.00752.
        Differs from the paper: none known.
    """

    @check_options
    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        self.d_inner = expand * d_model
        self.dt_rank = ceil(d_model / 16)
        self.d_state = d_state
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, padding=d_conv - 1, groups=self.d_inner)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.empty(self.d_inner, d_state))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        if not self.A_log.is_meta:  # without values, arithmetic would import torch's compiler for a second
            self._init_steps()
        self._mark_undecayed()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch does not type it
        self._mark_undecayed()  # a deep copy of a parameter has no marks

    @torch.no_grad()
    def _init_steps(self) -> None:
        """Set A to -1, ..., -d_state, and draw the steps."""
        self.A_log.copy_(torch.arange(1.0, self.A_log.shape[1] + 1).log().repeat(self.d_inner, 1))
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        steps = torch.exp(torch.empty(self.d_inner).uniform_(log(1e-3), log(0.1)))
        self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def _mark_undecayed(self) -> None:
        for param in (self.A_log, self.D):
            param._no_weight_decay = True  # type: ignore[attr-defined]  # the mark of mamba_ssm

    def forward(self, sequence: Tensor) -> Tensor:
        """``(batch, length, d_model)`` to the same.

        Channels are innermost in memory; every transpose is a view.
        """
        # Two products: the gradients of a single product would need a copy to be joined.
        x, z = (F.linear(sequence, weight).mT for weight in self.in_proj.weight.chunk(2))
        x = causal_convolution(x, self.conv1d.weight[:, 0], self.conv1d.bias)
        delta, B, C = self.x_proj(x.mT).split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        y = selective_scan(
            x,
            F.linear(delta, self.dt_proj.weight).mT,
            -torch.exp(self.A_log),
            B.mT,
            C.mT,
            self.D,
            z=z,
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
        )
        assert isinstance(y, Tensor)
        return cast(Tensor, self.out_proj(y.mT))


class MambaLayer(nn.Module):
    """Layer norm and Mamba over the voxels of a feature map.

    Voxels in raster order are the sequence and channels its width. With ``channel_tokens`` it is the reverse: then
    ``dim`` is the number of voxels, and all feature maps must have this number. There is no residual path. The layer
    computes in the precision of its weights, also under autocast, because the scan's decays need it; the output has the
    type of the input.

    Args:
        dim: width of the sequence: number of channels, or of voxels with ``channel_tokens``.
        channel_tokens: use channels as the sequence.

    Raises:
        UsageError: in ``forward``, if the feature map does not have ``dim`` channels (or voxels).

    Example:
        >>> MambaLayer(8)(torch.zeros(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
        >>> MambaLayer(16, channel_tokens=True)(torch.zeros(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])

    References:
        Ma, Li & Wang, *U-Mamba*, 2024, arXiv:2401.04722.
        Differs from the released code: bfloat16 input is cast in every variant.
    """

    @check_options
    def __init__(self, dim: int, *, channel_tokens: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.channel_tokens = channel_tokens
        self.norm = nn.LayerNorm(dim)
        self.mamba = Mamba(dim)

    def forward(self, features: Tensor) -> Tensor:
        """``(batch, channels, *spatial)`` to the same, in the same memory format."""
        tokens = features.flatten(2) if self.channel_tokens else features.flatten(2).transpose(1, 2)
        require(
            tokens.shape[-1] == self.dim,
            "features",
            got=tuple(features.shape),
            expected=f"a feature map of {self.dim} {'voxels' if self.channel_tokens else 'channels'}",
        )
        with full_precision(features.device):
            mixed = self.mamba(self.norm(tokens.to(self.norm.weight.dtype)))
        mixed = mixed if self.channel_tokens else mixed.transpose(1, 2)
        mixed = mixed.reshape(features.shape).to(features.dtype)
        # In another memory format the next convolution would convert its input.
        return mixed.contiguous() if features.is_contiguous() else to_channels_last(mixed)
