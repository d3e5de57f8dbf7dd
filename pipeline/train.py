"""Distil: regress the teacher's image from its noise with a GET or a ViT, in one visible loop.

Runs as `accelerate launch pipeline/train.py RECIPE` on any number of GPUs and as
`python -m pipeline.train RECIPE`. The same command continues a run that was stopped.
Next: sample.py, evaluate.py.
"""

from collections.abc import Iterator
from dataclasses import asdict

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from data.files import new_file
from data.manifest import count_shards, read_manifest
from data.pairs import Pairs
from data.reader import Order, batches
from data.store import open_store
from data.teachers import load_vae
from get.ema import EMA
from get.models import GET, ViT
from get.noise import step_seed
from get.pipeline_get import GETPipeline
from pipeline import cli
from pipeline.jobs.checkpoints import TrainState, latest
from pipeline.jobs.run import Run, finished
from pipeline.jobs.state import start_from
from pipeline.jobs.trackers import check_trackers, start_trackers, track_picture
from pipeline.plan import describe, summary
from pipeline.recipes import STUDENTS
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.allocator import keep_freed_memory
from pipeline.training.build import (
    build_student,
    check_batch,
    compile_blocks,
    order_of,
    training_module,
)
from pipeline.training.optimizers import build_optimizers
from pipeline.training.validation import Skipped, Validation

JACOBIAN = 2**32  # streams of (seed, step) from here on belong to the Jacobian penalty


def main(config: TrainConfig) -> None:
    """Train a student; the same command continues, and does nothing once the run is finished."""
    check_trackers(config.report_to)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=list(config.report_to) or None,
        project_dir=config.output_dir.parent,
    )
    cli.check_processes(accelerator)
    check_batch(config, accelerator.num_processes)
    if config.dry_run:
        if accelerator.is_main_process:
            print(describe(config, accelerator.num_processes))
        return
    torch.set_float32_matmul_precision("high")  # TF32 where there is such a thing
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    store = open_store(config.pairs, config.pairs_cache)
    manifest = read_manifest(store)
    shards = count_shards(store) - config.holdout_shards
    order = order_of(config, store, shards, manifest.pairs_per_shard)
    torch.manual_seed(config.seed)
    student = build_student(config, manifest).to(accelerator.device)
    ema = EMA(student, config.ema_decay)
    trainable = [p for p in student.parameters() if p.requires_grad]
    optimizers = build_optimizers(config, student)
    schedulers = tuple(
        get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        for optimizer in optimizers.values()
    )
    state = TrainState({"model": student, "ema": ema.model}, optimizers, schedulers)
    fresh = config.overwrite_output_dir or latest(config.output_dir) is None
    if config.init_from is not None and fresh:
        accelerator.print(start_from(config.init_from, student, ema.model, optimizers))
    if config.compile:
        compile_blocks(student)
    module = accelerator.prepare(training_module(config, student))  # DDP where it is several
    skipped = Skipped() if config.skip_damaged_shards else None
    validation = None
    if accelerator.is_main_process:
        validation = Validation(config, manifest, order, accelerator.device, skipped)
    pipeline = GETPipeline(ema.model, load_vae(manifest.vae) if manifest.vae else None)
    pipeline.set_progress_bar_config(disable=True)

    data = {**asdict(manifest), "shards": order.shards}
    with Run(config, accelerator, data, batch=order.indices) as run:
        start_trackers(accelerator, config)
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
            for optimizer, scheduler in zip(optimizers.values(), schedulers, strict=True):
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            ema.update(student)
            # ---- the step is done
            run.record(step, **mean(parts), grad_norm=norm)
            done = step + 1
            if done % config.validation_steps == 0 or done == config.max_train_steps:
                if validation is not None:
                    validate(run, validation, ema.model, step)
                accelerator.wait_for_everyone()
                if skipped is not None:
                    run.log(step, damaged_shards=skipped.count(config, order, accelerator))
    if accelerator.is_main_process:
        print(f"student {config.output_dir}")


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
    shape = (order.batch_size // order.streams, student.tokens, student.width)
    generators = (
        torch.Generator(device).manual_seed(step_seed(order.seed, step, 1 + first + i))
        for i in range(each)
    )
    return torch.cat([torch.randn(shape, generator=g, device=device) for g in generators])


def split(batch: Pairs, z0: Tensor | None, parts: int) -> Iterator[tuple[Pairs, Tensor | None]]:
    """Cut a batch into equal micro-batches."""
    size = len(batch) // parts
    for i in range(parts):
        at = slice(i * size, (i + 1) * size)
        yield batch.take(at), None if z0 is None else z0[at]


def mean(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of every figure over the micro-steps."""
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}


def validate(run: Run, validation: Validation, model: GET | ViT, step: int) -> None:
    """Measure the averaged weights and draw the grid of fixed noise."""
    if figures := validation.measure(model):
        run.log(step, **figures)
        told = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        run.say(f"step {step + 1}: {told}")
    if (picture := validation.picture(model)) is not None:
        with new_file(run.path / "samples" / f"step-{step + 1:06d}.png") as temporary:
            picture.save(temporary, format="png")
        track_picture(run.accelerator, picture, step + 1)


def header(config: TrainConfig, student: GET | ViT, order: Order, processes: int) -> str:
    """Return what is about to happen, in a few lines."""
    pairs = order.shards * order.pairs_per_shard
    told = summary(config, student, pairs, str(order.source), processes)
    return f"***** Training {config.output_dir} *****\n{told}"


if __name__ == "__main__":
    cli.run(main, STUDENTS)
