"""The same GET with every channel several times: equal images at the cost of a wider network.

Small networks spend much of their time beside their matrix products, so their times say little
about large ones. A widened network (Net2WiderNet, arXiv:1511.05641) computes the same function,
converges as the trained one does, and its matrix products take most of the time.
"""

import torch
from torch import Tensor, nn

from get.models import GET
from get.models.layers import Block


@torch.no_grad()
def widened(model: GET, factor: int) -> GET:
    """Return a GET of `factor` times the width that makes the same images, to rounding."""
    config = {k: v for k, v in model.config.items() if not k.startswith("_")}
    wide = GET(**config | {"width": factor * model.width})
    heads = model.config["heads"]
    channels = torch.arange(model.width)
    again = channels.repeat(factor)
    # A head's values stay together: (part, head, copy, value).
    parts = torch.arange(3 * model.width).view(3, heads, 1, -1).expand(-1, -1, factor, -1).flatten()
    mixed = channels.view(heads, 1, -1).expand(-1, factor, -1).flatten()
    # Copies make the products of queries and keys larger by the factor, their scale by its root.
    weight = torch.where(parts < model.width, factor**-0.5, 1.0)

    def copy(new: nn.Linear, old: nn.Linear, rows: Tensor, columns: Tensor) -> None:
        """Spread a layer over copied outputs and inputs."""
        copies = len(columns) // old.in_features
        new.weight.copy_(old.weight[rows][:, columns] / copies)
        if old.bias is not None:
            new.bias.copy_(old.bias[rows])

    def copy_norm(new: nn.LayerNorm, old: nn.LayerNorm) -> None:
        new.weight.copy_(old.weight[again])
        new.bias.copy_(old.bias[again])

    def copy_block(new: Block, old: Block) -> None:
        copy_norm(new.norm1, old.norm1)
        copy(new.attn.qkv, old.attn.qkv, parts, again)
        new.attn.qkv.weight.mul_(weight[:, None])
        new.attn.qkv.bias.mul_(weight)
        copy(new.attn.proj, old.attn.proj, again, mixed)
        if new.mlp is None or old.mlp is None:
            return
        hidden = torch.arange(old.mlp.fc1.out_features).repeat(factor)
        copy_norm(new.norm2, old.norm2)
        copy(new.mlp.fc1, old.mlp.fc1, hidden, again)
        copy(new.mlp.fc2, old.mlp.fc2, again, hidden)

    for name in ("weight", "bias"):
        getattr(wide.embed.patch, name).copy_(getattr(model.embed.patch, name)[again])
    wide.embed.position.copy_(model.embed.position[..., again])
    if wide.embed.label is not None and model.embed.label is not None:
        wide.embed.label.weight.copy_(model.embed.label.weight[:, parts] * weight)
    depth = len(model.equilibrium_blocks)
    rows = torch.cat([parts + i * 3 * model.width for i in range(depth)])
    copy(wide.injection, model.injection, rows, again)
    wide.injection.weight.mul_(weight.repeat(depth)[:, None])
    for name in ("blocks", "equilibrium_blocks", "coda_blocks"):
        for new, old in zip(getattr(wide, name), getattr(model, name), strict=True):
            copy_block(new, old)
    copy_norm(wide.decode.norm, model.decode.norm)
    copy(
        wide.decode.linear,
        model.decode.linear,
        torch.arange(model.decode.linear.out_features),
        again,
    )
    return wide.eval()
