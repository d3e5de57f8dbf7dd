"""Benchmarks, each in a file of its own: `python -m pipeline.benchmark NAME`.

    memory   bytes of a training step against iterations (benchmark_memory.py)
    modes    every way of training a GET, side by side (benchmark_modes.py)
    solvers  time and memory of the solvers beside torchdeq's (benchmark_solvers.py)

A claim of speed or memory is a ratio of two things measured in one run; each writes its JSON.
"""

from pipeline import benchmark_memory, benchmark_modes, benchmark_solvers, cli
from pipeline.config_measure import MemoryConfig, ModesConfig, SolversConfig
from pipeline.recipes import BENCHMARKS


def main(config: MemoryConfig | ModesConfig | SolversConfig) -> None:
    """Run the benchmark whose settings these are."""
    match config:
        case MemoryConfig():
            benchmark_memory.main(config)
        case ModesConfig():
            benchmark_modes.main(config)
        case SolversConfig():
            benchmark_solvers.main(config)


if __name__ == "__main__":
    cli.run(main, BENCHMARKS)
