"""A trace of a few training steps: which operations ran, for how long, on the host and a GPU."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from data.files import new_file


class Profiler:
    """Records some steps of a training for chrome://tracing or ui.perfetto.dev."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path, active: bool) -> None:
        """Record nothing yet.

        Args:
            steps: The first and the last step that are recorded, counted from 1; None: none.
            folder: Gets `steps-<first>-<last>.json`.
            active: Whether this process records.
        """
        self.steps, self.folder = steps if active else None, folder
        self._running: profile | None = None

    def begin(self, step: int) -> None:
        """Start before the first of the steps, or in between if a run was continued there."""
        if self.steps is None or self._running is not None:
            return
        first, last = self.steps
        if first <= step <= last:
            gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._running = profile(activities=[ProfilerActivity.CPU, *gpu], record_shapes=True)
            self._running.start()
            self.steps = step, last

    def end(self, step: int) -> None:
        """Write the trace after the last of the steps."""
        if self.steps is None or self._running is None or step < self.steps[1]:
            return
        self._running.stop()
        first, last = self.steps
        with new_file(self.folder / f"steps-{first}-{last}.json") as temporary:
            self._running.export_chrome_trace(str(temporary))
        self._running = None
