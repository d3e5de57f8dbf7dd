"""What training looks at now and then: the averaged weights on held-out pairs and fixed noise.

All processes share the held-out pairs. Next: evaluate.py, which compares a finished run with its
teacher.
"""

import math
from functools import cached_property
from typing import NamedTuple

import torch
from accelerate import Accelerator
from PIL.Image import Image
from torch import Tensor

from data.manifest import DamagedShard, Manifest
from data.mixture import Mixture
from data.pairs import Pairs
from data.reader import read_shard
from data.real.features import RealFeatures
from get.images import from_uint8, grid, to_uint8
from get.metrics import features_of, frechet_distance
from get.metrics.features import Features, open_features
from get.models import Student
from get.noise import draw, draw_start
from get.sampling import generate
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.skipped import Skipped

GRID = 40  # images of the sample grid
KEPT = 2**32  # bytes of random starts that processes together keep from one validation to the next


class Part(NamedTuple):
    """What a process measures: pairs at these places of the held-out ones, which are `count`."""

    pairs: Pairs
    places: list[int]
    count: int


class Validation:
    """Held-out pairs, the real images if there are any, and the fixed noise of the grid."""

    def __init__(
        self,
        config: TrainConfig,
        manifest: Manifest,
        order: Mixture,
        accelerator: Accelerator,
        skipped: Skipped | None,
    ) -> None:
        """Make the features of the real images; the held-out shard is read when it is needed.

        Args:
            config: Of the training.
            manifest: Of the pairs.
            order: Says where the training shards end.
            accelerator: Of the processes that share the work.
            skipped: Called if the held-out shard is damaged; None raises instead.

        Raises:
            InputError: If the real images do not fit the pairs.
        """
        self.config, self.manifest, self.order, self.skipped = config, manifest, order, skipped
        self.accelerator = accelerator
        self._starts: dict[tuple[int, int], Tensor] = {}  # drawn once; see `_generate`
        self.network: Features | None = None
        self.real: RealFeatures | None = None  # on the main process, which computes FID
        if config.feature_network is not None and config.real_images is not None:
            network, name, device = config.feature_network, config.real_images, accelerator.device
            with accelerator.main_process_first():  # it may have to be downloaded
                if accelerator.is_main_process:
                    self.real = RealFeatures(network, name, manifest.image_shape, device)
                    self.network = self.real.network
                else:
                    self.network = open_features(network, device)

    @cached_property
    def part(self) -> Part | None:
        """Read the first held-out shard and return what this process measures of it.

        Of several data sets, each gives an equal part of its own. All processes have parts of one
        size, so the last ones may begin again with the first pairs. None if no shard is held out,
        or it is damaged and skipped.
        """
        if not self.config.holdout_shards:
            return None
        parts = []
        for place, order in enumerate(self.order.orders):
            try:
                shard = read_shard(order.source, order.shards).as_floats()
            except DamagedShard as error:
                if self.skipped is None:
                    raise
                self.skipped(self.order.shards + place, str(error))
            else:
                parts.append(shard.take(slice(-(-len(shard) // len(self.order.orders)))))
        if not parts:
            return None
        whole, accelerator = Pairs.cat(parts), self.accelerator
        size = -(-len(whole) // accelerator.num_processes)
        first = accelerator.process_index * size
        places = [place % len(whole) for place in range(first, first + size)]
        return Part(whole.take(torch.tensor(places)), places, len(whole))

    def measure(self, model: Student) -> dict[str, float]:
        """Return the mean absolute difference from the teacher's images of held-out noise, and FID.

        All processes call this together; FID is on the main one alone. Both are of one held-out
        shard, so FID is higher than evaluate.py's, which takes more images; neither is there
        without held-out pairs.

        Raises:
            DamagedShard: If the held-out shard is damaged and may not be skipped.
        """
        if (part := self.part) is None:
            return {}
        made = self._generate(model, part.pairs.noise, part.pairs.labels, part.places)
        distances = (made - part.pairs.images).abs().flatten(1).double().mean(1)
        figures = {"validation_l1": float(self._gather(distances, part.count).mean())}
        if (network := self.network) is not None:
            own = features_of(lambda x: network(x)[0], from_uint8(to_uint8(made)))
            features = self._gather(own, part.count)
            if self.real is not None:
                figures["validation_fid"] = frechet_distance(
                    features, self.real.features["training"]
                )
        return figures

    def _gather(self, rows: Tensor, count: int) -> Tensor:
        """Return the rows of all processes, one for each held-out pair in their order."""
        return self.accelerator.gather(rows.to(self.accelerator.device))[:count].cpu()

    def picture(self, model: Student) -> Image | None:
        """Return a grid of samples, always of the same noise; None for latents."""
        m = self.manifest
        if m.image_shape[0] not in (1, 3):
            return None
        noise, _ = draw(self.config.seed, range(GRID), m.image_shape)
        labels = torch.arange(GRID) % m.num_classes if m.num_classes else None
        made = self._generate(model, noise, labels, list(range(GRID)))
        return grid(to_uint8(made), columns=10, scale=max(1, 64 // made.shape[-1]))

    def _generate(
        self, model: Student, noise: Tensor, labels: Tensor | None, indices: list[int]
    ) -> Tensor:
        """Make images in the precision of the training; sample i is sample i of its seed."""
        seed, z0, shape = self.config.seed, None, model.start_shape
        if shape is not None and keeps(len(indices), shape, self.accelerator.num_processes):
            if (key := (indices[0], len(indices))) not in self._starts:
                self._starts[key] = draw_start(seed, indices, shape)
            z0 = self._starts[key]
        bf16 = self.config.mixed_precision == "bf16"
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            return generate(model, noise, labels, seed=seed, indices=indices, z0=z0)


def keeps(count: int, shape: tuple[int, ...], processes: int) -> bool:
    """Say whether each of so many processes keeps this number of random starts."""
    return 4 * count * math.prod(shape) * processes <= KEPT
