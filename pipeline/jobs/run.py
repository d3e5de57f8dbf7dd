"""A run folder: what ran, its metrics, its checkpoints; save, resume, refuse.

    run.json              see settings.py
    metrics.jsonl         one line a logged step
    checkpoints/          see checkpoints.py
    samples/              grids made during training
    finished.json         once there: the run is whole and its result lies in this folder

Nothing that trains here draws from a global random stream: every step is a function of
(seed, step), so a checkpoint needs no random states and a resumed run repeats no draw.
"""

import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from data.files import new_file, write_json
from get.errors import InputError
from pipeline import cli
from pipeline.jobs.checkpoints import (
    Progress,
    TrainState,
    latest,
    load_checkpoint,
    prune,
    save_checkpoint,
)
from pipeline.jobs.run_json import keep_settings
from pipeline.recipes.settings_make import TrainingConfig

AGREE_STEPS = 10  # several processes ask each other this often whether to stop
EXPLODED = 0.9  # a relative residual that says the state grows tenfold an iteration


class Run:
    """One training run on disk.

    Use as a context: entering locks the folder and checks that its settings are these.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        data: object = None,
        batch: Callable[[int], list[int]] | None = None,
    ) -> None:
        """Prepare a run in `config.output_dir`.

        Args:
            config: Its settings.
            accelerator: Of the processes that work on it.
            data: What it learns from, as JSON.
            batch: Says which samples a step looks at, for the report of a step that failed.
        """
        self.config, self.accelerator, self.data, self.batch = config, accelerator, data, batch
        self.path = config.output_dir
        self.seconds = 0.0  # spent in steps, over all processes that worked on this run
        self._pending: list[tuple[int, dict[str, Tensor]]] = []
        self._bar: tqdm | None = None
        self._looked = 0, time.perf_counter()  # steps and time when last looked at
        self._exploded = False

    # ------------------------------------------------------------------ open and close

    def __enter__(self) -> Self:
        """Lock the folder, refuse other settings, write run.json."""
        if self.accelerator.is_main_process:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "run.lock").open("a")
            try:
                self._own()
            except BaseException:
                self._lock.close()
                raise
        self.accelerator.wait_for_everyone()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Unlock the folder; of a disk that is full, say what is safe."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if self.accelerator.is_main_process:
            self._lock.close()
        if isinstance(error, OSError) and error.errno in cli.RESOURCE_ERRORS:
            raise cli.Failed(
                f"expected to write {error.filename or self.path}, got: {error.strerror}; "
                f"{self._last_good()}; mend that and run the same command to continue"
            ) from error

    def _last_good(self) -> str:
        return f"the last good checkpoint is {latest(self.path) or 'none'}"

    def _own(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"expected {self.path} to be free, got another job at work in it; "
                "wait for it or choose another output_dir"
            ) from None
        # Loader workers would keep the lock for seconds after this process was killed.
        os.register_at_fork(after_in_child=self._lock.close)
        if self.config.overwrite_output_dir:
            _empty(self.path)
        changes = keep_settings(self.config, self.data)
        if changes:
            self.say(f"{self.path}: going on with other settings: {'; '.join(changes)}")

    # ------------------------------------------------------------------ the steps

    def steps(self, start: int, state: TrainState, save: Callable[[Path], object]) -> Iterator[int]:
        """Yield the numbers of the steps that are left to do, counted from 0.

        Between them checkpoints are written, after the last one the result; after a signal the
        state is saved and the script exits with 128 + signal.

        Args:
            start: The first of them, from `restore`.
            state: Goes into the checkpoints.
            save: Writes the result as a loadable folder; a part of every checkpoint.
        """
        c, several = self.config, self.accelerator.num_processes > 1
        if finished(self.path):
            return
        began = time.perf_counter() - self.seconds
        self._looked = start, time.perf_counter()
        shown = self.accelerator.is_main_process
        self._bar = cli.progress_bar(
            c.max_train_steps, self.path.name, "step", initial=start, shown=shown
        )
        with cli.Signals() as signals, self._bar as bar:
            for step in range(start, c.max_train_steps):
                yield step
                bar.update()
                done = step + 1
                last = done == c.max_train_steps
                stop = signals.received or 0
                if several:
                    stop = self._agree(stop) if last or done % AGREE_STEPS == 0 else 0
                if stop or last or done % c.checkpointing_steps == 0:
                    self.seconds = time.perf_counter() - began
                    self._save(done, state, save)
                if stop and not last:
                    bar.close()
                    signals.exit(
                        stop, f"step {done} of {c.max_train_steps} is saved in {self.path}"
                    )
        if self.accelerator.is_main_process:
            self._publish()
        self.accelerator.wait_for_everyone()

    def record(self, step: int, **values: Tensor) -> None:
        """Note the values of a step; logged every `log_steps`, checked for inf and nan then too.

        Raises:
            Failed: If a value is not finite, naming the step, its samples and the last good
                checkpoint.
        """
        self._pending.append((step, values))
        if (step + 1) % self.config.log_steps == 0:
            self._flush()

    def log(self, step: int, **values: float) -> None:
        """Append one line to metrics.jsonl and tell the trackers."""
        if self.accelerator.is_main_process:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step + 1, **values}) + "\n")
        self.accelerator.log(values, step=step + 1)

    def say(self, line: str) -> None:
        """Print a line without tearing the progress bar."""
        if self.accelerator.is_main_process:
            tqdm.write(line)

    def _flush(self) -> None:
        """Look at the pending values; the one place of the loop that waits for the device."""
        if not self._pending:
            return
        names = list(self._pending[0][1])
        rows = torch.stack(
            [
                torch.stack([v.detach().float() for v in values.values()])
                for _, values in self._pending
            ]
        )
        rows = self.accelerator.reduce(rows, "mean").tolist()
        for (step, _), row in zip(self._pending, rows, strict=True):
            if not all(map(math.isfinite, row)):
                self._fail(step, dict(zip(names, row, strict=True)))
        step, _ = self._pending[-1]
        self._pending.clear()
        values = dict(zip(names, rows[-1], strict=True))
        self.log(step, **values)
        rate = self._images_per_second(step + 1)
        self.accelerator.log({"images_per_second": rate}, step=step + 1)
        if self._bar is not None:
            shown = {n: f"{v:.3g}" for n, v in values.items()}
            self._bar.set_postfix({**shown, "images/s": f"{rate:.0f}"}, refresh=False)
        exploded = values.get("residual", 0.0) > EXPLODED
        if exploded and not self._exploded:
            self.say(
                f"step {step + 1}: relative residual {values['residual']:.2g}: the iteration runs "
                "away from its fixed point; a lower learning_rate or a jacobian_weight tames it"
            )
        self._exploded = exploded

    def _fail(self, step: int, values: dict[str, float]) -> None:
        """Stop at values that are not finite; the samples of that step are written down."""
        found = ", ".join(f"{name} {value}" for name, value in values.items())
        samples = ""
        if self.batch is not None:
            indices, path = self.batch(step), self.path / "not-finite.json"
            if self.accelerator.is_main_process:
                write_json(path, {"step": step + 1, "values": values, "pairs": indices})
            samples = f" (pairs {', '.join(map(str, indices[:4]))}, ...: all are in {path})"
        raise cli.Failed(
            f"expected finite values, got {found} in step {step + 1}{samples}; "
            f"{self._last_good()}; try a lower learning_rate"
        )

    def _images_per_second(self, done: int) -> float:
        """Return the rate since this was last asked."""
        now = time.perf_counter()
        before, then = self._looked
        self._looked = done, now
        return (done - before) * self.config.global_batch_size / max(now - then, 1e-9)

    def _agree(self, stop: int) -> int:
        """Return the highest signal number any process has received."""
        flags = torch.tensor([stop], device=self.accelerator.device)
        return int(self.accelerator.gather(flags).max())

    # ------------------------------------------------------------------ checkpoints

    def _save(self, step: int, state: TrainState, save: Callable[[Path], object]) -> None:
        self._flush()  # never save what is not finite
        if self.accelerator.is_main_process:
            progress = Progress(step, self.seconds, self.accelerator.num_processes)
            save_checkpoint(self.path, state, progress, save, self.config.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()

    def restore(self, state: TrainState) -> int:
        """Load the newest checkpoint into `state`; return the number of steps it has done.

        Raises:
            InputError: If the checkpoint cannot be read.
        """
        newest, progress = latest(self.path), Progress()
        if newest is not None:
            progress = load_checkpoint(newest, state)
        self.seconds, total = progress.seconds, self.config.max_train_steps
        if finished(self.path):
            self.say(f"{self.path}: finished; nothing to do")
            return total
        if progress.step:
            now, then = self.accelerator.num_processes, progress.processes
            other = f", on {now} processes instead of {then}" if then not in (None, now) else ""
            self.say(f"{self.path}: continuing at step {progress.step} of {total}{other}")
        if self.accelerator.is_main_process:
            _cut_metrics(self.path / "metrics.jsonl", progress.step)
        return progress.step

    def published(self) -> list[str]:
        """Return the files of the newest checkpoint's result, relative to its folder."""
        source = latest(self.path)
        assert source is not None
        files = (p.relative_to(source) for p in source.rglob("*") if p.is_file())
        return sorted(str(p) for p in files if p.parts[0] != "state")

    def _publish(self) -> None:
        """Copy the newest checkpoint's result into the run folder, then call it finished."""
        prune(self.path, self.config.checkpoints_total_limit)  # a killed job may not have
        source = latest(self.path)
        assert source is not None
        for name in self.published():
            target = self.path / name
            with new_file(target) as temporary:
                shutil.copyfile(source / name, temporary)
        write_json(
            self.path / "finished.json",
            {"steps": self.config.max_train_steps, "seconds": self.seconds},
        )


def finished(path: Path) -> bool:
    """Say whether the run in this folder has its result."""
    return (path / "finished.json").exists()


def _empty(path: Path) -> None:
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != "run.lock":
            entry.unlink()


def _cut_metrics(path: Path, step: int) -> None:
    """Drop the lines after `step`, which the resumed run writes again, and a torn last line."""
    if path.exists():
        lines = [x for x in path.read_text().splitlines(keepends=True) if x.endswith("\n")]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        with new_file(path) as temporary:
            temporary.write_text("".join(kept))
