"""Feature networks that images are compared in: by name, from a folder, or any function.

    open_features("inception-v3-compat", device)          the network of FID
    open_features("dinov2-vit-l-14", device)              that of FD-DINOv2
    open_features("data/weights/digits-features", device) a classifier of train_classifier.py
    Features("mean", "1", lambda images: (images.mean((2, 3)), None))

Images go in as floats in [-1, 1], whatever the network wants inside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from get.errors import InputError
from get.images import to_uint8
from get.metrics.classifier import Classifier
from get.metrics.networks import PUBLISHED, load_named

FILES = ("config.json", "diffusion_pytorch_model.safetensors")

Run = Callable[[Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, eq=False)
class Features:
    """A network whose features are compared.

    Attributes:
        name: What results call it.
        fingerprint: Differs for everything that makes other features; names them in caches.
        run: Maps images to feature vectors and, where the network classifies, to logits.
        image_shape: The only shape of images that it takes; None takes any.
        knows_classes: Whether the logits are those of the images' own classes.
    """

    name: str
    fingerprint: str
    run: Run
    image_shape: tuple[int, int, int] | None = None
    knows_classes: bool = False

    @torch.no_grad()
    def __call__(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch features"], Float[Tensor, "batch classes"] | None]:
        """Return feature vectors and logits, or None, on the CPU; images are in [-1, 1].

        Raises:
            InputError: If the network cannot take such images.
        """
        shape = tuple(images.shape[1:])
        if self.image_shape not in (None, shape):
            raise InputError(
                f"expected images of {self.image_shape} for {self.name}, got {shape}; "
                "choose another feature network"
            )
        vectors, logits = self.run(images)
        return vectors.cpu(), None if logits is None else logits.cpu()


def open_features(source: str | Path, device: torch.device) -> Features:
    """Return a feature network.

    Args:
        source: A name of `networks.PUBLISHED`, `NAME@FILE` with a file of weights, or the folder
            of a classifier.
        device: Where it shall run.

    Raises:
        InputError: If there is no such network or its weights cannot be read.
    """
    name = str(source).partition("@")[0]
    if name in PUBLISHED:
        extractor, digest = load_named(str(source), device)

        def run(images: Tensor) -> tuple[Tensor, Tensor | None]:
            if images.shape[1] not in (1, 3):
                raise InputError(
                    f"expected grey or RGB images for {name}, got {images.shape[1]} channels; "
                    "latents must be decoded first"
                )
            # Grey pictures become RGB ones, as torch-fidelity reads them from files.
            pixels = to_uint8(images).expand(-1, 3, -1, -1).to(device)
            vectors, *logits = extractor(pixels)
            return vectors, logits[0] if logits else None

        return Features(name_of(source), f"{name}:{digest}", run)
    network = load_classifier(Path(source)).to(device)  # pyrefly: ignore[bad-argument-type]
    c = network.config
    return Features(
        name_of(source),
        classifier_hash(Path(source)),
        lambda images: network.both(images.to(device)),
        (c["channels"], c["image_size"], c["image_size"]),
        knows_classes=True,
    )


def name_of(source: str | Path) -> str:
    """Return what results call a network: its name, with a file of the user's, or its folder's."""
    name, _, file = str(source).partition("@")
    if name not in PUBLISHED:
        return Path(source).name
    given = Path(file).name
    return name if given in ("", PUBLISHED[name].file) else f"{name}@{given}"


def load_classifier(folder: Path) -> Classifier:
    """Load a classifier of train_classifier.py.

    Raises:
        InputError: If there is none.
    """
    try:
        network = Classifier.from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected a feature network in {folder}, got {type(error).__name__}; name one of "
            f"{', '.join(list(PUBLISHED)[:2])}, ..., or make one with pipeline/train_classifier.py"
        ) from error
    return network.eval()


def classifier_hash(folder: Path) -> str:
    """Return the sha256 of a classifier's configuration and weights."""
    digest = sha256()
    for name in FILES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
