"""The benchmarks by name: their settings, what runs them, and the tables that documents show.

costs    what an image costs with a teacher, GETs and ViTs of published sizes
delta    a GET that skips small changes, beside fewer iterations, stopping and compaction
field    GETs and ViTs of many sizes on many or few pairs; what a loop is worth
gpu      all that only a GPU can answer, in parts
memory   bytes of a training step against the number of iterations
modes    every way of training a GET
ours     our training compared with the published one, both searched, three seeds
photograph  the same for an equilibrium network that fits a picture
reader   pairs per second of our reader and of webdataset's
saving   how long the step takes that saves a checkpoint
scale    what a job and a training do before their work on 100,000 shards
solvers  time and memory of our solvers and of torchdeq's
train    training steps compared with the machine's matmul rate and with torchdeq
writer   what writing pairs costs in addition to the teacher
"""

from collections.abc import Callable, Set
from pathlib import Path
from typing import Any, NamedTuple

from data.files import read_json
from pipeline.benchmarks import (
    costs,
    delta,
    field,
    gpu,
    gpu_table,
    loops,
    memory,
    modes,
    ours,
    photograph,
    reader,
    saving,
    scale,
    solvers,
    train,
    writer,
)
from pipeline.benchmarks.results import BenchmarkConfig


class Benchmark(NamedTuple):
    """One benchmark.

    Attributes:
        settings: Its settings; the command line changes them.
        main: Measures with these settings and writes a JSON file.
        markdown: Turns what that file says into a table; None if no document shows it.
        measurements: The folder beside the others' in which the committed file lies.
        title: Of a section of a report; none if empty.
    """

    settings: BenchmarkConfig
    main: Callable[[Any], None]
    markdown: Callable[[dict[str, Any]], str] | None = None
    measurements: str = ""
    title: str = ""


BENCHMARKS = {
    "costs": Benchmark(costs.CostsConfig(), costs.main, costs.markdown),
    "delta": Benchmark(
        delta.DeltaConfig(), delta.main, delta.markdown, "delta", "Skipping small changes"
    ),
    "field": Benchmark(field.FieldConfig(), field.main, loops.markdown),
    "gpu": Benchmark(gpu.GpuConfig(), gpu.main, gpu_table.markdown, "gpu"),
    "memory": Benchmark(memory.MemoryConfig(), memory.main, memory.markdown),
    "modes": Benchmark(modes.ModesConfig(), modes.main, modes.markdown),
    "ours": Benchmark(ours.OursConfig(), ours.main, ours.markdown),
    "photograph": Benchmark(
        photograph.PhotographConfig(),
        photograph.main,
        photograph.markdown,
        "delta",
        "Skipping small changes: a network that is a picture",
    ),
    "reader": Benchmark(reader.ReaderConfig(), reader.main),
    "saving": Benchmark(saving.SavingConfig(), saving.main, saving.markdown),
    "scale": Benchmark(scale.ScaleConfig(), scale.main, scale.markdown),
    "solvers": Benchmark(solvers.SolversConfig(), solvers.main, solvers.markdown),
    "train": Benchmark(train.TrainBenchmarkConfig(), train.main, train.markdown),
    "writer": Benchmark(writer.WriterConfig(), writer.main),
}


def tables_of_benchmarks(names: Set[str], folder: Path) -> dict[str, str]:
    """Return the tables of these names that are of benchmarks, from folder/NAME.json.

    A name may have a folder: photos/field is the table of field in folder/photos/field.json.
    """
    return {
        name: table(read_json(_file(name, folder)))
        for name in sorted(names)
        if (kind := _kind(name)) in BENCHMARKS and (table := BENCHMARKS[kind].markdown) is not None
    }


def sections_of_benchmarks(folder: Path | None) -> list[str]:
    """Return the titled tables of benchmarks that have a title and results in a folder."""
    parts = []
    for name, benchmark in BENCHMARKS.items():
        if folder is None or benchmark.markdown is None or not benchmark.title:
            continue
        if (path := _file(name, folder)).exists():
            explained = f"docs/{benchmark.measurements}.md says what the figures mean."
            parts += [f"## {benchmark.title}", explained, benchmark.markdown(read_json(path))]
    return parts


def _file(name: str, folder: Path) -> Path:
    """Return where a benchmark's figures lie: in the folder, or in its own beside that."""
    path, own = folder / f"{name}.json", BENCHMARKS[_kind(name)].measurements
    return path if path.exists() or not own else folder.parent / own / f"{name}.json"


def _kind(name: str) -> str:
    """Return the benchmark of a table's name."""
    return name.rpartition("/")[2]
