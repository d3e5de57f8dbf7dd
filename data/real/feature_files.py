"""Features of a source of images, on disk, in parts that any process can make.

A part is a function of the source, the network and its place alone, and appears complete or not at
all. So any number of processes share the work, an interrupted one is continued, and whoever reads
all parts in order gets the same numbers. No process holds all images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.files import new_file
from data.real.sources import ImageSource
from get.metrics.features import Features
from get.metrics.streaming import Gaussian, Moments

PART = 1024  # images


@dataclass(frozen=True)
class FeatureFiles:
    """The features of the first images of a source.

    Attributes:
        folder: Where they lie, a folder for every network.
        source: The images.
        count: How many.
    """

    folder: Path
    source: ImageSource
    count: int

    @property
    def starts(self) -> range:
        """The first image of every part."""
        return range(0, self.count, PART)

    def stop(self, start: int) -> int:
        """Return where the part ends that begins at `start`."""
        return min(start + PART, self.count)

    def path(self, network: Features, start: int) -> Path:
        """Return the file of a part."""
        key = sha256(network.fingerprint.encode()).hexdigest()[:16]
        return self.folder / key / f"{start:09d}-{self.stop(start):09d}.safetensors"

    def missing(self, networks: Sequence[Features]) -> list[int]:
        """Return the parts that are not there in every network."""
        return [s for s in self.starts if not all(self.path(n, s).exists() for n in networks)]

    def write(
        self,
        start: int,
        networks: Sequence[Features],
        batch_size: int,
        progress: Callable[[int], object],
    ) -> None:
        """Make a part in those networks that lack it."""
        lacking = [n for n in networks if not self.path(n, start).exists()]
        kept: list[dict[str, list[Tensor]]] = [{} for _ in lacking]
        for at in range(start, self.stop(start), batch_size):
            end = min(at + batch_size, self.stop(start))
            images, labels = self.source.read(at, end)
            for network, tensors in zip(lacking, kept, strict=True):
                vectors, logits = network(images)
                found = {"features": vectors, "logits": logits, "labels": labels}
                for name, tensor in found.items():
                    if tensor is not None:
                        tensors.setdefault(name, []).append(tensor)
            progress(end - at)
        for network, tensors in zip(lacking, kept, strict=True):
            with new_file(self.path(network, start)) as path:
                save_file({k: torch.cat(v).contiguous() for k, v in tensors.items()}, path)

    def parts(self, network: Features) -> Iterator[dict[str, Tensor]]:
        """Yield features, and logits and labels where there are any, part by part."""
        for start in self.starts:
            yield load_file(self.path(network, start))

    def vectors(self, network: Features) -> Float[Tensor, "images features"]:
        """Return all feature vectors at once: what KID, precision and recall need."""
        return torch.cat([part["features"] for part in self.parts(network)])

    def gaussian(self, network: Features) -> Gaussian:
        """Return the Gaussian of the features."""
        moments = Moments()
        for part in self.parts(network):
            moments.add(part["features"])
        return moments.gaussian()
