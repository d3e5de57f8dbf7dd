"""A run folder: what ran, its metrics, its checkpoints, its result. A run saves, resumes, refuses.

    run.json              settings and versions, see run_json.py
    metrics.jsonl         a line for every logged step, see metrics.py
    checkpoints/          see checkpoints.py
    averages/             of the weights, from which others can be made, see averages.py
    samples/              grids made during training
    finished.json         written last: the run is complete and its result is in this folder

Nothing that trains here draws from a global random stream: every step is a function of
(seed, step), so a checkpoint needs no random states and a resumed run repeats no draw.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from data.files import delete_leftovers, empty_folder, new_file, write_json
from get.errors import InputError
from pipeline import cli
from pipeline.jobs import averages, flock
from pipeline.jobs.beside import Beside
from pipeline.jobs.checkpoints import (
    Progress,
    latest,
    load_checkpoint,
    name_latest,
    prune,
    save_checkpoint,
)
from pipeline.jobs.host_copy import HostCopy, TrainState
from pipeline.jobs.metrics import Metrics
from pipeline.jobs.processes import Highest, all_equal, fingerprint
from pipeline.jobs.profiler import Profiler
from pipeline.jobs.run_json import keep_settings
from pipeline.recipes.settings_make import TrainingConfig

AGREE_STEPS = 5  # several processes ask each other this often whether to stop


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
        ideal_seconds: float | None = None,
    ) -> None:
        """Prepare a run in `config.output_dir`.

        Args:
            config: Its settings.
            accelerator: Of the processes that work on it.
            data: What it learns from, as JSON.
            batch: Returns the samples that a step uses, for the report of a step that failed.
            ideal_seconds: How long a step would take at the peak of the device, if it is known.
        """
        self.config, self.accelerator, self.data = config, accelerator, data
        self.path = config.output_dir
        self.writer = Beside()  # of checkpoints
        self.metrics = Metrics(config, accelerator, batch, self.writer, ideal_seconds)
        self.seconds = 0.0  # spent in steps, over all processes that worked on this run

    # ------------------------------------------------------------------ open and close

    def __enter__(self) -> Self:
        """Lock the folder, refuse other settings, write run.json."""
        if self.accelerator.is_main_process:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "run.lock").open("a")
            try:
                self._take_over()
            except BaseException:
                self._lock.close()
                raise
        if not all_equal([fingerprint(self.data)], self.accelerator):
            raise InputError(
                f"expected the same data in all processes, got others in process "
                f"{self.accelerator.process_index}; start once the data are complete, on machines "
                "that share them"
            )
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Wait for the writer, unlock the folder; if the disk is full, say which state is safe."""
        unsaved = self.writer.end()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if self.accelerator.is_main_process:
            self._lock.close()
        if error is not None and unsaved is not None:
            self.say(f"{name_latest(self.path)}; a later one could not be written: {unsaved}")
        error = error or unsaved
        if isinstance(error, OSError) and error.errno in cli.RESOURCE_ERRORS:
            raise cli.Failed(
                f"expected to write {error.filename or self.path}, got: {error.strerror}; "
                f"{name_latest(self.path)}; mend that and run the same command to continue"
            ) from error
        if unsaved is not None and error is unsaved:
            raise unsaved

    def _take_over(self) -> None:
        flock.take(self._lock, self.path)
        # Loader workers would keep the lock for seconds after this process was killed.
        os.register_at_fork(after_in_child=self._lock.close)
        # Never the folder of something else, which keep_settings refuses.
        if self.config.overwrite_output_dir and (self.path / "run.json").exists():
            empty_folder(self.path, but="run.lock", last="run.json")
        changes = keep_settings(self.config, self.data)
        if changes:
            self.say(f"{self.path}: going on with other settings: {'; '.join(changes)}")

    # ------------------------------------------------------------------ the steps

    def steps(
        self, start: int, state: TrainState, save: Callable[[Path, Any], object]
    ) -> Iterator[int]:
        """Yield the numbers of the remaining steps, counted from 0.

        Checkpoints are copied between them, written beside the next ones, and the result after the
        last one. After a signal the state is saved and the script exits with 128 + signal.

        Args:
            start: The first of them, from `restore`.
            state: Goes into the checkpoints.
            save: Writes the averaged model, which it gets, as a loadable folder; a part of every
                checkpoint.
        """
        c, several, copy = self.config, self.accelerator.num_processes > 1, None
        signal = Highest(self.accelerator.device)  # of all processes
        if finished(self.path):
            return
        began = time.perf_counter() - self.seconds
        shown = self.accelerator.is_main_process
        progress_bar = cli.progress_bar(
            c.max_train_steps, self.path.name, "step", initial=start, shown=shown
        )
        profiler = Profiler(c.profile_steps, self.path / "profile", shown)
        with cli.Signals() as signals, progress_bar as bar:
            self.metrics.start(start, bar, state.learning_rates)
            for step in range(start, c.max_train_steps):
                profiler.begin(step + 1)
                yield step
                bar.update()
                self.writer.check()
                if copy is None and shown:
                    copy = HostCopy(state)
                done = step + 1
                last = done == c.max_train_steps
                stop = signals.received or 0
                if several:  # they must stop at the same step
                    received, stop = stop, 0
                    if done % AGREE_STEPS == 0:
                        stop = signal.answer()
                        signal.ask(received)
                if stop or last or done % c.checkpointing_steps == 0:
                    self.seconds = time.perf_counter() - began
                    self._save(done, state, copy, save)
                if stop or last:
                    self.writer.wait()
                    self.accelerator.wait_for_everyone()
                profiler.end(done)
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

        Raises the audit event `get.step` (PEP 578) with the number of steps made: a place, the
        same in all processes, at which an observer may end them. The others are the files of the
        run folder, for which Python has events of its own.

        Raises:
            Failed: If a value is not finite, naming the step, its samples and the last checkpoint.
        """
        sys.audit("get.step", step + 1)
        self.metrics.record(step, **values)

    def log(self, step: int, **values: float) -> None:
        """Append one line to metrics.jsonl and send it to the trackers."""
        self.metrics.log(step, **values)

    def say(self, line: str) -> None:
        """Print a line without tearing the progress bar."""
        if self.accelerator.is_main_process:
            tqdm.write(line)

    # ------------------------------------------------------------------ checkpoints

    def _save(
        self,
        step: int,
        state: TrainState,
        copy: HostCopy | None,
        save: Callable[[Path, Any], object],
    ) -> None:
        self.metrics.flush()  # never save what is not finite
        if not self._alike(step, state):
            self.writer.settle()
            raise cli.Failed(
                f"expected the same weights in all processes after step {step}, got different "
                f"ones; {name_latest(self.path)}; are the machines and their software the same?"
            )
        if copy is not None:  # in the main process
            self.writer.wait()  # it may still write from this memory
            copy.take()
            progress = Progress(step, self.seconds, self.accelerator.num_processes)
            self.writer.start(partial(save_checkpoint, self.config, copy, progress, save))

    def restore(self, state: TrainState) -> int:
        """Load the newest checkpoint into `state`; return the number of steps it has done.

        Raises:
            InputError: If the checkpoint cannot be read, or processes have read different ones.
        """
        newest, progress = latest(self.path), Progress()
        if newest is not None:
            progress = load_checkpoint(newest, state)
        if not self._alike(progress.step, state):
            raise InputError(
                f"expected all processes to start with the same checkpoint, got step "
                f"{progress.step} or other weights in process {self.accelerator.process_index}; "
                f"let all machines share {self.path} and what --init_from names"
            )
        self.seconds, total = progress.seconds, self.config.max_train_steps
        if finished(self.path):
            self.say(f"{self.path}: finished; nothing to do")
            return total
        if progress.step:
            now, then = self.accelerator.num_processes, progress.processes
            other = f", on {now} processes instead of {then}" if then not in (None, now) else ""
            self.say(f"{self.path}: continuing at step {progress.step} of {total}{other}")
        if self.accelerator.is_main_process:
            delete_leftovers(self.path)
            self.metrics.cut(progress.step)
            averages.cut(self.path, progress.step)
        return progress.step

    def _alike(self, step: int, state: TrainState) -> bool:
        """Say whether all processes are at this step of one folder, with the same weights."""
        if self.accelerator.num_processes == 1:
            return True
        facts = [int(finished(self.path)), step, *state.sums()]
        return all_equal(facts, self.accelerator)

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
            with new_file(self.path / name) as temporary:
                shutil.copyfile(source / name, temporary)
        write_json(
            self.path / "finished.json",
            {"steps": self.config.max_train_steps, "seconds": self.seconds},
        )


def finished(path: Path) -> bool:
    """Say whether the run in this folder has its result."""
    return (path / "finished.json").exists()
