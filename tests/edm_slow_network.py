"""A second implementation of EDM's raw networks, from their description alone, in float64.

The state dict is read by name, resampling is a matrix, attention an explicit sum over head,
channel and part. Slow and short; `test_edm_networks.py` compares the real networks with it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from data.teachers.edm.networks import DhariwalConfig, SongConfig

State = dict[str, Tensor]


def part(state: State, name: str) -> State:
    return {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)


def norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    channels = x.shape[1]
    groups = x.reshape(len(x), min(32, channels // 4), -1)
    mean, var = groups.mean(2, keepdim=True), groups.var(2, correction=0, keepdim=True)
    flat = ((groups - mean) / (var + eps).sqrt()).reshape(x.shape)
    return flat * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def resampling(size: int, taps: tuple[int, ...], mode: str, margin: int) -> Tensor:
    """Return the matrix that resamples one axis of `size` points; beyond them there is zero."""
    out = 2 * size if mode == "up" else (size + 2 * margin - len(taps)) // 2 + 1
    matrix = torch.zeros(out, size, dtype=torch.float64)
    for i in range(out):
        for j in range(size):
            tap = i + margin - 2 * j if mode == "up" else j + margin - 2 * i
            if 0 <= tap < len(taps):
                matrix[i, j] = taps[tap] / sum(taps) * (2 if mode == "up" else 1)
    return matrix


def resample(x: Tensor, taps: tuple[int, ...], mode: str, margin: int) -> Tensor:
    rows, columns = (resampling(n, taps, mode, margin) for n in x.shape[2:])
    return torch.einsum("ih,jw,bchw->bcij", rows, columns, x)


def conv(state: State, name: str, x: Tensor, padding: int | None = None) -> Tensor:
    weight = state.get(f"{name}.weight")
    if weight is None:
        return x
    margin = weight.shape[-1] // 2 if padding is None else padding
    bias = state.get(f"{name}.bias") if padding is None else None
    return F.conv2d(x, weight, bias, padding=margin)


class SlowNetwork:
    """One network from its configuration and state dict."""

    def __init__(self, config: SongConfig | DhariwalConfig, state: State) -> None:
        self.c = config
        self.song = config if isinstance(config, SongConfig) else None
        self.state = {k: v.double() for k, v in state.items()}
        self.eps = 1e-6 if self.song else 1e-5
        self.k = math.sqrt(0.5) if self.song else 1.0
        self.taps = self.song.resample_filter if self.song else (1, 1)

    def attention(self, state: State, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = conv(state, "qkv", norm(state, "norm2", x, self.eps)).flatten(2)
        heads = 1 if self.song else channels // 64
        w, out = channels // heads, torch.zeros(batch, channels, height * width).double()
        for head in range(heads):
            for b in range(batch):
                q, k, v = (
                    torch.stack([qkv[b, head * 3 * w + c * 3 + j] for c in range(w)])
                    for j in range(3)
                )
                weights = (q.T @ k / math.sqrt(w)).softmax(dim=1)
                out[b, head * w : (head + 1) * w] = v @ weights.T
        return conv(state, "proj", out.reshape(x.shape))

    def block(self, name: str, x: Tensor, emb: Tensor) -> Tensor:
        state = part(self.state, name)
        mode = name.rpartition("_")[2]
        margin = (len(self.taps) - 1) // 2

        def sized(x: Tensor) -> Tensor:
            return resample(x, self.taps, mode, margin) if mode in ("up", "down") else x

        hidden = conv(state, "conv0", sized(silu(norm(state, "norm0", x, self.eps))))
        s = linear(state, "affine", emb)[:, :, None, None]
        if self.song:
            hidden = silu(norm(state, "norm1", hidden + s, self.eps))
        else:
            half = s.shape[1] // 2
            hidden = norm(state, "norm1", hidden, self.eps)
            hidden = silu(hidden * (1 + s[:, :half]) + s[:, half:])
        x = (conv(state, "conv1", hidden) + conv(state, "skip", sized(x))) * self.k
        return (x + self.attention(state, x)) * self.k if "qkv.weight" in state else x

    def embed(self, t: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        s = self.state
        half = s["map_layer0.weight"].shape[1] // 2
        i = torch.arange(half).double()
        if "map_noise.freqs" in s:
            angles = t[:, None] * 2 * math.pi * s["map_noise.freqs"]
        else:
            angles = t[:, None] * 10000 ** (-i / (half - 1 if self.song else half))
        halves = [angles.sin(), angles.cos()] if self.song else [angles.cos(), angles.sin()]
        emb = torch.cat(halves, dim=1)
        if self.song and labels is not None:
            emb = emb + linear(s, "map_label", labels * math.sqrt(labels.shape[1]))
        if augment is not None:
            emb = emb + linear(s, "map_augment", augment)
        emb = linear(s, "map_layer1", silu(linear(s, "map_layer0", emb)))
        if not self.song and labels is not None:
            emb = emb + linear(s, "map_label", labels)
        return silu(emb)

    def __call__(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        c, emb, side, stack = self.c, self.embed(t, labels, augment), x, []
        sizes = [c.img_resolution // 2**level for level in range(len(c.channel_mult))]
        for level, r in enumerate(sizes):
            if level == 0:
                x = conv(self.state, f"enc.{r}x{r}_conv", x)
            else:
                x = self.block(f"enc.{r}x{r}_down", x, emb)
                if self.song and self.song.encoder_type == "residual":
                    x = side = (x + self.fused_down(f"enc.{r}x{r}_aux_residual", side)) / 2**0.5
            stack.append(x)
            for i in range(c.num_blocks):
                x = self.block(f"enc.{r}x{r}_block{i}", x, emb)
                stack.append(x)
        for r in reversed(sizes):
            first = ("in0", "in1") if r == sizes[-1] else ("up",)
            for name in first:
                x = self.block(f"dec.{r}x{r}_{name}", x, emb)
            for i in range(c.num_blocks + 1):
                x = self.block(f"dec.{r}x{r}_block{i}", torch.cat([x, stack.pop()], 1), emb)
        last = f"dec.{sizes[0]}x{sizes[0]}_aux_" if self.song else "out_"
        return conv(self.state, f"{last}conv", silu(norm(self.state, f"{last}norm", x, self.eps)))

    def fused_down(self, name: str, x: Tensor) -> Tensor:
        x = conv(self.state, name, x, padding=1 + (len(self.taps) - 1) // 2)
        return resample(x, self.taps, "down", 0) + self.state[f"{name}.bias"][:, None, None]
