"""Distil: regress the teacher's image from its noise, with a GET or another student.

Runs as `accelerate launch pipeline/train.py NAME` on any number of GPUs and as
`python -m pipeline.train NAME`. The same command continues a run that was stopped.
The step itself is in training/step.py. Next: sample.py, evaluate.py.
"""

from pipeline import cli
from pipeline.recipes.recipe import students

if __name__ == "__main__":
    cli.check_arguments(students)

from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from data.files import new_file
from data.mixture import Mixture
from data.reader import batches
from get.models import Student
from get.pipeline_get import GETPipeline
from pipeline.jobs.checkpoints import latest
from pipeline.jobs.processes import check_launcher, check_processes, together
from pipeline.jobs.run import Run, finished
from pipeline.jobs.state import start_from
from pipeline.jobs.trackers import check_trackers, start_trackers, track_picture
from pipeline.recipes.settings_train import TrainConfig
from pipeline.training.allocator import keep_freed_memory
from pipeline.training.build import (
    build_frechet,
    build_objective,
    build_student,
    check_batch,
)
from pipeline.training.data_sets import build_order, open_data_sets, record
from pipeline.training.peaks import ideal_seconds
from pipeline.training.skipped import Skipped
from pipeline.training.step import TrainingStep
from pipeline.training.step_cost import summary
from pipeline.training.vae import find_vae
from pipeline.training.validation import Validation


def main(config: TrainConfig) -> None:
    """Train a student; the same command continues, and does nothing once the run is finished."""
    check_trackers(config.report_to)
    check_launcher(config.mixed_precision, config.gradient_accumulation_steps)
    # Precision and accumulation are the step's own; accelerate brings the processes together.
    accelerator = Accelerator(
        mixed_precision="no",
        log_with=list(config.report_to) or None,
        project_dir=config.output_dir.parent,
        kwargs_handlers=together(),
    )
    check_processes(accelerator)
    check_batch(config, accelerator.num_processes)
    torch.set_float32_matmul_precision("high")  # TF32 where there is such a thing
    if accelerator.device.type == "cpu":
        keep_freed_memory()

    # ---- what is read: the pairs, in an order that depends on seed and step alone
    sets = open_data_sets(config)
    manifest = sets[0].manifest
    order = build_order(config, sets, accelerator.num_processes)
    config = replace(config, streams=order.streams)  # run.json records it

    # ---- what is trained
    torch.manual_seed(config.seed)
    student = build_student(config, manifest).to(accelerator.device)
    frechet = build_frechet(config, manifest, order, accelerator)
    objective = build_objective(config, student, frechet)
    train_step = TrainingStep(config, student, accelerator, order.streams, objective)
    average, state = train_step.updates.average, train_step.updates.state
    fresh = config.overwrite_output_dir or latest(config.output_dir) is None
    if config.init_from is not None and fresh:
        accelerator.print(start_from(config.init_from, student, average, state.optimizers))

    # ---- what watches and what is saved
    skipped = Skipped() if config.skip_damaged_shards else None
    validation = Validation(config, manifest, order, accelerator, skipped)
    vae = find_vae(config, manifest)

    def save(folder: Path, averaged: Student) -> None:
        GETPipeline(averaged, vae).save_pretrained(folder)

    ideal = ideal_seconds(config, manifest, accelerator.num_processes, accelerator.device)
    with Run(config, accelerator, record(sets, order), order.indices, ideal) as run:
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
            limit=None if config.shard_memory is None else int(config.shard_memory * 2**30),
        )
        for number in run.steps(start, state, save):
            batch = next(loader).to(accelerator.device)
            run.record(number, **train_step(batch, number))
            done = number + 1
            if done % config.validation_steps == 0 or done == config.max_train_steps:
                validate(run, validation, average, number)
                accelerator.wait_for_everyone()
                if skipped is not None:
                    run.log(number, damaged_shards=skipped.count(order, accelerator))
    if accelerator.is_main_process:
        print(f"student {config.output_dir}")
    accelerator.state.destroy_process_group()  # or NCCL complains


def validate(run: Run, validation: Validation, model: Student, number: int) -> None:
    """Measure the averaged weights together; the main process draws the grid of fixed noise."""
    figures = validation.measure(model)
    if not run.accelerator.is_main_process:
        return
    if figures:
        run.log(number, **figures)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        run.say(f"step {number + 1}: {shown}")
    if (picture := validation.picture(model)) is not None:
        with new_file(run.path / "samples" / f"step-{number + 1:06d}.png") as temporary:
            picture.save(temporary, format="png")
        track_picture(run.accelerator, picture, number + 1)


def header(config: TrainConfig, student: Student, order: Mixture, processes: int) -> str:
    """Return what is about to happen, in a few lines."""
    places = [
        f"{part.source}" + (f" ({part.batch_size} of a batch)" if len(order.orders) > 1 else "")
        for part in order.orders
    ]
    lines = summary(config, student, order.pairs, " and ".join(places), processes)
    return f"***** Training {config.output_dir} *****\n{lines}"


if __name__ == "__main__":
    cli.run(main, students)
