"""Mamba block, and the layer that applies it to the voxels of a feature map."""

from math import ceil, log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uumamba.ops import causal_convolution, selective_scan
from uumamba.runtime.autocast import full_precision
from uumamba.runtime.errors import require


class Mamba(nn.Module):
    r"""Gated selective state-space model with mamba_ssm's parameter names, shapes and initial values.

    .. math:: \text{out} = W_o\,\mathrm{scan}(\mathrm{silu}(\mathrm{conv}(x)), \Delta, A, B, C, D, z), \quad
              (x, z) = W_i\,\text{input}, \quad A = -\exp(\text{A\_log})

    where the step sizes, B and C are projections of the convolved x. Causal: position l sees positions up to l. The
    bias of ``dt_proj`` enters only as the scan's ``delta_bias``; it starts as the inverse softplus of step sizes drawn
    log-uniformly from 0.001 to 0.1.

    Args:
        d_model: channels of the sequence.
        d_state: states a channel.
        d_conv: width of the causal depthwise convolution.
        expand: inner channels are ``expand * d_model``.

    Example:
        >>> Mamba(8)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])

    References:
        Gu & Dao, *Mamba: Linear-Time Sequence Modeling with Selective State Spaces*, 2023, arXiv:2312.00752.
        Differs from the paper: none known.
    """

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        self.d_inner = expand * d_model
        self.dt_rank = ceil(d_model / 16)
        self.d_state = d_state
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, padding=d_conv - 1, groups=self.d_inner)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        self._init_step_sizes(smallest=1e-3, largest=0.1, floor=1e-4)

    def _init_step_sizes(self, *, smallest: float, largest: float, floor: float) -> None:
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        steps = torch.exp(torch.empty(self.d_inner).uniform_(log(smallest), log(largest))).clamp(min=floor)
        with torch.no_grad():
            self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, sequence: Tensor) -> Tensor:
        """``(batch, length, d_model)`` to the same.

        The channels stay innermost in memory; every transpose is a view.
        """
        # Two products rather than one cut in two, whose gradients would have to be joined by a copy.
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
        projected: Tensor = self.out_proj(y.mT)
        return projected


class MambaLayer(nn.Module):
    """Mamba over the normalised voxels of a feature map in raster order, without a residual path.

    Voxels are the sequence and channels its width, or with ``channel_tokens`` the other way round: then ``dim`` is the
    number of voxels, and only feature maps of exactly that many fit. Runs in the precision of its weights, whatever
    autocast says around it, because the scan's decays do not survive half precision; the output has the input's type.

    Args:
        dim: width of the sequence: channels, or voxels with ``channel_tokens``.
        channel_tokens: let channels be the sequence.

    Raises:
        UsageError: from ``forward``, if the feature map does not have ``dim`` channels (or voxels).

    Example:
        >>> MambaLayer(8)(torch.zeros(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
        >>> MambaLayer(16, channel_tokens=True)(torch.zeros(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])

    References:
        Ma, Li & Wang, *U-Mamba*, 2024, arXiv:2401.04722.
        Differs from the released code: bfloat16 input is cast in every variant, not in some.
    """

    def __init__(self, dim: int, *, channel_tokens: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.channel_tokens = channel_tokens
        self.norm = nn.LayerNorm(dim)
        self.mamba = Mamba(dim)

    def forward(self, features: Tensor) -> Tensor:
        """``(batch, channels, *spatial)`` to the same, in the same memory format."""
        tokens = features.flatten(2) if self.channel_tokens else features.flatten(2).transpose(1, 2)
        axis = "voxels" if self.channel_tokens else "channels"
        expected = f"a feature map of {self.dim} {axis}"
        require(tokens.shape[-1] == self.dim, "features", got=tuple(features.shape), expected=expected)
        with full_precision(features.device):
            mixed = self.mamba(self.norm(tokens.to(self.norm.weight.dtype)))
        mixed = mixed if self.channel_tokens else mixed.transpose(1, 2)
        return mixed.reshape(features.shape).to(features.dtype).contiguous(memory_format=_memory_format(features))


def _memory_format(features: Tensor) -> torch.memory_format:
    """Return the memory format of a feature map; another one would make the next convolution convert."""
    if features.is_contiguous():
        return torch.contiguous_format
    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(features.ndim, torch.contiguous_format)
