"""Names of locuslab/get state dicts mapped to ours, so that their weights load into our models.

Only the keys differ, tensor layouts are the same. `build_from` reads a model's shape off them.
"""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from get.errors import InputError
from get.models.get import GET
from get.models.vit import ViT

BLOCK = r"(\d+\.(?:norm[12]|attn\.(?:qkv|proj)|mlp\.fc[12])\.(?:weight|bias))"
RENAMES = (
    (r"pos_embed", r"embed.position"),
    (r"x_embedder\.proj\.(weight|bias)", r"embed.patch.\1"),
    (r"y_embedder\.embedding_table\.weight", r"embed.label.weight"),
    (rf"blocks\.{BLOCK}", r"blocks.\1"),
    (r"qkv_inj\.weight", r"injection.weight"),
    (rf"deq_blocks\.{BLOCK}", r"equilibrium_blocks.\1"),
    (r"final_layer\.norm_final\.(weight|bias)", r"decode.norm.\1"),
    (r"final_layer\.linear\.(weight|bias)", r"decode.linear.\1"),
)


def rename(key: str) -> str:
    """Return our name of a key of their state dict.

    Raises:
        InputError: If they have no such key.
    """
    for pattern, ours in RENAMES:
        if found := re.fullmatch(pattern, key):
            return found.expand(ours)
    raise InputError(f"expected a key of a locuslab/get state dict, got {key!r}")


def from_locuslab(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return their state dict under our names.

    Raises:
        InputError: If a key is not theirs (a weight-normed training, say).
    """
    return {rename(key): value for key, value in state.items()}


def build_from(state: Mapping[str, Tensor], *, heads: int, iterations: int) -> GET | ViT:
    """Build the model of their state dict; it evaluates as theirs does.

    Args:
        state: Their state dict; its tensors become the model's own.
        heads: Attention heads, which no tensor tells.
        iterations: Iterations of an evaluation; a ViT has none.

    Raises:
        InputError: If the tensors are not those of a GET or a ViT.
    """
    ours = from_locuslab(state)
    common = {
        "heads": heads,
        "depth": _count(ours, "blocks"),
        "mlp_ratio": _mlp_ratio(ours, "blocks"),
        "num_classes": len(_get(ours, label)) if (label := "embed.label.weight") in ours else None,
        **_image_shape(ours),
    }
    with torch.device("meta"):
        if "injection.weight" in ours:
            model = GET(
                **common,
                equilibrium_depth=_count(ours, "equilibrium_blocks"),
                equilibrium_mlp_ratio=_mlp_ratio(ours, "equilibrium_blocks"),
                iterations=iterations,
                z0="normal",
                map="plain",
                select="lowest_residual",
            )
        else:
            model = ViT(**common)
    _compare(ours, model.state_dict())
    model.load_state_dict(ours, assign=True)
    return model.eval()


def _image_shape(state: Mapping[str, Tensor]) -> dict[str, int]:
    match [tuple(_get(state, f"embed.{name}").shape) for name in ("patch.weight", "position")]:
        case [(width, channels, patch, _), (1, tokens, _)]:
            side = math.isqrt(tokens) * patch
            return {
                "image_size": side,
                "channels": channels,
                "patch_size": patch,
                "width": width,
            }
    raise InputError("expected x_embedder.proj.weight and pos_embed of a model, got other shapes")


def _count(state: Mapping[str, Tensor], blocks: str) -> int:
    return sum(name.startswith(f"{blocks}.") for name in state if name.endswith("norm1.weight"))


def _mlp_ratio(state: Mapping[str, Tensor], blocks: str) -> float:
    weight = _get(state, f"{blocks}.0.mlp.fc1.weight")
    hidden, width = len(weight), weight.shape[-1]
    ratio = hidden / width
    # 61 / 28 * 28 is less than 61, so that a block would have 60 units.
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _get(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state or state[name].ndim < 2:
        raise InputError(f"expected {name} in the state dict, got none or one without rows")
    return state[name]


def _compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise InputError naming the first tensor that is missing, too many or another."""

    def shown(tensor: Tensor | None) -> str:
        return "none" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"

    for name in {**expected, **found}:
        have, want = shown(found.get(name)), shown(expected.get(name))
        if have != want:
            raise InputError(
                f"expected {name}: {want}, got {have}; it is no state dict of locuslab/get"
            )
