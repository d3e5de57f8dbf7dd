"""The raw networks F of EDM: SongUNet (DDPM++ and NCSN++) and DhariwalUNet (ADM).

Modules are named as in NVlabs' checkpoints, so their state dicts load as they are. Layers are in
layers.py.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from data.teachers.edm.layers import (
    Block,
    BlockStyle,
    Conv,
    FourierEmbedding,
    PositionalEmbedding,
    group_norm,
)
from get.errors import InputError

OneHot = Float[Tensor, "batch classes"]
Augment = Float[Tensor, "batch augment_dim"]
Embedding = Float[Tensor, "batch_or_1 emb_channels"]
LIMITS = {  # lowest and highest value: a damaged file cannot ask for an enormous network
    "img_resolution": (1, 4096),
    "img_channels": (1, 64),
    "label_dim": (0, 2**20),
    "augment_dim": (0, 1024),
    "model_channels": (4, 2**14),
    "channel_mult": (1, 64),
    "channel_mult_emb": (1, 64),
    "channel_mult_noise": (1, 64),
    "num_blocks": (1, 64),
    "attn_resolutions": (0, 4096),
    "resample_filter": (1, 1024),
}


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Settings of both networks, with the names and defaults of EDM's code.

    Attributes:
        img_resolution: Height and width of the images.
        img_channels: Their channels.
        label_dim: Classes; 0 is unconditional.
        augment_dim: Width of the augmentation labels of training; 0 is none.
        model_channels: Width that the factors below multiply.
        channel_mult: Factor of every level's width.
        channel_mult_emb: Factor of the embedding's width.
        num_blocks: Residual blocks per level.
        attn_resolutions: Resolutions with self-attention.
        dropout: Of training.
        label_dropout: Of training.
    """

    img_resolution: int
    img_channels: int
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.10
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse sizes that no network of this kind has."""
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name, low)
            for number in value if isinstance(value, tuple) else (value,):
                if not low <= number <= high:
                    raise InputError(f"expected {name} from {low} to {high}, got {number}")
        coarsest = 2 ** (len(self.channel_mult) - 1)
        if not 1 <= len(self.channel_mult) <= 12 or self.img_resolution % coarsest:
            raise InputError(
                f"expected 1 to 12 levels that halve img_resolution {self.img_resolution} evenly, "
                f"got channel_mult of {len(self.channel_mult)}"
            )
        if self.model_channels % 4:
            raise InputError(f"expected model_channels divisible by 4, got {self.model_channels}")


@dataclass(frozen=True, kw_only=True)
class SongConfig(UNetConfig):
    """A SongUNet: DDPM++ by default, NCSN++ with fourier, residual and [1, 3, 3, 1].

    Attributes:
        embedding_type: How the noise level enters.
        channel_mult_noise: Factor of the noise level's embedding.
        encoder_type: "residual" feeds the scaled image into every level of the encoder.
        decoder_type: Released checkpoints have "standard" only.
        resample_filter: One-dimensional filter of up- and downsampling.
    """

    embedding_type: Literal["positional", "fourier"] = "positional"
    channel_mult_noise: int = 1
    encoder_type: Literal["standard", "residual"] = "standard"
    decoder_type: Literal["standard"] = "standard"
    resample_filter: tuple[int, ...] = (1, 1)

    def __post_init__(self) -> None:
        """Refuse a filter that does not halve the resolution."""
        super().__post_init__()
        if len(taps := self.resample_filter) not in (2, 4, 6, 8):
            raise InputError(f"expected a resample_filter of even length, got {taps}")


@dataclass(frozen=True, kw_only=True)
class DhariwalConfig(UNetConfig):
    """A DhariwalUNet, by default that of ImageNet-64."""

    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (32, 16, 8)


def _encoder(c: UNetConfig, style: BlockStyle) -> tuple[nn.ModuleDict, list[int]]:
    """Return the encoder's entries in order, and the widths of its outputs for the decoder."""
    residual = isinstance(c, SongConfig) and c.encoder_type == "residual"
    first = c.model_channels * (1 if isinstance(c, SongConfig) else c.channel_mult[0])
    enc, widths, side = nn.ModuleDict(), [first], c.img_channels
    emb = c.channel_mult_emb * c.model_channels
    for level, factor in enumerate(c.channel_mult):
        r, width = c.img_resolution >> level, widths[-1]
        name = f"{r}x{r}"
        if level == 0:
            enc[f"{name}_conv"] = Conv(c.img_channels, first, 3)
        else:
            enc[f"{name}_down"] = Block(width, width, emb, style, resample="down")
            widths.append(width)
            if residual:
                taps = style.resample_filter
                fused = Conv(side, width, 3, resample="down", taps=taps, fused_resample=True)
                enc[f"{name}_aux_residual"] = fused
                side = width
        for i in range(c.num_blocks):
            out, attention = factor * c.model_channels, r in c.attn_resolutions
            enc[f"{name}_block{i}"] = Block(widths[-1], out, emb, style, attention=attention)
            widths.append(out)
    return enc, widths


def _decoder(c: UNetConfig, style: BlockStyle, widths: list[int]) -> tuple[nn.ModuleDict, int]:
    """Return the decoder's entries in order and its last width; empties `widths`."""
    song, dec, width = isinstance(c, SongConfig), nn.ModuleDict(), widths[-1]
    emb = c.channel_mult_emb * c.model_channels
    for level, factor in reversed(list(enumerate(c.channel_mult))):
        r = c.img_resolution >> level
        name = f"{r}x{r}"
        if level == len(c.channel_mult) - 1:
            dec[f"{name}_in0"] = Block(width, width, emb, style, attention=True)
            dec[f"{name}_in1"] = Block(width, width, emb, style)
        else:
            dec[f"{name}_up"] = Block(width, width, emb, style, resample="up")
        for i in range(c.num_blocks + 1):
            attention = r in c.attn_resolutions and (i == c.num_blocks or not song)
            skip, out = widths.pop(), factor * c.model_channels
            dec[f"{name}_block{i}"] = Block(width + skip, out, emb, style, attention=attention)
            width = out
    return dec, width


class UNet(nn.Module, ABC):
    """What both networks share, from the embedding to the output."""

    last: str  # the output's norm and convolution are named so, then "norm" and "conv"
    sines_first: bool  # in the embedding of the noise level
    map_label: nn.Linear | None

    def __init__(
        self, config: UNetConfig, style: BlockStyle, map_noise: nn.Module, noise: int
    ) -> None:
        """Make all but labels and output; `noise` channels are what `map_noise` returns."""
        super().__init__()
        c = self.config = config
        emb = c.channel_mult_emb * c.model_channels
        self.map_noise = map_noise
        self.map_augment = nn.Linear(c.augment_dim, noise, bias=False) if c.augment_dim else None
        self.map_layer0 = nn.Linear(noise, emb)
        self.map_layer1 = nn.Linear(emb, emb)
        self.enc, widths = _encoder(c, style)
        self.dec, self.width = _decoder(c, style, widths)

    def embed(
        self,
        c_noise: Float[Tensor, " levels"],
        labels: OneHot | None,
        augment: Augment | None = None,
    ) -> Embedding:
        """Return the embedding of noise levels, classes and augmentations; see `forward`."""
        waves = self.map_noise(c_noise).chunk(2, dim=1)  # cosines, sines
        emb = torch.cat(waves[::-1] if self.sines_first else waves, dim=1)
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment)
        if labels is None:
            labels = emb.new_zeros(1, self.config.label_dim)
        return F.silu(self._mix(emb, labels))

    @abstractmethod
    def _mix(self, emb: Tensor, labels: Tensor) -> Tensor:
        """Return the embedding before its last activation."""

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        c_noise: Float[Tensor, " levels"],
        labels: OneHot | None,
        augment: Augment | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Return F(x) of scaled noisy images.

        Args:
            x: c_in times the noisy images.
            c_noise: The noise condition: one for all, or one each.
            labels: One-hot classes; None is a row of zeros, no class.
            augment: Augmentation labels of training; None is a row of zeros, no augmentation.
        """
        emb, side, stack = self.embed(c_noise, labels, augment), x, []
        for name, layer in self.enc.items():
            if name.endswith("_aux_residual"):
                x = side = stack[-1] = (x + layer(side)) / math.sqrt(2)
            else:
                x = layer(x, emb) if isinstance(layer, Block) else layer(x)
                stack.append(x)
        for name, block in self.dec.items():  # they concatenate the encoder's outputs, last first
            if "_aux_" not in name:
                x = block(torch.cat([x, stack.pop()], dim=1) if "_block" in name else x, emb)
        norm, conv = (self.get_submodule(f"{self.last}{kind}") for kind in ("norm", "conv"))
        return conv(F.silu(norm(x)))


class SongUNet(UNet):
    """DDPM++ and NCSN++ of Song et al. (arXiv:2011.13456) as EDM uses them."""

    sines_first = True

    def __init__(self, config: SongConfig) -> None:
        """Make the network, its parameters zero."""
        style = BlockStyle(
            adaptive_scale=False,
            skip_scale=math.sqrt(0.5),
            eps=1e-6,
            resample_proj=True,
            channels_per_head=None,
            resample_filter=config.resample_filter,
        )
        noise = config.channel_mult_noise * config.model_channels
        fourier = config.embedding_type == "fourier"
        map_noise = (
            FourierEmbedding(noise) if fourier else PositionalEmbedding(noise, endpoint=True)
        )
        super().__init__(config, style, map_noise, noise)
        self.map_label = nn.Linear(config.label_dim, noise) if config.label_dim else None
        name = f"{config.img_resolution}x{config.img_resolution}_aux_"
        self.dec[f"{name}norm"] = group_norm(self.width, style.eps)
        self.dec[f"{name}conv"] = Conv(self.width, config.img_channels, 3)
        self.last = f"dec.{name}"

    def _mix(self, emb: Tensor, labels: Tensor) -> Tensor:
        if self.map_label is not None:  # its bias is added without a class as well
            emb = emb + self.map_label(labels * math.sqrt(labels.shape[1]))
        return self.map_layer1(F.silu(self.map_layer0(emb)))


class DhariwalUNet(UNet):
    """ADM of Dhariwal and Nichol (arXiv:2105.05233) as EDM uses it."""

    last = "out_"
    sines_first = False

    def __init__(self, config: DhariwalConfig) -> None:
        """Make the network, its parameters zero."""
        style = BlockStyle(
            adaptive_scale=True,
            skip_scale=1.0,
            eps=1e-5,
            resample_proj=False,
            channels_per_head=64,
            resample_filter=(1, 1),
        )
        noise = config.model_channels
        super().__init__(config, style, PositionalEmbedding(noise, endpoint=False), noise)
        emb = config.channel_mult_emb * noise
        self.map_label = nn.Linear(config.label_dim, emb, bias=False) if config.label_dim else None
        self.out_norm = group_norm(self.width, style.eps)
        self.out_conv = Conv(self.width, config.img_channels, 3)

    def _mix(self, emb: Tensor, labels: Tensor) -> Tensor:
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        return emb if self.map_label is None else emb + self.map_label(labels)
