"""A run folder: what ran, its metrics, its checkpoints; save, resume, refuse.

    run.json              settings, versions, commit, hardware
    metrics.jsonl         one line a logged step
    checkpoints/checkpoint-<step>/   complete or not there at all: the result so far, loadable as
                          it is, and beside it state/ in safetensors and JSON
    samples/              grids made during training
    finished.json         once there: the run is whole and its result lies in this folder

Nothing that trains here draws from a global random stream: every step is a function of
(seed, step), so a checkpoint needs no random states and a resumed run repeats no draw.
"""

import fcntl
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from get.errors import InputError
from pipeline import cli
from pipeline.config import TrainingConfig
from pipeline.files import new_file, new_folder, read_json, write_json
from pipeline.provenance import provenance
from pipeline.state import load_moments, save_moments

# Settings that change neither what is computed nor in which order; a run may go on without them.
FREE = {
    *("output_dir", "pairs", "checkpointing_steps", "checkpoints_total_limit", "log_steps"),
    *("dataloader_num_workers", "overwrite_output_dir", "train_batch_size"),
    *("gradient_accumulation_steps", "gradient_checkpointing", "validation_steps", "check"),
    *("pairs_cache", "skip_damaged_shards"),
}
AGREE_STEPS = 10  # several processes ask each other this often whether to stop


@dataclass(frozen=True)
class TrainState:
    """Everything a training step changes."""

    modules: Mapping[str, nn.Module]
    optimizer: Optimizer
    scheduler: LRScheduler


class Run:
    """One training run on disk.

    Use as a context: entering locks the folder and checks that its settings are these.
    """

    def __init__(
        self, config: TrainingConfig, accelerator: Accelerator, data: object = None
    ) -> None:
        """Prepare a run in `config.output_dir`; `data` describes what it learns from, as JSON."""
        self.config, self.accelerator, self.data = config, accelerator, data
        self.path = config.output_dir
        self.seconds = 0.0  # spent in steps, over all processes that worked on this run
        self._pending: list[tuple[int, dict[str, Tensor]]] = []
        self._bar: tqdm | None = None

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

    def __exit__(self, *exception: object) -> None:
        """Unlock the folder."""
        if self.accelerator.is_main_process:
            self._lock.close()

    def _own(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"expected {self.path} to be free, got another job at work in it; "
                "wait for it or choose another output_dir"
            ) from None
        if self.config.overwrite_output_dir:
            _empty(self.path)
        self._write_or_compare_settings()

    def _write_or_compare_settings(self) -> None:
        path = self.path / "run.json"
        settings = json.loads(json.dumps({**asdict(self.config), "data": self.data}, default=str))
        if not path.exists():
            ours = "run.lock", ".run.json."  # the latter is what a killed job leaves
            foreign = sorted(p.name for p in self.path.iterdir() if not p.name.startswith(ours))
            if foreign:
                raise InputError(
                    f"expected an empty folder or a run in {self.path}, got {', '.join(foreign)}; "
                    "choose another output_dir, or delete all that with --overwrite_output_dir"
                )
            write_json(path, {"config": settings, **provenance()})
            return
        saved = read_json(path)["config"]
        different = [
            f"{name} was {saved.get(name)!r}, is {value!r}"
            for name, value in settings.items()
            if name not in FREE and saved.get(name) != value
        ]
        if different:
            raise InputError(
                f"expected the settings of the run in {self.path}, got: {'; '.join(different)}; "
                "choose another output_dir, or start afresh with --overwrite_output_dir"
            )

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
            Failed: If a value is not finite, naming the step and the last good checkpoint.
        """
        self._pending.append((step, values))
        if (step + 1) % self.config.log_steps == 0:
            self._flush()

    def log(self, step: int, **values: float) -> None:
        """Append one line to metrics.jsonl."""
        if self.accelerator.is_main_process:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step + 1, **values}) + "\n")

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
                found = ", ".join(f"{n} {v}" for n, v in zip(names, row, strict=True))
                good = latest(self.path)
                raise cli.Failed(
                    f"expected finite values, got {found} in step {step + 1}; the last good "
                    f"checkpoint is {good or 'none'}; try a lower learning_rate"
                )
        step, _ = self._pending[-1]
        self._pending.clear()
        values = dict(zip(names, rows[-1], strict=True))
        self.log(step, **values)
        if self._bar is not None:
            self._bar.set_postfix({n: f"{v:.3g}" for n, v in values.items()}, refresh=False)

    def _agree(self, stop: int) -> int:
        """Return the highest signal number any process has received."""
        flags = torch.tensor([stop], device=self.accelerator.device)
        return int(self.accelerator.gather(flags).max())

    # ------------------------------------------------------------------ checkpoints

    def _save(self, step: int, state: TrainState, save: Callable[[Path], object]) -> None:
        self._flush()  # never save what is not finite
        if self.accelerator.is_main_process:
            checkpoints = self.path / "checkpoints"
            with new_folder(checkpoints / f"checkpoint-{step}") as checkpoint:
                save(checkpoint)
                folder = checkpoint / "state"
                folder.mkdir()
                for name, module in state.modules.items():
                    save_file(module.state_dict(), folder / f"{name}.safetensors")
                optimizer = state.optimizer.state_dict()
                save_moments(folder, optimizer["state"])
                write_json(
                    folder / "state.json",
                    {
                        "step": step,
                        "seconds": self.seconds,
                        "optimizer": optimizer["param_groups"],
                        "scheduler": state.scheduler.state_dict(),
                    },
                )
            for old in _checkpoints(self.path)[: -self.config.checkpoints_total_limit]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def restore(self, state: TrainState) -> int:
        """Load the newest checkpoint into `state`; return the number of steps it has done.

        Raises:
            InputError: If the checkpoint cannot be read.
        """
        newest, step, whole = latest(self.path), 0, finished(self.path)
        if newest is not None:
            folder = newest / "state"
            try:
                saved = json.loads((folder / "state.json").read_text())
                for name, module in state.modules.items():
                    module.load_state_dict(load_file(folder / f"{name}.safetensors"))
                state.optimizer.load_state_dict(
                    {"state": load_moments(folder), "param_groups": saved["optimizer"]}
                )
                state.scheduler.load_state_dict(saved["scheduler"])
                step, self.seconds = saved["step"], saved["seconds"]
            except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
                raise InputError(
                    f"expected a readable checkpoint in {newest}, got {type(error).__name__}: "
                    f"{str(error).splitlines()[0]}; delete that folder to go on from the one before"
                ) from error
        if whole:
            self.say(f"{self.path}: finished; nothing to do")
            return self.config.max_train_steps
        if step:
            self.say(f"{self.path}: continuing at step {step} of {self.config.max_train_steps}")
        if self.accelerator.is_main_process:
            _cut_metrics(self.path / "metrics.jsonl", step)
        return step

    def published(self) -> list[str]:
        """Return the files of the newest checkpoint's result, relative to its folder."""
        source = latest(self.path)
        assert source is not None
        files = (p.relative_to(source) for p in source.rglob("*") if p.is_file())
        return sorted(str(p) for p in files if p.parts[0] != "state")

    def _publish(self) -> None:
        """Copy the newest checkpoint's result into the run folder, then call it finished."""
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


def latest(path: Path) -> Path | None:
    """Return the newest checkpoint of a run, or None."""
    checkpoints = _checkpoints(path)
    return checkpoints[-1] if checkpoints else None


def _checkpoints(path: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first; torn ones have another name."""
    found = [p for p in path.glob("checkpoints/checkpoint-*") if p.name[11:].isdigit()]
    return sorted(found, key=lambda p: int(p.name[11:]))


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
