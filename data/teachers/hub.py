"""Finds a teacher's files: in a local folder, or in a repository of the Hugging Face hub."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download

from get.errors import InputError

_HUB_ID = re.compile(r"(?!\.+/)[\w.-]+/[\w.-]+(@\S+)?")


def fetch(source: Path | str, networks: tuple[str, ...]) -> Path:
    """Return the folder of a diffusers model, downloaded if `source` is a hub id.

    Args:
        source: A folder, or "owner/name" or "owner/name@revision".
        networks: Components whose weights are needed, as safetensors only. Configurations are
            always downloaded.

    Raises:
        InputError: If neither exists.
    """
    if Path(source).exists():
        return Path(source)
    if not _HUB_ID.fullmatch(str(source)):
        raise InputError(
            f"expected a teacher in {source}, got nothing there; give a folder in diffusers "
            "format or a hub id like owner/name"
        )
    name, _, revision = str(source).partition("@")
    # "": old repositories of a single network keep it at the root.
    patterns = ["*.json"]
    patterns += [
        f"{part}{file}"
        for part in ("", *(f"{network}/" for network in networks))
        for file in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*.safetensors")
    ]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # no such repository or revision; no connection
        raise InputError(
            f"expected a teacher in {source}, got neither such a folder nor, from the hub, such a "
            f"repository ({type(error).__name__}); check the name and the connection"
        ) from error
