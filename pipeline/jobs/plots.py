"""Plots as PNG files, for benchmarks and diagnoses."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data.files import new_file


@contextmanager
def new_plot(
    path: Path, size: tuple[float, float], columns: int = 1
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield an empty figure and its axes, side by side; write it when the block ends.

    Without pyplot, so nothing needs a screen and no figure outlives the block.

    Args:
        path: The PNG file; it appears complete or not at all.
        size: Width and height in inches.
        columns: Number of axes.
    """
    figure = Figure(figsize=size, layout="constrained")
    yield figure, list(figure.subplots(1, columns, squeeze=False)[0])
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
