"""What a training would be, take and find, told before anything is done: `train.py NAME --dry_run`.

Where no pairs lie yet, their recipe says what they will be. Nothing on disk changes.
Next: step_cost.py counts, train.py does it, recipe_table.py lists all trainings.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from data.codec import encode
from data.manifest import Manifest, count_shards, read_manifest, read_record
from data.pairs import Pairs
from data.reader import batches
from data.store import Folder, Source, open_store
from get.cost import count_parameters
from get.errors import InputError
from get.models import GET, ViT
from get.noise import draw
from pipeline.jobs.checkpoints import latest
from pipeline.jobs.run import finished
from pipeline.jobs.run_json import flat
from pipeline.recipes import IMAGES, PAIRS
from pipeline.recipes.published import Images
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.build import build_student, check_batch, order_of
from pipeline.training.step_cost import PERCEPTUAL, StepCost, image_macs, step_cost

BLOCK = 512  # of a tar: a member has one for its name, and its content fills whole ones


@dataclass(frozen=True, kw_only=True)
class Found:
    """The pairs a training reads, as far as they are there.

    Attributes:
        recipe: The recipe that makes them; None if none is known.
        manifest: What they are, or will be; None if nobody knows.
        shards: Finished ones.
        wanted: Pairs the recipe asks for; None without one, or if these are others.
        problem: Why they cannot be read; None if they can.
    """

    recipe: str | None
    manifest: Manifest | None
    shards: int = 0
    wanted: int | None = None
    problem: str | None = None

    @property
    def pairs(self) -> int:
        """Pairs that are there."""
        return self.shards * self.manifest.pairs_per_shard if self.manifest else 0

    @property
    def whole(self) -> bool:
        """Whether they can be read and nothing is missing that the recipe asks for."""
        return self.problem is None and self.pairs >= (self.wanted or 0)


def describe(config: TrainConfig, processes: int = 1) -> str:
    """Return what the training would do on so many processes, what it needs and what is there.

    Raises:
        InputError: If settings contradict each other, or whole pairs contradict them.
    """
    check_batch(config, processes)
    nothing = order_of(config, str(config.pairs), config.streams, 1)
    batches(nothing, processes=processes, workers=config.dataloader_num_workers)
    found = look(config.pairs)
    lines = [f"***** {config.output_dir}: a dry run, nothing is done *****", *settings(config)]
    if found.manifest is None:
        lines.append("  pairs of unknown shape: parameters, memory and data cannot be told")
    else:
        with torch.device("meta"):
            student = build_student(config, found.manifest)
        pairs = max(found.pairs, found.wanted or 0)
        training = pairs - config.holdout_shards * found.manifest.pairs_per_shard
        cost = step_cost(config, found.manifest, processes)
        lines += [
            summary(config, student, training, str(config.pairs), processes),
            *demands(config, cost, processes),
            *data(config, found, max(pairs, 1)),
            disk(config, cost),
        ]
    return "\n".join([*lines, continuing(config), verdict(config, found)])


def summary(config: TrainConfig, student: GET | ViT, pairs: int, place: str, processes: int) -> str:
    """Return model, pairs to train on and batch in three lines, also for train.py's header."""
    size = student.image_size
    samples = config.max_train_steps * config.global_batch_size
    return f"""\
  {type(student).__name__}: {count_parameters(student):,} parameters, \
{image_macs(student):,} MACs an image
  pairs: {pairs:,} of {student.channels}x{size}x{size} in {place}
  global batch {config.global_batch_size} = {processes} processes x \
{config.gradient_accumulation_steps} micro-steps; {config.max_train_steps} steps, \
{samples / max(pairs, 1):.1f} epochs"""


def settings(config: TrainConfig) -> list[str]:
    """Return every setting, those of the model too, a line each."""
    kind = f"  model: {type(config.model).__name__}"
    return [kind, *(f"  {name}: {value}" for name, value in flat(asdict(config)).items())]


def demands(config: TrainConfig, cost: StepCost, processes: int) -> list[str]:
    """Return work and memory of a step."""
    micro_steps = config.gradient_accumulation_steps
    samples = config.global_batch_size // (processes * micro_steps)
    macs = cost.macs * micro_steps * processes
    solver = "" if config.gradient == "unrolled" else " at most: solvers may stop earlier"
    if config.loss in PERCEPTUAL:
        solver += f" without the network of {config.loss}"
    ddp = f" + DDP's buckets {size_of(cost.gradients)}" if processes > 1 else ""
    return [
        f"  work: {macs:,} MACs a step, forward and backward{solver}; "
        f"{macs * config.max_train_steps:.2e} in all",
        f"  memory of a process, an estimate: {size_of(cost.total(processes))} = weights "
        f"{size_of(cost.weights)} + their average {size_of(cost.weights)} + moments "
        f"{size_of(cost.moments)} + batch {size_of(cost.batch)}{ddp} + peak of a step "
        f"{size_of(cost.peak)}",
        f"    of that peak: gradients {size_of(cost.gradients)}, activations kept for the "
        f"backward pass {size_of(cost.kept)} ({samples} samples at once)",
    ]


def data(config: TrainConfig, found: Found, pairs: int) -> list[str]:
    """Return what is read, how large it is, and how much of it is there."""
    assert found.manifest is not None
    each, how = pair_bytes(config.pairs, found)
    there = found.pairs
    folder = folder_of(config.pairs)
    room = f"; free there {size_of(free(folder))}" if folder else ""
    return [
        f"  samples: {config.max_train_steps * config.global_batch_size:,}; a pair takes {how} "
        f"{size_of(each)} ({found.manifest.image_format}), {pairs:,} take {size_of(each * pairs)}",
        f"  pairs there: {there:,} of {found.wanted or there:,} in {found.shards} finished shards, "
        f"{config.holdout_shards} held out, still to come {size_of(each * (pairs - there))}{room}",
    ]


def disk(config: TrainConfig, cost: StepCost) -> str:
    """Return the room that checkpoints and result need, and what there is."""
    kept, room = config.checkpoints_total_limit, free(config.output_dir)
    need = cost.checkpoint * (kept + 1) + cost.weights
    lack = "" if need <= room else ": TOO LITTLE; choose another output_dir"
    return (
        f"  checkpoints: {size_of(need)} = {kept} kept and 1 in the making of "
        f"{size_of(cost.checkpoint)} + the result (without a VAE); free {size_of(room)}{lack}"
    )


def continuing(config: TrainConfig) -> str:
    """Return what lies in output_dir."""
    newest = latest(config.output_dir)
    if config.overwrite_output_dir:
        return "  output_dir: emptied first"
    if finished(config.output_dir):
        return "  output_dir: a finished run; nothing to do"
    return f"  output_dir: {'a new run' if newest is None else f'goes on from {newest.name}'}"


def verdict(config: TrainConfig, found: Found) -> str:
    """Return in one line whether the pairs on disk fit.

    Raises:
        InputError: If they do not, and will not once they are whole.
    """
    if found.manifest is None:
        return f"The pairs do not fit: {found.problem}; {make_command(config, found)}"
    each, held_out = found.manifest.pairs_per_shard, config.holdout_shards
    place, here = str(config.pairs), found.shards - held_out
    try:
        order_of(config, place, here, each)
        able = f"training could start on {here} shards"
    except InputError:
        order_of(config, place, max(found.pairs, found.wanted or 0) // each - held_out, each)
        able = "too few to start with"
    if found.problem is not None:
        return f"The pairs do not fit: {found.problem}; {make_command(config, found)}"
    if not found.whole:
        return f"The pairs are not whole, {able}; {make_command(config, found)}"
    return f"The pairs fit: {here} shards to train on, {held_out} held out."


def make_command(config: TrainConfig, found: Found) -> str:
    """Return what to do for pairs."""
    where = f" --output_dir {config.pairs}" if folder_of(config.pairs) else ""
    if found.recipe is not None and str(config.pairs) == str(PAIRS[found.recipe].output_dir):
        where = ""
    return f"to make them: python -m pipeline.make_pairs {found.recipe or 'RECIPE'}{where}"


def folder_of(source: Source) -> Path | None:
    """Return the local folder of pairs, or None if they lie elsewhere."""
    store = open_store(source)
    return store.path if isinstance(store, Folder) else None


def look(source: Source) -> Found:
    """Look for pairs; a folder that no recipe writes may still be named like a recipe's."""
    store, recipe, shards = open_store(source), recipe_of(str(source)), 0
    wanted = None if recipe is None else PAIRS[recipe].num_pairs
    plan = None if recipe is None else planned(recipe)
    try:
        manifest = read_manifest(store)
    except InputError as error:
        problem = str(error).removesuffix("; make them with pipeline/make_pairs.py")
        return Found(recipe=recipe, manifest=plan, wanted=wanted, problem=problem)
    if plan and of_images(plan) != of_images(manifest):
        recipe, wanted = None, None  # others of that name
    problem = None
    try:
        shards = count_shards(store)
    except InputError as error:  # a gap, where writers are still at work
        problem = str(error)
        if isinstance(store, Folder):
            shards = len(list(store.path.glob("pairs-??????.json")))
    return Found(recipe=recipe, manifest=manifest, shards=shards, wanted=wanted, problem=problem)


def of_images(manifest: Manifest) -> Images:
    """Return what the student must fit."""
    return Images(manifest.image_shape, manifest.num_classes)


def recipe_of(source: str) -> str | None:
    """Return the recipe that writes to this folder, or else to one of this name."""
    last = Path(source).name
    for name, pairs in PAIRS.items():
        if source == str(pairs.output_dir):
            return name
    return next((n for n, p in PAIRS.items() if last in (n, p.output_dir.name)), None)


def planned(name: str) -> Manifest:
    """Return what the manifest of a recipe's pairs will say, as far as no teacher is needed."""
    pairs, images = PAIRS[name], IMAGES[name]
    return Manifest(
        teacher=pairs.teacher,
        sampler={"steps": pairs.num_inference_steps},
        evaluations=0,
        seed=pairs.seed,
        teacher_batch_size=pairs.teacher_batch_size,
        image_shape=images.shape,
        num_classes=images.num_classes,
        image_format=pairs.image_format,
        pairs_per_shard=pairs.pairs_per_shard,
        pack=pairs.pack,
    )


def pair_bytes(source: Source, found: Found) -> tuple[float, str]:
    """Return the bytes of a pair in its tar, and how well that is known.

    Measured on the first shard; else by encoding pairs of noise, which no PNG makes smaller.
    """
    assert found.manifest is not None
    record = read_record(source, 0) if found.shards else None
    if record is not None:
        return record.bytes / record.count, "on average"
    m = found.manifest
    noise, labels = draw(0, range(m.pack), m.image_shape, m.num_classes)
    images = torch.rand(noise.shape) * 2 - 1
    (sample,) = encode(0, Pairs(noise, images, labels), m.image_format, m.pack)
    contents = (len(v) for k, v in sample.items() if k != "__key__")
    blocks = sum(1 + -(-length // BLOCK) for length in contents)
    return blocks * BLOCK / m.pack, "at most" if m.image_format == "png" else "exactly"


def free(path: Path) -> int:
    """Return the free bytes where a folder is or would be."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free


def size_of(count: float) -> str:
    """Return bytes in a unit that suits."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} bytes"
