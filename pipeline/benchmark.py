"""Benchmarks, each in a file of its own: `python -m pipeline.benchmark NAME`.

    claim    GET beside ViTs of up to 5 times its size, three seeds (benchmark_seeds.py)
    memory   bytes of a training step against iterations (benchmark_memory.py)
    modes    every way of training a GET, side by side (benchmark_modes.py)
    ours     our training beside the published one, three seeds (benchmark_seeds.py)
    pairs    the whole job of writing pairs beside its teacher alone (benchmark_pairs.py)
    reader   pairs per second of the reader beside webdataset's own (benchmark_reader.py)
    solvers  time and memory of the solvers beside torchdeq's (benchmark_solvers.py)
    steps    training steps of what is compared at equal wall time (benchmark_steps.py)
    train    whole training steps beside the machine's limit and torchdeq (benchmark_train.py)

A claim of speed or memory is a ratio of two things measured in one run; each writes its JSON.
"""

from collections.abc import Callable
from typing import Any

from pipeline import cli
from pipeline.benchmarks import memory as benchmark_memory
from pipeline.benchmarks import modes as benchmark_modes
from pipeline.benchmarks import reader as benchmark_reader
from pipeline.benchmarks import seeds as benchmark_seeds
from pipeline.benchmarks import solvers as benchmark_solvers
from pipeline.benchmarks import steps as benchmark_steps
from pipeline.benchmarks import train as benchmark_train
from pipeline.benchmarks import writer as benchmark_pairs
from pipeline.recipes import BENCHMARKS
from pipeline.recipes.settings_measure import (
    MemoryConfig,
    ModesConfig,
    ReaderConfig,
    SeedsConfig,
    SolversConfig,
    StepsConfig,
    TrainBenchmarkConfig,
    WriterConfig,
)

MAINS: dict[type, Callable[[Any], None]] = {
    MemoryConfig: benchmark_memory.main,
    ModesConfig: benchmark_modes.main,
    ReaderConfig: benchmark_reader.main,
    SeedsConfig: benchmark_seeds.main,
    SolversConfig: benchmark_solvers.main,
    StepsConfig: benchmark_steps.main,
    TrainBenchmarkConfig: benchmark_train.main,
    WriterConfig: benchmark_pairs.main,
}

if __name__ == "__main__":
    cli.run(lambda config: MAINS[type(config)](config), BENCHMARKS)
