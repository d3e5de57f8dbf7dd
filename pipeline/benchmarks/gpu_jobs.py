"""What needs a GPU besides models alone: tests, pairs, checkpoints, a training: for gpu.py."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

from data.teachers.edm.checkpoint import save as save_checkpoint
from data.teachers.edm.pickle_reader import Checkpoint
from data.writer import open_pairs, write_shards
from get.cost import in_turns
from get.noise import draw
from pipeline.benchmarks import saving as on_saving
from pipeline.benchmarks.costs import EDM, edm_network
from pipeline.benchmarks.gpu_models import forget
from pipeline.benchmarks.gpu_rows import Figures, GpuConfig, Rows
from pipeline.benchmarks.train import TrainBenchmarkConfig, build_step
from pipeline.jobs.processes import local_device
from pipeline.recipes import RECIPES

ROOT = Path(__file__).parents[2]
AS_IT_IS = "float32"
EXECUTIONS: dict[str, dict[str, Any]] = {  # of the teacher
    "bf16, channels_last, compiled": {
        "mixed_precision": "bf16", "memory_format": "channels_last", "compile": True
    },
    AS_IT_IS: {},
}  # fmt: skip
TEST_SECONDS = 100  # of one test, so that one that hangs does not take the others' results along
BATCHES = 4  # of the teacher in a shard, so that all but the last can be encoded beside it


def tests(config: GpuConfig) -> Rows:
    """Return the tests marked `gpu`; a rehearsal collects them."""
    return {"all": partial(run_tests, config.rehearse)}


def run_tests(collect: bool = False) -> Figures:
    """Run the tests that need a GPU at the same time, whatever other software warns of.

    Nearly all of their time goes into imports and compilers, on the host.
    """
    marked = [p for p in ROOT.glob("tests/test_*.py") if "pytest.mark.gpu" in p.read_text()]
    variables = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # of other software
    flags = [x for name in ("xdist", "timeout", "jaxtyping") for x in ("-p", name)]
    flags += ["-q", "-m", "gpu and not slow", "-W", "default", "--timeout", str(TEST_SECONDS)]
    flags += ["-n0", "--collect-only"] if collect else ["-n8"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *flags, f"--junitxml={report}", *marked]
        done = subprocess.run(
            command, cwd=ROOT, env=variables, check=False, capture_output=True, text=True
        )
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    wrong = [(case, found) for case in cases for found in case if found.tag in ("failure", "error")]
    return {
        "tests": len(cases),
        "skipped": sum(case.find("skipped") is not None for case in cases),
        "failed": {case.get("name", ""): (found.text or "")[-3000:] for case, found in wrong},
        "exit_code": done.returncode,
        "tail": done.stdout[-1500:] + done.stderr[-1500:],
    }


def pairs(config: GpuConfig) -> Rows:
    """Return the writing of pairs beside their teacher: EDM's DDPM++ with random weights."""
    return {way: partial(write_pairs, config, way) for way in EXECUTIONS}


def write_pairs(config: GpuConfig, way: str) -> Figures:
    """Return the rates of the teacher alone and of the whole job, which make the same images."""
    forget()
    channels, batches, turns = (8, 2, 1) if config.rehearse else (128, BATCHES, 2)
    recipe = RECIPES["cifar10"].pairs
    if config.rehearse:
        recipe = replace(recipe, teacher_batch_size=2, pack=2, num_inference_steps=2)
    with tempfile.TemporaryDirectory() as folder:
        (weights := Path(folder) / "teacher").mkdir()
        network = edm_network(channels)
        arguments: Any = {k: list(v) if isinstance(v, tuple) else v for k, v in EDM.items()}
        arguments |= {"model_channels": channels, "model_type": "SongUNet"}
        state = {f"model.{k}": v for k, v in network.state_dict().items()}
        save_checkpoint(Checkpoint("EDMPrecond", arguments, state), weights)
        size = recipe.teacher_batch_size
        settings = replace(
            recipe,
            teacher=str(weights),
            output_dir=Path(folder) / "pairs",
            pairs_per_shard=batches * size,
            num_pairs=batches * size,
            **EXECUTIONS[way],
        )
        teacher, manifest = open_pairs(settings, local_device())
        (noise, _), shards = draw(0, range(size), manifest.image_shape), count()
        calls: dict[str, Callable[[], object]] = {
            "teacher": lambda: [teacher(noise, None).cpu() for _ in range(batches)],
            "job": lambda: write_shards(settings.output_dir, [next(shards)], teacher, manifest),
        }
        seconds = in_turns(calls, turns)
    alone, job = (batches * size / median(seconds[name].wall) for name in calls)
    return {
        "teacher_batch_size": size,
        "teacher_images_per_second": alone,
        "pairs_per_second": job,
        "overhead": 1 - job / alone,
    }


def saving(config: GpuConfig) -> Rows:
    """Return the step that saves a checkpoint, compared with a usual one."""
    return {config.sizes[0]: partial(save_beside, config)}


def save_beside(config: GpuConfig) -> Figures:
    """Return the seconds of usual steps, of those that save, and of those after; see saving.py."""
    forget()
    size, batch, repeats = config.sizes[0], config.batch_sizes[0], min(config.repeats, 5)
    places = {"output_dir": config.output_dir, "image_size": config.image_size}
    train = TrainBenchmarkConfig(**places, batch_size=batch)
    bf16 = replace(train.published(size), mixed_precision="bf16")
    step = build_step(train, bf16, local_device())
    settings = on_saving.SavingConfig(**places, batch_size=batch, repeats=repeats)
    return {"batch": batch, **on_saving.measure(settings, step)}


def training(config: GpuConfig) -> Rows:
    """Return a distillation by its commands, in bf16; both go on where they were.

    Not compiled: rollouts of four lengths are four graphs, for which the compiler takes longer than
    the training of so small a student.
    """
    recipe = "smoke" if config.rehearse else "photos"
    folder = config.output_dir / "gpu-training"
    written, run = folder / f"{recipe}-pairs", folder / recipe
    quick = [] if config.rehearse else ["--mixed_precision", "bf16"]
    trained: list[object] = [recipe, "--pairs", written, "--output_dir", run, *quick]
    return {
        "pairs": lambda: {"seconds": timed("make_pairs", recipe, "--output_dir", written)},
        recipe: lambda: {"seconds": timed("train", *trained), **what_it_says(run)},
    }


def timed(name: str, *arguments: object) -> float:
    """Run one of our commands; return its seconds.

    Raises:
        RuntimeError: If it fails, with the end of what it says.
    """
    command, began = [sys.executable, "-m", f"pipeline.{name}", *map(str, arguments)], time.time()
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-400:]}")
    return time.time() - began


def what_it_says(run: Path) -> Figures:
    """Return the speed of a training after its beginning, and the last of its figures."""
    speed, metrics = (
        [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]
        for name in ("speed", "metrics")
    )
    later = speed[len(speed) // 2 :]
    known = {name: later[0][name] for name in ("of_peak",) if name in later[0]}
    return {
        "images_per_second": median(line["images_per_second"] for line in later),
        "peak_bytes": max(line["peak_bytes"] for line in speed),
        **known,
        "last": metrics[-3:],
    }
