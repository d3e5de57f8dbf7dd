"""What a training would do, take and find: `python -m pipeline.plan NAME --num_processes 8`.

Needs no GPU and changes nothing on disk. Where there are no pairs yet, their recipe says what they
will be. step_cost.py counts, train.py trains, `python -m pipeline.recipes` lists all trainings.
"""

from pipeline import cli
from pipeline.recipes.recipe import plans

if __name__ == "__main__":
    cli.check_arguments(plans)

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from data.folder import Folder, without_secrets
from data.mixture import Mixture
from data.order import rows_of
from data.shard_memory import room
from data.store import open_store
from get.errors import InputError
from get.losses import NETWORKS
from pipeline.jobs.averages import MOST
from pipeline.jobs.checkpoints import latest
from pipeline.jobs.run import finished
from pipeline.jobs.run_json import flat
from pipeline.recipes import RECIPES
from pipeline.recipes.settings_measure import PlanConfig
from pipeline.training.build import build_student, check_batch
from pipeline.training.data_sets import DataSet, build_order, check_alike
from pipeline.training.pairs_on_disk import PairsOnDisk, find_pairs
from pipeline.training.step_cost import StepCost, step_cost, summary


def main(config: PlanConfig) -> None:
    """Print the plan."""
    print(describe(config))


def describe(config: PlanConfig) -> str:
    """Return what the training would do, what it needs and what is there.

    Raises:
        InputError: If settings contradict each other, or complete pairs contradict them.
    """
    processes = config.num_processes
    check_batch(config, processes)
    found = [find_pairs(source) for source in config.sources]
    lines = [f"***** {config.output_dir}: a plan, nothing is done *****", *settings(config)]
    manifests = [pairs.manifest for pairs in found if pairs.manifest is not None]
    if len(manifests) < len(found):
        lines.append("  pairs of unknown shape: parameters, memory and data cannot be estimated")
    else:
        with torch.device("meta"):
            student = build_student(config, manifests[0])
        totals = [max(pairs.count, pairs.planned or 0) for pairs in found]
        held_out = sum(config.holdout_shards * m.pairs_per_shard for m in manifests)
        places = " and ".join(without_secrets(str(pairs.source)) for pairs in found)
        cost = step_cost(config, manifests[0], processes)
        lines += [
            summary(config, student, sum(totals) - held_out, places, processes),
            *demands(config, cost),
        ]
        for pairs, total in zip(found, totals, strict=True):
            lines += data(config, pairs, max(total, 1))
        lines.append(disk(config, cost))
    return "\n".join([*lines, continuing(config), *verdict(config, found)])


def settings(config: PlanConfig) -> list[str]:
    """Return every setting, those of the model too, a line each."""
    kind = f"  model: {type(config.model).__name__}"
    return [kind, *(f"  {name}: {value}" for name, value in flat(asdict(config)).items())]


def demands(config: PlanConfig, cost: StepCost) -> list[str]:
    """Return work and memory of a step."""
    processes, micro_steps = config.num_processes, config.gradient_accumulation_steps
    samples = config.global_batch_size // (processes * micro_steps)
    macs = cost.macs * micro_steps * processes
    limits = "" if config.gradient == "unrolled" else " at most: solvers may stop earlier"
    if config.loss in NETWORKS:
        limits += f" without the network of {config.loss}"
    ddp = f" + DDP's buckets {size_of(cost.gradients)}" if processes > 1 else ""
    return [
        f"  work: {macs:,} MACs per step, forward and backward{limits}; "
        f"{macs * config.max_train_steps:.2e} in all",
        f"  memory of a process (estimate): {size_of(cost.total(processes))} = weights "
        f"{size_of(cost.weights)} + their averages {size_of(cost.weights + cost.averages)} + "
        f"moments {size_of(cost.moments)} + batch {size_of(cost.batch)}{ddp} + peak of a step "
        f"{size_of(cost.peak)}",
        f"    of that peak: gradients {size_of(cost.gradients)}, activations kept for the "
        f"backward pass {size_of(cost.kept)} ({samples} samples at once)",
        f"    in host memory too, of the main process: {size_of(cost.copy)}, a copy of weights, "
        "averages and moments from which checkpoints are written",
    ]


def data(config: PlanConfig, pairs: PairsOnDisk, total: int) -> list[str]:
    """Return what is read, how large it is, and how much of it exists."""
    assert pairs.manifest is not None
    size, how = pairs.bytes_per_pair()
    folder = folder_of(pairs)
    spare = f"; free space there {size_of(free(folder))}" if folder else ""
    return [
        f"  samples: {config.max_train_steps * config.global_batch_size:,}; a pair takes {how} "
        f"{size_of(size)} ({pairs.manifest.image_format}), {total:,} take {size_of(size * total)}",
        f"  finished pairs: {pairs.count:,} of {pairs.planned or pairs.count:,} in {pairs.shards} "
        f"shards, {config.holdout_shards} held out, still to come "
        f"{size_of(size * (total - pairs.count))}{spare}",
    ]


def disk(config: PlanConfig, cost: StepCost) -> str:
    """Return the space that checkpoints and result need, and what is free."""
    kept, space = config.checkpoints_total_limit, free(config.output_dir)
    files = min(-(-config.max_train_steps // config.checkpointing_steps), MOST)
    averages = files * cost.averages // 2  # float16
    need = cost.checkpoint * (kept + 1) + cost.weights + averages
    lack = "" if need <= space else ": TOO LITTLE; choose another output_dir"
    return (
        f"  checkpoints: {size_of(need)} = {kept} kept and 1 being written of "
        f"{size_of(cost.checkpoint)} + averages/ {size_of(averages)} + the result (without a VAE); "
        f"free {size_of(space)}{lack}"
    )


def continuing(config: PlanConfig) -> str:
    """Return what lies in output_dir."""
    newest = latest(config.output_dir)
    if config.overwrite_output_dir:
        return "  output_dir: a run in it is deleted first"
    if finished(config.output_dir):
        return "  output_dir: a finished run; nothing to do"
    return f"  output_dir: {'a new run' if newest is None else f'goes on from {newest.name}'}"


def verdict(config: PlanConfig, found: Sequence[PairsOnDisk]) -> list[str]:
    """Return in a line or two whether the pairs on disk fit, and the memory they take.

    Raises:
        InputError: If they do not, and will not once they are complete.
    """
    for pairs in found:
        if pairs.manifest is None:
            return [f"The pairs do not fit: {pairs.problem}; {make_command(pairs)}"]
    try:
        order = order_of(config, found, planned=False)
        able = f"training could start on {order.shards} shards"
    except InputError:
        order = order_of(config, found, planned=True)
        able = "too few to start with"
    memory = shards_in_memory(config, found, order)
    for pairs in found:
        if pairs.problem is not None:
            return [f"The pairs do not fit: {pairs.problem}; {make_command(pairs)}"]
        if not pairs.complete:
            return [memory, f"The pairs are not complete, {able}; {make_command(pairs)}"]
    held_out = config.holdout_shards * len(found)
    return [memory, f"The pairs fit: {order.shards} shards to train on, {held_out} held out."]


def order_of(config: PlanConfig, found: Sequence[PairsOnDisk], *, planned: bool) -> Mixture:
    """Return the order of the shards that are there, or will be."""
    sets = []
    for pairs in found:
        assert pairs.manifest is not None
        count = max(pairs.count, pairs.planned or 0) if planned else pairs.count
        shards = count // pairs.manifest.pairs_per_shard - config.holdout_shards
        sets.append(DataSet(source=pairs.source, manifest=pairs.manifest, shards=shards))
    check_alike(sets, config.vae)
    return build_order(config, sets, config.num_processes)


def shards_in_memory(config: PlanConfig, found: Sequence[PairsOnDisk], order: Mixture) -> str:
    """Return how many decoded shards a process that reads keeps at least.

    Raises:
        InputError: If they are more than it may.
    """
    workers = config.dataloader_num_workers
    rows = rows_of(order.batch_size, 0, config.num_processes, workers)
    limit = None if config.shard_memory is None else int(config.shard_memory * 2**30)
    manifests = [pairs.manifest for pairs in found]
    count, limit = room(order, rows[0], manifests, None if limit is None else limit // len(rows))
    parts = ", ".join(str(part.batch_size) for part in order.orders)
    share = f" ({parts} of each data set)" if len(found) > 1 else ""
    return (
        f"  a batch mixes {sum(part.streams for part in order.orders)} shards{share}; each of "
        f"{config.num_processes * len(rows)} processes that read has {count} of them in memory, "
        f"at most {size_of(limit)} with those read ahead"
    )


def make_command(pairs: PairsOnDisk) -> str:
    """Return the command that makes the pairs."""
    place = f" --output_dir {pairs.source}" if folder_of(pairs) else ""
    if pairs.recipe and str(pairs.source) == str(RECIPES[pairs.recipe].pairs.output_dir):
        place = ""
    return f"to make them: python -m pipeline.make_pairs {pairs.recipe or 'RECIPE'}{place}"


def folder_of(pairs: PairsOnDisk) -> Path | None:
    """Return the local folder of the pairs, or None if they are elsewhere."""
    store = open_store(pairs.source)
    return store.path if isinstance(store, Folder) else None


def free(path: Path) -> int:
    """Return the free bytes where a folder is or would be."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free


def size_of(count: float) -> str:
    """Return bytes in a unit that suits."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} bytes"


if __name__ == "__main__":
    cli.run(main, plans)
