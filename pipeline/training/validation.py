"""What training looks at now and then: the averaged weights on held-out pairs and fixed noise.

Next: evaluate.py, which compares a finished run with its teacher.
"""

from functools import cached_property

import torch
from PIL.Image import Image
from torch import Tensor

from data.manifest import DamagedShard, Manifest
from data.mixture import Mixture
from data.pairs import Pairs
from data.reader import read_shard
from data.real.features import RealFeatures
from get.images import from_uint8, grid, to_uint8
from get.metrics import frechet_distance
from get.models import Student
from get.noise import draw
from get.sampling import generate
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.skipped import Skipped

GRID = 40  # images of the sample grid


class Validation:
    """Held-out pairs, the real images if there are any, and the fixed noise of the grid."""

    def __init__(
        self,
        config: TrainConfig,
        manifest: Manifest,
        order: Mixture,
        device: torch.device,
        skipped: Skipped | None,
    ) -> None:
        """Make the features of the real images; the held-out shard is read when it is needed.

        Args:
            config: Of the training.
            manifest: Of the pairs.
            order: Says where the training shards end.
            device: Where the feature network runs.
            skipped: Called if the held-out shard is damaged; None raises instead.

        Raises:
            InputError: If the real images do not fit the pairs.
        """
        self.config, self.manifest, self.order, self.skipped = config, manifest, order, skipped
        self.real: RealFeatures | None = None
        if config.feature_network is not None and config.real_images is not None:
            network, name = config.feature_network, config.real_images
            self.real = RealFeatures(network, name, manifest.image_shape, device)

    @cached_property
    def held_out(self) -> Pairs | None:
        """Return the first held-out shard; None if there is none or it is damaged and skipped.

        Of several data sets, each gives an equal part of its own.
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
        return Pairs.cat(parts) if parts else None

    def measure(self, model: Student) -> dict[str, float]:
        """Return the mean absolute difference from the teacher's images of held-out noise, and FID.

        Both are of one held-out shard, so FID is higher than evaluate.py's, which takes more
        images; neither is there without held-out pairs.

        Raises:
            DamagedShard: If the held-out shard is damaged and may not be skipped.
        """
        if self.held_out is None:
            return {}
        made = self._generate(model, self.held_out.noise, self.held_out.labels)
        figures = {"validation_l1": float((made - self.held_out.images).abs().mean())}
        if (real := self.real) is not None:
            features = real.features_of(from_uint8(to_uint8(made)))
            figures["validation_fid"] = frechet_distance(features, real.features["training"])
        return figures

    def picture(self, model: Student) -> Image | None:
        """Return a grid of samples, always of the same noise; None for latents."""
        m = self.manifest
        if m.image_shape[0] not in (1, 3):
            return None
        noise, _ = draw(self.config.seed, range(GRID), m.image_shape)
        labels = torch.arange(GRID) % m.num_classes if m.num_classes else None
        made = self._generate(model, noise, labels)
        return grid(to_uint8(made), columns=10, scale=max(1, 64 // made.shape[-1]))

    def _generate(self, model: Student, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Make images; sample i is sample i of the training's seed."""
        indices = range(len(noise))
        return generate(model, noise, labels, seed=self.config.seed, indices=indices)
