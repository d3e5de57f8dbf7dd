"""DINOv2's vision transformer (arXiv:2304.07193), so that its published weights need no code.

torch-fidelity takes the network from torch.hub, which downloads and runs a repository. Here the
weights (`dinov2_vitl14_pretrain.pth`, say) are all that is needed. Parameters have the names of
those files. torch-fidelity's own class prepares the images.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

PATCH, GRID = 14, 37  # pixels of a patch; patches a side in training
SHAPES = {  # width, depth, heads
    "dinov2-vit-s-14": (384, 12, 6),
    "dinov2-vit-b-14": (768, 12, 12),
    "dinov2-vit-l-14": (1024, 24, 16),
    "dinov2-vit-g-14": (1536, 40, 24),
}


class DinoV2Features(FeatureExtractorDinoV2):
    """torch-fidelity's extractor around a network with given weights."""

    def __init__(self, name: str, state: dict[str, Tensor]) -> None:
        """Build it; the constructor above it would load from torch.hub."""
        FeatureExtractorBase.__init__(self, name, ["dinov2"])
        self.feature_extractor_internal_dtype = torch.float32
        self.model = DinoV2(*SHAPES[name], gated=name == "dinov2-vit-g-14")
        self.model.load_state_dict(state)


class DinoV2(nn.Module):
    """The transformer; returns the normalised class token."""

    def __init__(self, width: int, depth: int, heads: int, *, gated: bool = False) -> None:
        """Build it with new weights.

        Args:
            width: Channels of a token.
            depth: Number of blocks.
            heads: Heads of attention.
            gated: Use SwiGLU in place of the MLP, as the largest of the published networks does.
        """
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of the training; unused
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + GRID**2, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, stride=PATCH)})
        self.blocks = nn.ModuleList(Block(width, heads, gated) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return features of images that are normalised as ImageNet's."""
        x = self.patch_embed["proj"](images)
        height, width = x.shape[-2:]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).mT], 1)
        x = x + self._positions(height, width)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def _positions(self, height: int, width: int) -> Tensor:
        """Return positions, interpolated with the published offset of 0.1 patches."""
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        if (height, width) == (GRID, GRID):
            return self.pos_embed
        rest = F.interpolate(
            rest.mT.unflatten(2, (GRID, GRID)),
            scale_factor=((height + 0.1) / GRID, (width + 0.1) / GRID),
            mode="bicubic",
        )
        return torch.cat([first, rest.flatten(2).mT], 1)


class Block(nn.Module):
    """x + scale * attention(norm(x)), then the same with an MLP."""

    def __init__(self, width: int, heads: int, gated: bool) -> None:
        """Build it; names are those of the published weights."""
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        layers = {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        self.attn = nn.ModuleDict(layers)
        self.ls1, self.ls2 = _Scale(width), _Scale(width)
        hidden = 4 * width
        if gated:
            hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
            layers = {"w12": nn.Linear(width, 2 * hidden), "w3": nn.Linear(hidden, width)}
        else:
            layers = {"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)}
        self.mlp = nn.ModuleDict(layers)

    def forward(
        self, x: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the next layer's tokens."""
        qkv = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, self.heads, -1))
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.ls1.gamma * self.attn["proj"](mixed.transpose(1, 2).flatten(2))
        return x + self.ls2.gamma * self._mlp(self.norm2(x))

    def _mlp(self, x: Tensor) -> Tensor:
        if "w12" in self.mlp:
            gate, value = self.mlp["w12"](x).chunk(2, -1)
            return self.mlp["w3"](F.silu(gate) * value)
        return self.mlp["fc2"](F.gelu(self.mlp["fc1"](x)))


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
