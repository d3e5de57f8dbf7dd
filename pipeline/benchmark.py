"""Measure speed, memory, or trainings over several seeds: `python -m pipeline.benchmark NAME`.

The benchmarks are in pipeline/benchmarks; `table.py` there lists them by name.
"""

from pipeline import cli
from pipeline.benchmarks.results import BenchmarkConfig
from pipeline.benchmarks.table import BENCHMARKS


def main(config: BenchmarkConfig) -> None:
    """Run the benchmark that has settings of this kind."""
    mains = {type(benchmark.settings): benchmark.main for benchmark in BENCHMARKS.values()}
    mains[type(config)](config)


if __name__ == "__main__":
    cli.run(main, lambda recipes: {name: b.settings for name, b in BENCHMARKS.items()})
