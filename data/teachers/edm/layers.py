"""Layers of the EDM networks (arXiv:2206.00364), named as in NVlabs' checkpoints.

They are loaded, never trained: parameters start at zero and there is no dropout. Next:
networks.py puts them together.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from get.errors import InputError

Resample = Literal["up", "down"]


@dataclass(frozen=True, kw_only=True)
class BlockStyle:
    """What differs between the residual blocks of SongUNet and DhariwalUNet.

    Attributes:
        adaptive_scale: The embedding scales and shifts after the second norm instead of being
            added before it.
        skip_scale: Factor after each residual sum.
        eps: Of the group norms.
        resample_proj: The skip of a resampling block that keeps its width is a 1x1 convolution.
        channels_per_head: Channels per attention head; None is one head.
        resample_filter: One-dimensional filter of up- and downsampling.
    """

    adaptive_scale: bool
    skip_scale: float
    eps: float
    resample_proj: bool
    channels_per_head: int | None
    resample_filter: tuple[int, ...]


class Conv(nn.Module):
    """Convolution with zero padding that may double (up) or halve (down) the resolution first.

    With `fused_resample` the convolution runs before the filter of `down`, with its padding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        resample: Resample | None = None,
        taps: tuple[int, ...] = (1, 1),
        fused_resample: bool = False,
    ) -> None:
        """Make a convolution; kernel 0 resamples only and has no weights."""
        super().__init__()
        self.up, self.down = resample == "up", resample == "down"
        self.fused_resample = fused_resample
        self.weight = self.bias = None
        if kernel:
            self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, kernel, kernel))
            self.bias = nn.Parameter(torch.zeros(out_channels))
        row = torch.tensor(taps, dtype=torch.float32)
        smooth = torch.outer(row, row)[None, None] / row.sum() ** 2
        self.register_buffer("resample_filter", smooth if resample else None)
        self.resample_filter: Tensor | None

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Return the result; the bias is added last, after a fused filter too."""
        smooth, margin = self.resample_filter, 0
        if smooth is not None:
            margin = (smooth.shape[-1] - 1) // 2
            if not self.fused_resample:
                x = self._resampled(x, smooth, margin)
        if self.weight is not None:
            padding = self.weight.shape[-1] // 2 + (margin if self.fused_resample else 0)
            x = F.conv2d(x, self.weight, padding=padding)
        if smooth is not None and self.fused_resample:
            x = self._resampled(x, smooth, 0)
        # Under autocast the product is bf16; a float32 bias would make all that follows float32.
        return x if self.bias is None else x + self.bias.to(x.dtype)[:, None, None]

    def _resampled(self, x: Tensor, smooth: Tensor, padding: int) -> Tensor:
        convolution, factor = (F.conv_transpose2d, 4) if self.up else (F.conv2d, 1)
        weight = (factor * smooth).expand(x.shape[1], -1, -1, -1)
        return convolution(x, weight, stride=2, padding=padding, groups=x.shape[1])


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Return EDM's group norm: 32 groups, fewer where a group would have under 4 channels."""
    groups = min(32, channels // 4)
    if channels % groups:
        raise InputError(f"expected a width that {groups} groups share, got {channels}")
    return nn.GroupNorm(groups, channels, eps)


class PositionalEmbedding(nn.Module):
    """Cosines and sines of t at frequencies from 1 down to 1/10000."""

    def __init__(self, channels: int, endpoint: bool) -> None:
        """Make an embedding of an even number of channels; `endpoint`: the last one is 1/10000."""
        super().__init__()
        self.channels, self.endpoint = channels, endpoint

    def forward(self, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch channels"]:
        """Return [cosines, sines]."""
        half = self.channels // 2
        index = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = t.outer((1 / 10000) ** (index / (half - self.endpoint)))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Cosines and sines of t at stored random frequencies."""

    def __init__(self, channels: int) -> None:
        """Make an embedding of an even number of channels; its frequencies are loaded."""
        super().__init__()
        self.register_buffer("freqs", torch.zeros(channels // 2))
        self.freqs: Tensor

    def forward(self, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch channels"]:
        """Return [cosines, sines]; angles are large, so the order of products matters."""
        angles = t.outer(2 * math.pi * self.freqs)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class Block(nn.Module):
    """Residual block with the noise level's embedding and optional self-attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        style: BlockStyle,
        *,
        resample: Resample | None = None,
        attention: bool = False,
    ) -> None:
        """Make a block."""
        super().__init__()
        # No attention in blocks narrower than one head, even if it is configured.
        heads = out_channels // (style.channels_per_head or out_channels) if attention else 0
        if heads and out_channels % heads:
            width = out_channels
            raise InputError(f"expected a width that {heads} attention heads share, got {width}")
        self.num_heads = heads
        self.adaptive_scale, self.skip_scale = style.adaptive_scale, style.skip_scale
        taps = style.resample_filter
        self.norm0 = group_norm(in_channels, style.eps)
        self.conv0 = Conv(in_channels, out_channels, 3, resample=resample, taps=taps)
        self.affine = nn.Linear(emb_channels, out_channels * (2 if style.adaptive_scale else 1))
        self.norm1 = group_norm(out_channels, style.eps)
        self.conv1 = Conv(out_channels, out_channels, 3)
        self.skip = None
        if in_channels != out_channels or resample:
            kernel = 1 if in_channels != out_channels or style.resample_proj else 0
            self.skip = Conv(in_channels, out_channels, kernel, resample=resample, taps=taps)
        if self.num_heads:
            self.norm2 = group_norm(out_channels, style.eps)
            self.qkv = Conv(out_channels, 3 * out_channels, 1)
            self.proj = Conv(out_channels, out_channels, 1)

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        emb: Float[Tensor, "batch_or_1 emb_channels"],
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Return the block's output; an embedding of batch 1 is shared by all samples."""
        hidden = self.conv0(F.silu(self.norm0(x)))
        params = self.affine(emb)[:, :, None, None]
        if self.adaptive_scale:
            scale, shift = params.chunk(2, dim=1)
            hidden = F.silu(self.norm1(hidden) * (1 + scale) + shift)
        else:
            hidden = F.silu(self.norm1(hidden + params))
        x = (self.conv1(hidden) + (x if self.skip is None else self.skip(x))) * self.skip_scale
        if self.num_heads:
            x = (x + self.proj(self._attention(self.norm2(x)))) * self.skip_scale
        return x

    def _attention(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # Channels of qkv: head, then channel, then which of query, key and value.
        parts = self.qkv(x).reshape(batch, self.num_heads, -1, 3, height * width)
        q, k, v = (part.mT for part in parts.unbind(3))  # (batch, head, position, channel)
        mixed = F.scaled_dot_product_attention(q, k, v).mT
        return mixed.reshape(batch, channels, height, width)
