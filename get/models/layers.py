"""The parts GET and the ViT baseline share: patches, positions, attention, MLP, block, decoder.

Conditioning is additive and lands on the fused query/key/value projection of every attention:
`injection` of width 3 * width (facts of arXiv:2401.08639: the class vector in every block, plus
the injected features in the equilibrium blocks).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from get.equilibrium import Apply, direct
from get.equilibrium.vectors import full_precision
from get.models.checks import check_labels

EPS = 1e-6  # of every LayerNorm


def position_table(grid: int, width: int) -> Float[Tensor, "1 tokens width"]:
    """Return the fixed 2-D sine/cosine table, tokens in row-major order.

    The first half of the channels encodes the column and the second half the row, each as
    `width / 4` sines followed by as many cosines with frequencies 10000^(-i / (width / 4)).
    Computed in float64, returned in float32.
    """
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency  # (grid, quarter)
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)  # (grid, width / 2)
    column = wave[None, :, :].expand(grid, -1, -1)
    row = wave[:, None, :].expand(-1, grid, -1)
    return torch.cat([column, row], dim=2).reshape(1, grid * grid, width).float()


def unpatchify(
    tokens: Float[Tensor, "batch tokens values"], patch: int, channels: int
) -> Float[Tensor, "batch channels side side"]:
    """Lay the tokens' values (y, x, channel; channel fastest) out as images."""
    batch, n, _ = tokens.shape
    grid = round(n**0.5)
    x = tokens.reshape(batch, grid, grid, patch, patch, channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, grid * patch, grid * patch)


class Attention(nn.Module):
    """Multi-head self-attention with an additive injection into query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        """Build the projections; `heads` divides `width`."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, injection: Tensor | None, apply: Apply = direct) -> Tensor:
        """Attend over the tokens of x; `injection` is added before the heads are split."""
        qkv = apply(self.qkv, x)
        if injection is not None:
            qkv = qkv + injection.to(qkv.dtype)  # under autocast a label's vector is float32
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return apply(self.proj, mixed)


class MLP(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        """Build a perceptron with `hidden` units."""
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, apply: Apply = direct) -> Tensor:
        """Apply the perceptron to every token."""
        return apply(self.fc2, F.gelu(apply(self.fc1, x)))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP if it has one, each added to its input."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        """Build a block whose MLP has `int(width * mlp_ratio)` hidden units; 0 is no MLP."""
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.mlp: MLP | None = None
        if mlp_ratio:
            self.norm2 = nn.LayerNorm(width, eps=EPS)
            self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(
        self, x: Tensor, injection: Tensor | None = None, apply: Apply | None = None
    ) -> Tensor:
        """Map tokens (batch, tokens, width) to tokens of the same shape.

        `apply` calls the parts that have weights; a `DeltaMemory` skips some of their work.
        """
        apply = apply or direct
        x = x + apply(self.attn, self.norm1(x), injection)
        return x if self.mlp is None else x + apply(self.mlp, self.norm2(x))


class Embed(nn.Module):
    """Image to tokens (patch convolution plus fixed positions), label to class vector."""

    def __init__(
        self, image_size: int, channels: int, patch: int, width: int, num_classes: int | None
    ) -> None:
        """Build the patch convolution, the frozen position table and the class table."""
        super().__init__()
        self.patch = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        # A parameter without gradient, not a buffer: the published counts include it.
        table = position_table(image_size // patch, width)
        self.position = nn.Parameter(table, requires_grad=False)
        self.label = nn.Embedding(num_classes, 3 * width) if num_classes else None

    def forward(
        self,
        noise: Float[Tensor, "batch channels side side"],
        labels: Int[Tensor, " batch"] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return tokens (batch, tokens, width) and the class vector (batch, 1, 3 width) or None."""
        # Contiguous: every later sum would keep the layout of a transposed residual stream.
        tokens = self.patch(noise).flatten(2).transpose(1, 2).contiguous() + self.position
        if self.label is None or labels is None:
            return tokens, None
        try:
            return tokens, self.label(labels)[:, None]
        except IndexError:  # a CPU looks at what it looks up; a GPU ends the process
            check_labels(labels, self.label.num_embeddings)
            raise


class Decode(nn.Module):
    """Tokens to image: LayerNorm, linear, patches laid out. No clipping."""

    def __init__(self, width: int, patch: int, channels: int) -> None:
        """Build the output projection."""
        super().__init__()
        self.patch, self.channels = patch, channels
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.linear = nn.Linear(width, patch * patch * channels)

    def forward(
        self, tokens: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch channels side side"]:
        """Decode tokens to images; under autocast too in the weights' precision, for the loss."""
        with full_precision(tokens.device):
            values = self.linear(self.norm(tokens).to(self.linear.weight.dtype))
        return unpatchify(values, self.patch, self.channels)


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Initialise as published: Xavier-uniform matrices, zero biases, zero output projection.

    The patch convolution is Xavier-uniform as a matrix (width, channels * patch * patch); the
    class table is normal with standard deviation 0.02; LayerNorms start at 1 and 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    for module in model.modules():
        if isinstance(module, Decode):
            nn.init.zeros_(module.linear.weight)
