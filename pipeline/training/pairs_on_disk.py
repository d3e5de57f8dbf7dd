"""The pairs that a training would read: what exists of them, and what their recipe will make."""

from dataclasses import dataclass
from pathlib import Path

import torch

from data.codec import encode
from data.folder import Folder
from data.manifest import Manifest, count_shards, list_shards, read_manifest, read_record
from data.pairs import Pairs
from data.store import Source, open_store
from get.errors import InputError
from get.noise import draw
from pipeline.recipes import RECIPES
from pipeline.recipes.recipe import pairs as pairs_settings

BLOCK = 512  # bytes of a tar's block: a member has one for its name, its content fills whole ones


@dataclass(frozen=True, kw_only=True)
class PairsOnDisk:
    """The pairs a training reads, as far as they exist.

    Attributes:
        source: Where they lie.
        recipe: The recipe that makes them; None if none is known.
        manifest: What they are, or will be; None if unknown.
        shards: Number of finished shards.
        planned: Number of pairs the recipe makes; None without one, or if these are others.
        problem: Why they cannot be read; None if they can.
    """

    source: Source
    recipe: str | None
    manifest: Manifest | None
    shards: int = 0
    planned: int | None = None
    problem: str | None = None

    @property
    def count(self) -> int:
        """Number of finished pairs."""
        return self.shards * self.manifest.pairs_per_shard if self.manifest else 0

    @property
    def complete(self) -> bool:
        """Whether they can be read and none is missing that the recipe makes."""
        return self.problem is None and self.count >= (self.planned or 0)

    def bytes_per_pair(self) -> tuple[float, str]:
        """Return the bytes of a pair in its tar, and how well that is known.

        Measured on the first shard; else by encoding pairs of noise, which PNG cannot compress.
        """
        assert self.manifest is not None
        record = read_record(self.source, 0) if self.shards else None
        if record is not None:
            return record.bytes / record.count, "on average"
        m = self.manifest
        noise, labels = draw(0, range(m.pack), m.image_shape, m.num_classes)
        images = torch.rand(noise.shape) * 2 - 1
        states = noise[:, None].repeat(1, len(m.trajectory), 1, 1, 1) if m.trajectory else None
        (sample,) = encode(0, Pairs(noise, images, labels, states), m.image_format, m.pack)
        contents = (len(v) for k, v in sample.items() if k != "__key__")
        blocks = sum(1 + -(-length // BLOCK) for length in contents)
        return blocks * BLOCK / m.pack, "at most" if m.image_format == "png" else "exactly"


def find_pairs(source: Source) -> PairsOnDisk:
    """Look for pairs; a folder that no recipe writes may still be named like a recipe's."""
    store, recipe = open_store(source), _recipe_of(str(source))
    planned = None if recipe is None else RECIPES[recipe].pairs.num_pairs
    expected = None if recipe is None else RECIPES[recipe].manifest()
    try:
        manifest = read_manifest(store)
    except InputError as error:
        problem = str(error).removesuffix("; make them with pipeline/make_pairs.py")
        return PairsOnDisk(
            source=source, recipe=recipe, manifest=expected, planned=planned, problem=problem
        )
    if expected and _images(expected) != _images(manifest):
        recipe, planned = None, None  # other pairs in a folder of that name
    shards, problem = 0, None
    try:
        shards = count_shards(store)
    except InputError as error:  # a gap, where writers are still at work
        problem = str(error)
        if isinstance(store, Folder):
            shards = len(list_shards(store.path))
    return PairsOnDisk(
        source=source,
        recipe=recipe,
        manifest=manifest,
        shards=shards,
        planned=planned,
        problem=problem,
    )


def _images(manifest: Manifest) -> object:
    """Return what the student must fit."""
    return manifest.image_shape, manifest.num_classes


def _recipe_of(source: str) -> str | None:
    """Return the recipe that writes to this folder, or else to one of this name."""
    name, table = Path(source).name, pairs_settings(RECIPES)
    exact = (n for n, settings in table.items() if source == str(settings.output_dir))
    similar = (n for n, settings in table.items() if name in (n, Path(settings.output_dir).name))
    return next(exact, next(similar, None))
