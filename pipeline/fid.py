"""FID and its kin at full size: `python -m pipeline.fid STUDENT --models RUN ... --references ...`.

Images of fresh noise (seed, index) go through feature networks; only features are kept. Under
torchrun or in arrays of jobs every process does its share, without waiting for the others, and
whichever finds all features complete computes the figures. The same command continues what was
interrupted, and measures only what is missing. docs/evaluation.md says which figures compare with
which. evaluate.py compares students with their teacher on the same noise instead.
"""

from pipeline import cli
from pipeline.recipes.measures import fids

if __name__ == "__main__":
    cli.check_arguments(fids)

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from data.files import new_file, read_json, write_json
from data.real.feature_files import FeatureFiles
from data.real.sources import ImageSource, open_source
from get.errors import InputError
from get.metrics.features import Features, open_features
from get.metrics.streaming import Gaussian
from pipeline.jobs import flock
from pipeline.jobs.figures import Figures, References, summary, table, warnings
from pipeline.jobs.generated import Generated, decoder, generated, is_student
from pipeline.jobs.processes import local_device, local_main
from pipeline.jobs.provenance import provenance
from pipeline.jobs.share import share
from pipeline.jobs.tables import for_a_terminal, markdown
from pipeline.recipes.settings_measure import FidConfig


def main(config: FidConfig) -> None:
    """Make the features that are missing, then the figures if all are there."""
    task, tasks = share(config.task_index, config.num_tasks, os.environ)
    device = local_device()
    networks = open_networks(config, device)
    cases = find_cases(config, device)
    references = find_references(config, device, networks, cases)
    with alone(config.output_dir / f"task-{task}.lock", config.output_dir):
        measured = Measured(config, networks, references)
        files = [f for f in references.values() if isinstance(f, FeatureFiles)]
        made = [work_files(config, case) for case in cases if not measured.path(case).exists()]
        make_features(files + made, networks, config, task, tasks)
        with locked(config.output_dir / "merge.lock"):
            left = measured.measure(cases)
            if not left:
                publish(config, cases, measured)
                return
    print(
        f"task {task} of {tasks} is done; {left} of {len(cases)} sets of images have parts left, "
        "which other processes make, or this command if it is run again"
    )


def open_networks(config: FidConfig, device: torch.device) -> list[Features]:
    """Open the feature networks; InputError if two share a name."""
    networks = [open_features(source, device) for source in config.feature_networks]
    names = [network.name for network in networks]
    if not names or len({*names}) < len(names):
        raise InputError(
            f"expected feature networks of different names, got {', '.join(names) or 'none'}"
        )
    return networks


def find_cases(config: FidConfig, device: torch.device) -> list[ImageSource]:
    """Return every set of images that is measured, as many images of each as there are.

    The last checkpoint of a run makes the images of its result: they are measured once.

    Raises:
        InputError: If a model or a folder cannot be used, or is named twice.
    """
    cases: list[ImageSource] = []
    for model in config.models:
        if is_student(model):
            dial = config.num_images, config.seeds, config.iterations, config.tol
            cases += generated(model, device, *dial)
            continue
        images = open_source(model, config.datasets)
        if isinstance(images, Gaussian):
            raise InputError(f"expected a model or images, got {model}; it is a reference")
        cases.append(images)
    once: dict[str, ImageSource] = {}
    same: dict[str, str] = {}
    for case in cases:
        if (first := once.setdefault(case.fingerprint, case)) is case:
            continue
        if first.name == case.name:
            raise InputError(
                f"expected different models and seeds, got {case.name} twice; name every one once"
            )
        same[case.name] = first.name
    for name, first in same.items() if local_main() else ():
        print(f"{name} makes the same images as {first}, which are measured once")
    return [*once.values()]


def find_references(
    config: FidConfig,
    device: torch.device,
    networks: Sequence[Features],
    cases: Sequence[ImageSource],
) -> References:
    """Return every reference, whose features may not be there yet.

    Raises:
        InputError: If there is none, or one does not fit the images or the networks.
    """
    if not config.references:
        raise InputError("expected --references, got none; name images to compare with")
    students = [str(case.folder) for case in cases if isinstance(case, Generated)]
    vae = next((d for s in dict.fromkeys(students) if (d := decoder(s, device))), None)
    references: dict[str, FeatureFiles | Gaussian] = {}
    for name in dict.fromkeys(config.references):
        reference = open_source(name, config.datasets, vae)
        if isinstance(reference, Gaussian):
            references[name] = reference
            for network in networks:
                length = network(torch.zeros(1, *cases[0].shape))[0].shape[1]
                if length != len(reference.mean):
                    raise InputError(
                        f"expected statistics of {length} features for {network.name} in {name}, "
                        f"got {len(reference.mean)}; they were made with another network"
                    )
            continue
        for case in cases:
            if case.shape != reference.shape:
                raise InputError(
                    f"expected reference images of {case.shape} like those of {case.name}, got "
                    f"{reference.shape} in {name}; resize them or name others"
                )
        folder = config.cache / reference.fingerprint[:32]
        references[name] = FeatureFiles(folder, reference, reference.count)
    return references


def work_files(config: FidConfig, case: ImageSource) -> FeatureFiles:
    """Return where features of generated images lie until their figures are known."""
    count = min(config.num_images, case.count)
    folder = config.output_dir / "features" / f"{case.fingerprint[:32]}-{count}"
    return FeatureFiles(folder, case, count)


def make_features(
    files: Sequence[FeatureFiles],
    networks: Sequence[Features],
    config: FidConfig,
    task: int,
    tasks: int,
) -> None:
    """Make this process's share of all parts that are missing."""
    parts = [(f, start) for f in files for start in f.starts]
    lacking = {f.folder: {*f.missing(networks)} for f in files}
    mine = [(f, start) for f, start in parts[task::tasks] if start in lacking[f.folder]]
    total = sum(f.stop(start) - start for f, start in mine)
    bar = cli.progress_bar(total, "fid", "image", shown=local_main())
    with cli.Signals() as signals, bar:
        for f, start in mine:
            f.write(start, networks, config.batch_size, bar.update)
            if signals.received:
                bar.close()
                signals.exit(signals.received, f"complete parts are in {config.output_dir}")


class Measured:
    """The figures of every set of images, a file each."""

    def __init__(
        self, config: FidConfig, networks: Sequence[Features], references: References
    ) -> None:
        """Measure nothing yet."""
        self.config, self.networks, self.references = config, networks, references
        self.inputs = {
            "networks": [network.fingerprint for network in networks],
            "references": {
                name: r.source.fingerprint
                if isinstance(r, FeatureFiles)
                else sha256(r.covariance.numpy().tobytes()).hexdigest()
                for name, r in references.items()
            },
            "metrics": sorted(config.metrics),
        }

    def path(self, case: ImageSource) -> Path:
        """Return the file of some images; its name depends on all that its figures depend on."""
        count = min(self.config.num_images, case.count)
        inputs = {**self.inputs, "images": case.fingerprint, "count": count}
        key = sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:24]
        return self.config.output_dir / "figures" / f"{key}.json"

    def measure(self, cases: Sequence[ImageSource]) -> int:
        """Compute the figures of all images whose features are complete; return what is left."""
        real = [f for f in self.references.values() if isinstance(f, FeatureFiles)]
        missing = [case for case in cases if not self.path(case).exists()]
        if any(f.missing(self.networks) for f in real):
            return len(missing)
        figures = Figures(self.networks, self.references, self.config.metrics) if missing else None
        for case in list(missing):
            files = work_files(self.config, case)
            if figures is not None and not files.missing(self.networks):
                write_json(self.path(case), {"model": case.name, **figures(files)})
                shutil.rmtree(files.folder)
                missing.remove(case)
        return len(missing)


def publish(config: FidConfig, cases: Sequence[ImageSource], measured: Measured) -> None:
    """Write fid.json and fid.md, and print the table."""
    groups: dict[tuple, dict[str, Any]] = {}
    for case in cases:
        made = case if isinstance(case, Generated) else None
        key = case.name, made and made.iterations, made and made.tol
        figures = read_json(measured.path(case))
        group = {
            "model": case.name,
            "iterations": key[1],
            "tol": key[2],
            "images": figures["images"],
            "warnings": warnings(config, figures["images"], measured.references),
            "by_seed": {},
        }
        seed = "-" if made is None else str(made.seed)
        groups.setdefault(key, group)["by_seed"][seed] = figures
    results = [{**g, "summary": summary(g["by_seed"])} for g in groups.values()]
    whole = {"inputs": measured.inputs, "results": results, **provenance()}
    write_json(config.output_dir / "fid.json", whole)
    rows = table(results)
    notes = list(dict.fromkeys(text for result in results for text in result["warnings"]))
    with new_file(config.output_dir / "fid.md") as path:
        path.write_text("\n\n".join([markdown(rows), *(f"Note: {n}." for n in notes)]) + "\n")
    print(for_a_terminal(rows))
    for note in notes:
        print(f"note: {note}")
    print(f"figures {config.output_dir / 'fid.json'}")


@contextmanager
def alone(path: Path, folder: Path) -> Iterator[None]:
    """Hold the lock of a task; refuse if another job is at the same task in this folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        flock.take(file, folder)
        yield


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock of what one process at a time does."""
    with path.open("a") as file:
        flock.take(file, path.parent, wait=True)
        yield


if __name__ == "__main__":
    cli.run(main, fids)
