"""Feature networks by name: torch-fidelity's Inception, VGG, CLIP and DINOv2.

Weights come from a file. torch-fidelity would download and unpickle them; here a file whose sha256
is not the one that its name promises is refused, and unpickling is torch's own that runs nothing.
Files lie where torch.hub keeps them, or the user names one: `inception-v3-compat@weights.pth`.
"""

import io
import re
from collections.abc import Callable
from hashlib import file_digest
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  what torch raises for files with code
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_clip import (
    MODEL_METADATA,
    MODEL_URLS,
    FeatureExtractorCLIP,
)
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)
from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16
from torchvision.models import VGG16_Weights

from get.errors import InputError
from get.metrics.dinov2 import SHAPES, DinoV2Features

DINOV2 = "https://dl.fbaipublicfiles.com/dinov2"


class Published(NamedTuple):
    """Where a network's weights are published.

    Attributes:
        url: The address.
        file: The name that torch.hub, or torch-fidelity for CLIP, gives the file.
        layers: The features; for Inception the logits of its score as well.
    """

    url: str
    file: str
    layers: tuple[str, ...]


def _published() -> dict[str, Published]:
    vgg = VGG16_Weights.IMAGENET1K_V1.url
    inception = ("2048", "logits_unbiased")
    clip = {name: f"{name}-{MODEL_METADATA[name]['hash']}.pt" for name in MODEL_URLS}
    dinov2 = {name: name.replace("-vit-", "_vit").replace("-", "") for name in SHAPES}
    return {
        "inception-v3-compat": Published(URL_INCEPTION_V3, Path(URL_INCEPTION_V3).name, inception),
        "vgg16": Published(vgg, Path(vgg).name, ("fc2_relu",)),
        **{name: Published(url, clip[name], ("clip",)) for name, url in MODEL_URLS.items()},
        **{
            name: Published(
                f"{DINOV2}/{stem}/{stem}_pretrain.pth", f"{stem}_pretrain.pth", ("dinov2",)
            )
            for name, stem in dinov2.items()
        },
    }


PUBLISHED = _published()
"""Every network that can be named."""


def load_named(source: str, device: torch.device) -> tuple[FeatureExtractorBase, str]:
    """Return a network of `PUBLISHED` and the sha256 of its weights.

    Args:
        source: `NAME`, or `NAME@FILE` with a file of its weights: of torch.save or safetensors.
        device: Where it shall run.

    Raises:
        InputError: If the weights are missing and cannot be downloaded, damaged, or of another
            network.
    """
    name, _, given = source.partition("@")
    path = Path(given) if given else _cached(name)
    if not path.is_file():
        raise InputError(f"expected the weights of {name} in {path}, got no such file")
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    promised = re.search(r"-([0-9a-f]{8,64})\.\w+$", path.name)  # as in torch.hub
    if promised and not digest.startswith(promised[1]):
        raise InputError(
            f"expected weights with the sha256 {promised[1]}... in {path}, got {digest[:8]}...; "
            "the file is damaged or another one: download it again"
        )
    try:
        extractor = _build(name, path, digest)
    except (UnpicklingError, RuntimeError, KeyError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"expected the weights of {name} in {path}, got {problem}; choose another file"
        ) from error
    extractor.requires_grad_(False)
    return extractor.eval().to(device), digest


def _cached(name: str) -> Path:
    """Return the file in torch.hub's cache; download it if it is not there."""
    url, file, _ = PUBLISHED[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except (URLError, OSError) as error:
        raise InputError(
            f"expected the weights of {name} in {path}, got none, and the download of {url} "
            f"failed ({getattr(error, 'reason', error)}); copy that file there or name one: "
            f"{name}@FILE"
        ) from error
    return path


def _build(name: str, path: Path, digest: str) -> FeatureExtractorBase:
    layers = list(PUBLISHED[name].layers)
    if name.startswith("clip-"):  # a TorchScript archive: only the published file is opened
        if digest != MODEL_METADATA[name]["hash"]:
            raise InputError(
                f"expected the published file of {name} in {path}, got one of the sha256 "
                f"{digest[:8]}...; it is a program, so no other is opened"
            )
        return FeatureExtractorCLIP(name, layers, feature_extractor_weights_path=str(path))
    state = _read(path)
    if name.startswith("dinov2-"):
        return DinoV2Features(name, state)
    kinds: dict[str, Callable[..., FeatureExtractorBase]] = {
        "inception-v3-compat": FeatureExtractorInceptionV3,
        "vgg16": FeatureExtractorVGG16,
    }
    # torch-fidelity unpickles what it is given: this copy, which holds tensors only
    copy: Any = io.BytesIO()
    torch.save(state, copy)
    copy.seek(0)
    return kinds[name](name, layers, feature_extractor_weights_path=copy)


def _read(path: Path) -> dict[str, Tensor]:
    """Return a state dictionary; code in the file is refused, not run."""
    if path.suffix == ".safetensors":
        return load_file(path)
    # Published files are older than the format that data/torch_file.py reads.
    state = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError("no state dictionary")
    return state
