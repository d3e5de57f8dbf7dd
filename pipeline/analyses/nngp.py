"""Equilibrium networks of infinite width: does theory hold, and what is its kernel worth?

`limits.py` compares finite networks with the kernel, and says how normal they are; `spectra.py`
finds smallest eigenvalues; `kernel_regression.py` does exact Gaussian-process regression on real
images. Writes nngp.json and nngp.png.
"""

from dataclasses import asdict

import torch

from pipeline.analyses.kernel_regression import regressions
from pipeline.analyses.limits import contrast, limits
from pipeline.analyses.nngp_tables import plot, summary
from pipeline.analyses.settings import KNOWN, NngpConfig
from pipeline.analyses.spectra import spectra
from pipeline.benchmarks.results import save
from pipeline.cli import progress_bar


def main(config: NngpConfig) -> None:
    """Measure all parts; write JSON and plot."""
    torch.set_num_threads(1)
    widths, states, activations = config.widths, config.states, map(KNOWN.get, config.activations)
    if config.full:
        widths, states = (*widths, 2 * max(widths)), 8 * states
    chosen = [a for a in activations if a is not None]
    with progress_bar(len(chosen) * (len(widths) + 1) + 6, "nngp", "part") as bar:
        figures = {
            "settings": asdict(config),
            "limits": [limits(config, a, widths, states, bar.update) for a in chosen],
            "contrast": contrast(config, bar.update),
            "spectra": [spectra(config, a, bar.update) for a in chosen],
            "regression": regressions(config, chosen, bar.update),
        }
    result = save(config, "nngp", figures)
    plot(config.output_dir / "nngp.png", result)
    print(summary(result))
