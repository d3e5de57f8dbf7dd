"""Names of locuslab/get state dicts mapped to ours, so that their weights load into our models.

Only the keys differ, tensor layouts are the same.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from get.errors import InputError

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
    """Return our name of a reference state-dict key.

    Raises:
        InputError: If the reference has no such key.
    """
    for pattern, ours in RENAMES:
        if found := re.fullmatch(pattern, key):
            return found.expand(ours)
    raise InputError(f"expected a key of a locuslab/get state dict, got {key!r}")


def from_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a reference state dict under our names.

    Raises:
        InputError: If a key is not the reference's (a weight-normed training, say).
    """
    return {rename(key): value for key, value in state.items()}
