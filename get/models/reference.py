"""Names of locuslab/get state dicts mapped to ours, so that their weights load into our models.

Everything else here is a renaming of keys, tensor
layouts are the same.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from get.errors import InputError

RENAMES = (
    (r"^pos_embed$", "embed.position"),
    (r"^x_embedder\.proj\.", "embed.patch."),
    (r"^y_embedder\.embedding_table\.", "embed.label."),
    (r"^qkv_inj\.", "injection."),
    (r"^deq_blocks\.", "equilibrium_blocks."),
    (r"^final_layer\.norm_final\.", "decode.norm."),
    (r"^final_layer\.linear\.", "decode.linear."),
    (r"^blocks\.", "blocks."),
)


def rename(key: str) -> str:
    """Return our name of a reference state-dict key.

    Raises:
        InputError: If the reference has no such key.
    """
    for pattern, ours in RENAMES:
        if re.match(pattern, key):
            return re.sub(pattern, ours, key)
    raise InputError(f"expected a key of a locuslab/get state dict, got {key!r}")


def from_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a reference state dict under our names.

    Raises:
        InputError: If a key is not the reference's (a weight-normed training, say).
    """
    return {rename(key): value for key, value in state.items()}
