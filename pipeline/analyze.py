"""Check what theory says of equilibrium networks: `python -m pipeline.analyze NAME`.

The analyses are in pipeline/analyses; `table.py` there lists them by name.
"""

from pipeline import cli
from pipeline.analyses.table import ANALYSES
from pipeline.benchmarks.results import BenchmarkConfig


def main(config: BenchmarkConfig) -> None:
    """Run the analysis that has settings of this kind."""
    mains = {type(analysis.settings): analysis.main for analysis in ANALYSES.values()}
    mains[type(config)](config)


if __name__ == "__main__":
    cli.run(main, lambda recipes: {name: a.settings for name, a in ANALYSES.items()})
