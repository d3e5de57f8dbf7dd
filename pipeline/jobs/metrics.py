"""metrics.jsonl: the values of every logged step, checked to be finite; trackers get the same.

Speed and memory are in speed.jsonl: metrics.jsonl is the same for every run of the same steps.
"""

import json
import math
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from data.files import new_file, write_json
from pipeline import cli
from pipeline.jobs.beside import Beside
from pipeline.jobs.checkpoints import name_latest
from pipeline.recipes.settings_make import TrainingConfig

# Value of a step: the number above which it is reported once, and what is said then.
WARNINGS = {
    "residual": (
        0.9,  # the state grows tenfold an iteration
        "relative residual {:.2g}: the iteration runs away from its fixed point; a lower "
        "learning_rate or a jacobian_weight tames it",
    ),
    "adjoint_failed": (
        0.5,
        "the backward solve of {:.0%} of the samples did not converge: their implicit gradients "
        "are wrong; a higher solver_max_steps, or a jacobian_weight, helps",
    ),
}


class Metrics:
    """What the steps of a run report.

    Values stay on the device until `flush`, the only part of the training loop that waits for it.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        batch: Callable[[int], list[int]] | None,
        writer: Beside,
        ideal_seconds: float | None = None,
    ) -> None:
        """Prepare the metrics of the run in `config.output_dir`.

        Args:
            config: The settings of the run.
            accelerator: Of the processes that work on it.
            batch: Returns the samples that a step uses, for the report of a step that failed.
            writer: Of checkpoints; a report waits for the one that is being written.
            ideal_seconds: How long a step would take at the peak of this process's device.
        """
        self.writer, self.ideal_seconds = writer, ideal_seconds
        self._rates: Callable[[int], dict[str, float]] = lambda step: {}
        self.config, self.accelerator, self.batch = config, accelerator, batch
        self.path, self.speed = (config.output_dir / f"{x}.jsonl" for x in ("metrics", "speed"))
        self._pending: list[tuple[int, dict[str, Tensor]]] = []
        self._bar: tqdm | None = None
        self._flushed = 0, time.perf_counter()  # steps done at the last flush, and when it was
        self._warned: set[str] = set()  # the values that were too high at the last flush

    def start(self, step: int, bar: tqdm, rates: Callable[[int], dict[str, float]]) -> None:
        """Measure the rate from this step on and show values in the progress bar.

        Args:
            step: Steps made.
            bar: The progress bar.
            rates: Returns the learning rates of a step by name.
        """
        self._flushed, self._bar, self._rates = (step, time.perf_counter()), bar, rates

    def cut(self, step: int) -> None:
        """Delete the lines after `step`, which a resumed run writes again, and a torn last line."""
        for path in filter(Path.exists, (self.path, self.speed)):
            lines = path.read_text().splitlines(keepends=True)
            kept = [x for x in lines if x.endswith("\n") and json.loads(x)["step"] <= step]
            with new_file(path) as temporary:
                temporary.write_text("".join(kept))

    def record(self, step: int, **values: Tensor) -> None:
        """Note the values of a step; they are checked and logged every `log_steps`."""
        if self._pending and self._pending[-1][1].keys() != values.keys():
            self.flush()  # another phase of the training begins, with other values
        self._pending.append((step, values))
        if (step + 1) % self.config.log_steps == 0:
            self.flush()

    def log(self, step: int, **values: float) -> None:
        """Append one line to metrics.jsonl and send it to the trackers."""
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step + 1, **values}) + "\n")
        self.accelerator.log(values, step=step + 1)

    def flush(self) -> None:
        """Check all pending values and log those of the last step.

        Raises:
            Failed: If a value is not finite, naming the step, its samples and the last checkpoint.
        """
        if not self._pending:
            return
        # One transfer for all steps: the mean of each value over the processes.
        names = list(self._pending[0][1])
        rows = [[v.detach().float() for v in values.values()] for _, values in self._pending]
        table = torch.stack([torch.stack(row) for row in rows])
        means = self.accelerator.reduce(table, "mean").tolist()
        for (step, _), row in zip(self._pending, means, strict=True):
            if not all(map(math.isfinite, row)):
                self._fail(step, dict(zip(names, row, strict=True)))
        step, _ = self._pending[-1]
        self._pending.clear()
        values = dict(zip(names, means[-1], strict=True))
        self.log(step, **values, **self._rates(step))
        rate = self._images_per_second(step + 1)
        self._log_speed(step, rate)
        if self._bar is not None:
            shown = {name: f"{value:.3g}" for name, value in values.items()}
            self._bar.set_postfix({**shown, "images/s": f"{rate:.0f}"}, refresh=False)
        self._warn(step, values)

    def _log_speed(self, step: int, rate: float) -> None:
        """Append to speed.jsonl what another run of the same steps would not repeat."""
        speed: dict[str, float] = {"images_per_second": rate}
        if self.ideal_seconds is not None:
            speed["of_peak"] = rate / self.config.global_batch_size * self.ideal_seconds
        if self.accelerator.device.type == "cuda":
            speed["peak_bytes"] = torch.cuda.max_memory_allocated()
        else:
            speed["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if self.accelerator.is_main_process:
            with self.speed.open("a") as file:
                file.write(json.dumps({"step": step + 1, **speed}) + "\n")
        self.accelerator.log(speed, step=step + 1)

    def _warn(self, step: int, values: dict[str, float]) -> None:
        """Say once when a value becomes too high."""
        high = {name for name, (most, _) in WARNINGS.items() if values.get(name, 0.0) > most}
        if self.accelerator.is_main_process:
            for name in sorted(high - self._warned):
                tqdm.write(f"step {step + 1}: {WARNINGS[name][1].format(values[name])}")
        self._warned = high

    def _fail(self, step: int, values: dict[str, float]) -> None:
        """End the run at values that are not finite; write down the samples of that step."""
        shown = ", ".join(f"{name} {value}" for name, value in values.items())
        samples = ""
        if self.batch is not None:
            indices, path = self.batch(step), self.path.with_name("not-finite.json")
            if self.accelerator.is_main_process:
                write_json(path, {"step": step + 1, "values": values, "pairs": indices})
            samples = f" (pairs {', '.join(map(str, indices[:4]))}, ...: all are in {path})"
        self.writer.settle()
        raise cli.Failed(
            f"expected finite values, got {shown} in step {step + 1}{samples}; "
            f"{name_latest(self.config.output_dir)}; try a lower learning_rate"
        )

    def _images_per_second(self, done: int) -> float:
        """Return the rate since the last flush."""
        now = time.perf_counter()
        before, then = self._flushed
        self._flushed = done, now
        return (done - before) * self.config.global_batch_size / max(now - then, 1e-9)
