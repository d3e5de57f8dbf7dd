"""Neural collapse in equilibrium and explicit classifiers: the claim of an advantage, tested.

Sun and Shi (NeurIPS 2024) say that with unequal classes the features of equilibrium models come
closer to a simplex, and rows of the classifier to the means, than those of explicit ones. Here
both are trained on the same images with the same seeds until no training image is misnamed, and
beyond. `collapse_run.py` watches one training, `unequal.py` makes the sets of images. A training
that was finished is not repeated. Writes collapse.json and collapse.png.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, fields
from typing import Any

from pipeline.analyses.collapse_run import Task, file_of, measured
from pipeline.analyses.collapse_tables import plot, summary
from pipeline.analyses.compared import compare
from pipeline.analyses.settings import CollapseConfig
from pipeline.analyses.unequal import cells, training_set
from pipeline.benchmarks.results import check_common, save
from pipeline.cli import Failed, progress_bar
from pipeline.jobs.processes import one_of_several

FREE = {
    *("output_dir", "seeds", "jobs", "full", "kinds"),
    *("majorities", "ratios", "student_ratios", "weight_decays"),
}


def main(config: CollapseConfig) -> None:
    """Train what is missing; sum up."""
    ours = {f.name: str(getattr(config, f.name)) for f in fields(config) if f.name not in FREE}
    ours["classifier"] = config.classifier.name
    check_common(config.output_dir / "trainings", ours)
    seeds = tuple(dict.fromkeys((*config.seeds, *range(5)))) if config.full else config.seeds
    tasks: list[Task] = [
        (config, cell, kind, seed)
        for seed in seeds
        for cell in cells(config)
        for kind in config.kinds
    ]
    for cell in cells(config):
        training_set(config, cell, seeds[0])  # what is wrong with the images is said now
    runs = []
    with progress_bar(len(tasks), "collapse", "training") as bar:
        for run in finished(tasks, config.jobs):
            runs.append(run)
            bar.update()
    settings = asdict(config) | {"classifier": config.classifier.name}
    figures = {"settings": settings, "rows": compare(runs), "runs": runs}
    result = save(config, "collapse", figures)
    plot(config.output_dir / "collapse.png", result)
    print(summary(result))


def finished(tasks: list[Task], jobs: int) -> Iterator[dict[str, Any]]:
    """Yield what every training shows; several are made at the same time."""
    missing = [task for task in tasks if not file_of(*task).exists()]
    if (jobs := min(jobs, len(missing))) <= 1:
        yield from map(measured, tasks)
        return
    # Not forked: threads of torch do not survive that.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, one_of_several) as pool:
        try:
            yield from pool.map(measured, tasks)
        except BrokenProcessPool:
            raise Failed(
                f"expected {jobs} processes to train, got one that was killed, perhaps for lack "
                "of memory; choose fewer --jobs, and run the same command to continue"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # those that wait, after an error
