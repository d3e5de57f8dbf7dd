"""Distil: regress the teacher's image from its noise with a GET or a ViT, in one visible loop.

Runs as `accelerate launch pipeline/train.py RECIPE` on any number of GPUs and as
`python -m pipeline.train RECIPE`. The same command continues a run that was stopped.
Next: sample.py, evaluate.py.
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from data.pairs import DamagedShard, Manifest, count_shards, read_manifest
from data.reader import Batch, Order, Shard, as_floats, batches, read_shard
from data.store import open_store
from data.teachers import load_vae
from get.cost import count_macs, count_parameters
from get.ema import EMA
from get.equilibrium import Anderson, Implicit, Phantom
from get.errors import InputError
from get.images import grid, to_uint8
from get.losses import IterateLoss
from get.models import GET, Equilibrium, ViT
from get.noise import draw, step_seed
from get.pipeline_get import GETPipeline
from get.sampling import generate
from pipeline import cli
from pipeline.config import GETModel, TrainConfig
from pipeline.files import new_file
from pipeline.recipes import STUDENTS
from pipeline.run import Run, TrainState, finished, latest
from pipeline.state import start_from

GRID = 40  # images of the sample grid
JACOBIAN = 2**32  # streams of (seed, step) from here on belong to the Jacobian penalty


def main(config: TrainConfig) -> None:
    """Train a student; the same command continues, and does nothing once the run is finished."""
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
    )
    cli.check_processes(accelerator)
    check_batch(config, accelerator.num_processes)
    torch.set_float32_matmul_precision("high")  # TF32 where there is such a thing
    store = open_store(config.pairs, config.pairs_cache)
    manifest = read_manifest(store)
    order = Order(
        source=store,
        shards=count_shards(store) - config.holdout_shards,
        pairs_per_shard=manifest.pairs_per_shard,
        seed=config.seed,
        streams=config.streams,
        batch_size=config.global_batch_size,
    )
    torch.manual_seed(config.seed)
    student = build_student(config, manifest).to(accelerator.device)
    ema = EMA(student, config.ema_decay)
    trainable = [p for p in student.parameters() if p.requires_grad]
    betas = (0.9, config.adam_beta2)
    optimizer = torch.optim.AdamW(
        trainable, config.learning_rate, betas, weight_decay=0.0, fused=True
    )
    scheduler = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
    )
    state = TrainState({"model": student, "ema": ema.model}, optimizer, scheduler)
    fresh = config.overwrite_output_dir or latest(config.output_dir) is None
    if config.init_from is not None and fresh:
        accelerator.print(start_from(config.init_from, student, ema.model, optimizer))
    module = accelerator.prepare(training_module(config, student))  # DDP where it is several
    pipeline = GETPipeline(ema.model, load_vae(manifest.vae) if manifest.vae else None)
    pipeline.set_progress_bar_config(disable=True)
    skipped = Skipped() if config.skip_damaged_shards else None

    with Run(config, accelerator, data={**asdict(manifest), "shards": order.shards}) as run:
        start = run.restore(state)
        if not finished(run.path):
            run.say(header(config, student, order, accelerator.num_processes))
        loader = batches(
            order,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
            start=start,
            workers=config.dataloader_num_workers,
            damaged=skipped,
        )
        for step in run.steps(start, state, pipeline.save_pretrained):
            # ---- one step
            batch = next(loader).to(accelerator.device)
            z0 = random_start(student, order, step, accelerator)
            penalty_weight, parts = jacobian_weight(config, step), []
            for part, z in split(batch, z0, config.gradient_accumulation_steps):
                with accelerator.accumulate(module):
                    draws = config.jacobian_draws if penalty_weight else 0
                    generator = penalty_generator(config, step, accelerator) if draws else None
                    losses = module(part.noise, part.labels, part.images, z, draws, generator)
                    loss = losses.total(config.iterate_decay, penalty_weight)
                    accelerator.backward(loss)
                    residual = {} if losses.residual is None else {"residual": losses.residual}
                    parts.append({"loss": losses.iterates[-1], "total": loss, **residual})
            norm = clip_grad_norm_(trainable, config.max_grad_norm or torch.inf)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            ema.update(student)
            # ---- the step is done
            run.record(step, **mean(parts), grad_norm=norm)
            done = step + 1
            if done % config.validation_steps == 0 or done == config.max_train_steps:
                if accelerator.is_main_process:
                    validate(run, ema.model, config, manifest, order, step, skipped)
                accelerator.wait_for_everyone()
                if skipped is not None:
                    run.log(step, damaged_shards=skipped.count(config, order, accelerator))
    if accelerator.is_main_process:
        print(f"student {config.output_dir}")


def check_batch(config: TrainConfig, processes: int) -> None:
    """Check that the global batch divides into processes and micro-steps.

    Raises:
        InputError: If it does not, or train_batch_size contradicts it.
    """
    parts = processes * config.gradient_accumulation_steps
    each, rest = divmod(config.global_batch_size, parts)
    if rest or config.train_batch_size not in (None, each):
        raise InputError(
            f"expected global_batch_size {config.global_batch_size} = train_batch_size x "
            f"{processes} processes x {config.gradient_accumulation_steps} micro-steps, got "
            f"train_batch_size {config.train_batch_size}; change one of them"
        )


def build_student(config: TrainConfig, manifest: Manifest) -> GET | ViT:
    """Build the student for images and classes like those of the pairs."""
    channels, size, _ = manifest.image_shape
    shape = asdict(config.model)
    common = {"image_size": size, "channels": channels, "num_classes": manifest.num_classes}
    if isinstance(config.model, GETModel):
        student = GET(**common, **shape)
        if config.gradient_checkpointing:
            student.enable_gradient_checkpointing()
        return student
    if config.gradient_checkpointing:
        raise InputError("expected a GET for gradient_checkpointing, got a ViT; leave it off")
    return ViT(**common, **shape)


def training_module(config: TrainConfig, student: GET | ViT) -> IterateLoss:
    """Wrap the student in the objective that the config names."""
    equilibrium = None
    if config.gradient != "unrolled":
        steps, tol = config.solver_max_steps, config.solver_tol
        gradient = {
            "phantom": Phantom(steps=config.phantom_steps, damping=1.0),
            "implicit": Implicit(solver=Anderson(), max_steps=steps, tol=tol),
        }[config.gradient]
        equilibrium = Equilibrium(gradient=gradient, solver=Anderson(), max_steps=steps, tol=tol)
    iterations = config.unrolled_iterations
    return IterateLoss(student, config.loss, iterations=iterations, equilibrium=equilibrium)


def jacobian_weight(config: TrainConfig, step: int) -> float:
    """Return the weight of the Jacobian penalty in this step; 0 in steps without."""
    if config.jacobian_weight == 0:
        return 0.0
    chance = step_seed(config.seed, step, JACOBIAN) / 2**32
    ramp = min(1.0, (step + 1) / config.jacobian_ramp_steps) if config.jacobian_ramp_steps else 1.0
    return config.jacobian_weight * ramp if chance < config.jacobian_probability else 0.0


def penalty_generator(config: TrainConfig, step: int, accelerator: Accelerator) -> torch.Generator:
    """Return the source of the penalty's random vectors, its own in every process."""
    seed = step_seed(config.seed, step, JACOBIAN + 1 + accelerator.process_index)
    return torch.Generator(accelerator.device).manual_seed(seed)


def random_start(
    student: GET | ViT, order: Order, step: int, accelerator: Accelerator
) -> Tensor | None:
    """Draw the iteration's start for a GET that begins at random: a function of (seed, step).

    One draw a stream, so the number of processes has no influence.
    """
    if not isinstance(student, GET) or student.z0 != "normal":
        return None
    device = accelerator.device
    each = order.streams // accelerator.num_processes
    first = each * accelerator.process_index
    tokens = (student.image_size // student.patch_size) ** 2
    shape = (order.batch_size // order.streams, tokens, student.width)
    generators = (
        torch.Generator(device).manual_seed(step_seed(order.seed, step, 1 + first + i))
        for i in range(each)
    )
    return torch.cat([torch.randn(shape, generator=g, device=device) for g in generators])


def split(batch: Batch, z0: Tensor | None, parts: int) -> Iterator[tuple[Batch, Tensor | None]]:
    """Cut a batch into equal micro-batches."""
    size = len(batch.noise) // parts
    for i in range(parts):
        at = slice(i * size, (i + 1) * size)
        labels = None if batch.labels is None else batch.labels[at]
        part = Batch(batch.noise[at], batch.images[at], labels)
        yield part, None if z0 is None else z0[at]


def mean(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of every figure over the micro-steps."""
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}


class Skipped:
    """The damaged shards this process has met since it started."""

    def __init__(self) -> None:
        """None yet."""
        self.shards: set[int] = set()

    def __call__(self, shard: int, description: str) -> None:
        """Note a shard and say so; every process speaks for itself."""
        if shard not in self.shards:
            self.shards.add(shard)
            tqdm.write(f"skipped: {description}", file=sys.stderr)

    def count(self, config: TrainConfig, order: Order, accelerator: Accelerator) -> int:
        """Return how many all processes have met together."""
        flags = torch.zeros(order.shards + config.holdout_shards, device=accelerator.device)
        flags[list(self.shards)] = 1
        return int((accelerator.reduce(flags, "sum") > 0).sum())


def held_out(config: TrainConfig, order: Order, skipped: Skipped | None) -> Shard | None:
    """Return the first held-out shard; None if there is none or it is damaged and skipped."""
    if not config.holdout_shards:
        return None
    try:
        return read_shard(order.source, order.shards)
    except DamagedShard as error:
        if skipped is None:
            raise
        skipped(order.shards, str(error))
    return None


@torch.no_grad()
def validate(
    run: Run,
    model: GET | ViT,
    config: TrainConfig,
    manifest: Manifest,
    order: Order,
    step: int,
    skipped: Skipped | None = None,
) -> None:
    """Measure the averaged weights on a held-out shard; draw the grid of fixed noise."""
    if (shard := held_out(config, order, skipped)) is not None:
        total = 0.0
        for at in range(0, len(shard.noise), GRID * 8):
            noise, images = shard.noise[at : at + GRID * 8], shard.images[at : at + GRID * 8]
            labels = None if shard.labels is None else shard.labels[at : at + GRID * 8]
            at_once = range(at, at + len(noise))
            made = generate(model, noise, labels, seed=config.seed, indices=at_once)
            total += float((made - as_floats(images)).abs().mean(dim=(1, 2, 3)).sum())
        loss = total / len(shard.noise)
        run.log(step, validation_l1=loss)
        run.say(f"step {step + 1}: L1 on the held-out pairs {loss:.4f}")
    channels = manifest.image_shape[0]
    if channels in (1, 3):
        noise, _ = draw(config.seed, range(GRID), manifest.image_shape)
        labels = torch.arange(GRID) % manifest.num_classes if manifest.num_classes else None
        made = generate(model, noise, labels, seed=config.seed, indices=range(GRID))
        picture = grid(to_uint8(made), columns=10, scale=max(1, 64 // made.shape[-1]))
        with new_file(run.path / "samples" / f"step-{step + 1:06d}.png") as temporary:
            picture.save(temporary, format="png")


def header(config: TrainConfig, student: GET | ViT, order: Order, processes: int) -> str:
    """Return what is about to happen, in a few lines."""
    size = student.image_size
    noise = torch.zeros(1, student.channels, size, size)
    labels = torch.zeros(1, dtype=torch.int64) if student.num_classes else None
    macs = count_macs(lambda: generate(student, noise, labels, seed=0, indices=[0]))
    pairs = order.shards * order.pairs_per_shard
    epochs = config.max_train_steps * config.global_batch_size / pairs
    return f"""***** Training {config.output_dir} *****
  {type(student).__name__}: {count_parameters(student):,} parameters, {macs:,} MACs an image
  pairs: {pairs:,} of {student.channels}x{size}x{size} in {order.source}
  global batch {config.global_batch_size} = {processes} processes x \
{config.gradient_accumulation_steps} micro-steps; {config.max_train_steps} steps, \
{epochs:.1f} epochs"""


if __name__ == "__main__":
    cli.run(main, STUDENTS)
