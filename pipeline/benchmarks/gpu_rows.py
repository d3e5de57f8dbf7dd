"""What the benchmark `gpu` keeps: one file, with every row as soon as it is measured.

    gpu.json: {"rehearsal": ..., "parts": {PART: {"rows": {NAME: figures}, "begun": NAME, ...}}}

So a part that is stopped, or a machine that is taken away, costs the row that was being measured.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from data.files import read_json, write_json
from pipeline.benchmarks.results import BenchmarkConfig
from pipeline.jobs.provenance import provenance

Part = Literal["tests", "steps", "sampling", "pairs", "saving", "training"]
Figures = dict[str, Any]
Rows = Mapping[str, Callable[[], Figures]]
"""What is measured by the names of the rows, the most valuable first."""


@dataclass(frozen=True, kw_only=True)
class GpuConfig(BenchmarkConfig):
    """Measure what needs a GPU, as far as the minutes go; the same command goes on.

    Attributes:
        minutes: The whole command ends after so many.
        parts: Which parts, in this order.
        sizes: Published sizes of GET whose steps and sampling are measured.
        batch_sizes: Images of a training step.
        sampling_batches: Images at once in sampling; latency is that of 1.
        image_size: Side of the images.
        repeats: Turns.
        rehearse: Everything at its smallest, on any machine; figures mean nothing.
        only: Run this part in this process.
    """

    minutes: int = 14
    parts: tuple[Part, ...] = ("tests", "steps", "sampling", "pairs", "saving", "training")
    sizes: tuple[str, ...] = ("GET-B/2", "GET-S/2")
    batch_sizes: tuple[int, ...] = (128, 16, 512)
    sampling_batches: tuple[int, ...] = (1, 1024, 256)
    image_size: int = 32
    repeats: int = 10
    rehearse: bool = False
    only: Part | None = None

    def sized(self) -> "GpuConfig":
        """Return what is measured: a rehearsal's is tiny."""
        if not self.rehearse:
            return self
        tiny = {"batch_sizes": (1,), "sampling_batches": (1, 2), "image_size": 4, "repeats": 1}
        return replace(self, sizes=("GET-T/2",), **tiny)


def found(config: GpuConfig, part: Part) -> Figures:
    """Return what is known of a part; what a rehearsal found is nothing to the measurement."""
    path, nothing = config.output_dir / "gpu.json", {"rows": {}, "begun": None, "whole": False}
    if not path.exists() or (all_parts := read_json(path))["rehearsal"] != config.rehearse:
        return nothing
    return all_parts["parts"].get(part, nothing)


def measure(config: GpuConfig, part: Part, rows: Rows) -> None:
    """Measure the rows of a part that are missing, and keep each of them.

    One that fails, for want of memory or in the compiler, is kept as failed. One in which the part
    was stopped before comes last: it may take too long.
    """
    known = found(config, part)
    measured, stopped = known["rows"], known["begun"]
    missing = [name for name in rows if name not in measured]
    for name in sorted(missing, key=lambda name: name == stopped):
        _keep(config, part, {"rows": measured, "begun": name, "whole": False})
        try:
            measured[name] = rows[name]()
        except (RuntimeError, ValueError, OSError) as error:
            measured[name] = {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
        _keep(config, part, {"rows": measured, "begun": None, "whole": False})
        print(f"{part}, {name}: {measured[name]}", flush=True)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # a GPU that has failed for good ends this process
    _keep(config, part, {"rows": measured, "begun": None, "whole": True})


def _keep(config: GpuConfig, part: Part, figures: Figures) -> None:
    path, others = config.output_dir / "gpu.json", {}
    if path.exists() and (before := read_json(path))["rehearsal"] == config.rehearse:
        others = before["parts"]
    parts = {**others, part: {**figures, **provenance()}}
    write_json(path, {"rehearsal": config.rehearse, "parts": parts})
