"""Neural collapse in equilibrium and explicit classifiers: the claim of an advantage, tested.

Sun and Shi (NeurIPS 2024) say that with unequal classes the features of equilibrium models come
closer to a simplex, and rows of the classifier to the means, than those of explicit ones. Here
both are trained on the same images with the same seeds until no training image is misnamed, and
beyond. `collapse_run.py` watches one training, `unequal.py` makes the sets of images. A training
that was finished is not repeated. Writes collapse.json and collapse.png.
"""

from dataclasses import asdict, fields

from pipeline.analyses.collapse_run import Task, file_of, measured
from pipeline.analyses.collapse_tables import plot, summary
from pipeline.analyses.compared import compare
from pipeline.analyses.settings import CollapseConfig
from pipeline.analyses.unequal import cells, training_set
from pipeline.benchmarks.results import check_common, save
from pipeline.cli import progress_bar
from pipeline.jobs.pool import in_processes

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
    missing = sum(not file_of(*task).exists() for task in tasks)
    remedy = "choose fewer --jobs, and run the same command to continue"
    runs = []
    with progress_bar(len(tasks), "collapse", "training") as bar:
        for run in in_processes(measured, tasks, min(config.jobs, missing), remedy):
            runs.append(run)
            bar.update()
    settings = asdict(config) | {"classifier": config.classifier.name}
    figures = {"settings": settings, "rows": compare(runs), "runs": runs}
    result = save(config, "collapse", figures)
    plot(config.output_dir / "collapse.png", result)
    print(summary(result))
