"""The figures of a set of images against references, from feature files; their table.

Values are those of torch-fidelity's calculate_metrics for the same features, with its defaults.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from statistics import fmean
from typing import Any

import torch

from data.real.feature_files import FeatureFiles
from get.metrics import kernel_distance, precision_recall
from get.metrics.features import Features
from get.metrics.streaming import Gaussian, InceptionScore, Moments
from pipeline.recipes.settings_measure import FidConfig, Metric

FEW = 10_000  # images below which FID is mostly bias
References = Mapping[str, FeatureFiles | Gaussian]


class Reference:
    """A reference in one network: its Gaussian and, where they are needed, its vectors."""

    def __init__(self, network: Features, what: FeatureFiles | Gaussian) -> None:
        """Read nothing yet."""
        self.network, self.what = network, what
        self.count = what.count

    @cached_property
    def gaussian(self) -> Gaussian:
        """Its Gaussian."""
        what = self.what
        return what if isinstance(what, Gaussian) else what.gaussian(self.network)

    @cached_property
    def vectors(self) -> torch.Tensor | None:
        """Its feature vectors; None if only statistics are known."""
        return None if isinstance(self.what, Gaussian) else self.what.vectors(self.network)


class Figures:
    """Computes figures against the same references again and again."""

    def __init__(
        self, networks: Sequence[Features], references: References, metrics: Sequence[Metric]
    ) -> None:
        """Read nothing yet."""
        self.networks, self.metrics = networks, metrics
        self.references = {
            n.name: {name: Reference(n, what) for name, what in references.items()}
            for n in networks
        }
        self.real = self._pairs_of_splits(references)

    def __call__(self, made: FeatureFiles) -> dict[str, Any]:
        """Return the figures of images in every network, and FDr where it is known."""
        figures: dict[str, Any] = {n.name: self._in_network(n, made) for n in self.networks}
        ratios = {}
        for training, fid_of_real in self.real.items():
            each = [
                figures[n.name]["references"][training]["fid"] / fid_of_real[n.name]
                for n in self.networks
            ]
            ratios[training] = fmean(each)
        return {"networks": figures, "images": made.count} | ({"fdr": ratios} if ratios else {})

    def _in_network(self, network: Features, made: FeatureFiles) -> dict[str, Any]:
        moments, score = Moments(), InceptionScore(made.count)
        right = labelled = 0
        for part in made.parts(network):
            moments.add(part["features"])
            if "logits" in part:
                score.add(part["logits"])
            if "labels" in part and network.knows_classes:
                right += int((part["logits"].argmax(1) == part["labels"]).sum())
                labelled += len(part["labels"])
        found: dict[str, Any] = {"fingerprint": network.fingerprint}
        if (value := score.value()) is not None:
            found["inception_score"], found["inception_score_std"] = value
        if labelled:
            found["class_accuracy"] = right / labelled
        vectors = made.vectors(network) if self.metrics else None
        gaussian = moments.gaussian()
        found["references"] = {}
        for name, reference in self.references[network.name].items():
            at = {"fid": gaussian.distance(reference.gaussian), "images": reference.count}
            if vectors is not None and reference.vectors is not None:
                if "kid" in self.metrics:
                    at["kid"] = kernel_distance(vectors, reference.vectors)
                if "prc" in self.metrics:
                    both = precision_recall(vectors, reference.vectors)
                    at["precision"], at["recall"] = both
            found["references"][name] = at
        return found

    def _pairs_of_splits(self, references: References) -> dict[str, dict[str, float]]:
        """Return FID of the `-val` images against the `-train` ones of a set, by network."""
        names = [n for n in references if f"{n.removesuffix('-train')}-val" in references]
        return {
            training: {
                network: at[f"{training.removesuffix('-train')}-val"].gaussian.distance(
                    at[training].gaussian
                )
                for network, at in self.references.items()
            }
            for training in names
            if training.endswith("-train")
        }


def warnings(config: FidConfig, made: int, references: References) -> list[str]:
    """Say what must be read beside the numbers."""
    found = []
    if made < FEW:
        found.append(
            f"{made:,} images: FID is biased upwards and comparable only with that of as many; "
            "published figures are of 50,000"
        )
    for name, what in references.items():
        if what.count is not None and what.count < FEW:
            found.append(f"{name} has {what.count:,} images: FID is biased upwards")
    if any("@" in network for network in config.feature_networks):
        found.append("weights of feature networks are from files that the user has named")
    return found


def summary(by_seed: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean, least and number over seeds of every FID, and means of what else there is."""
    runs = list(by_seed.values())
    found: dict[str, Any] = {"seeds": len(runs), "networks": {}}
    for network, first in runs[0]["networks"].items():
        each = [run["networks"][network] for run in runs]
        of: dict[str, Any] = {
            k: fmean(e[k] for e in each)
            for k in ("inception_score", "class_accuracy")
            if k in first
        }
        for name, figures in first["references"].items():
            values = {k: [e["references"][name][k] for e in each] for k in figures if k != "images"}
            of[name] = {k: fmean(v) for k, v in values.items()} | {"fid_min": min(values["fid"])}
        found["networks"][network] = of
    if "fdr" in runs[0]:
        found["fdr"] = {k: fmean(run["fdr"][k] for run in runs) for k in runs[0]["fdr"]}
    return found


def table(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the cells of a table, the header first: a line for every model and dial."""
    rows: list[dict[str, str]] = []
    for result in results:
        mean, n = result["summary"], result["summary"]["seeds"]
        row = {"model": result["model"]}
        if result["iterations"] is not None:
            row["iterations"] = f"{result['iterations']}" + (
                f", tol {result['tol']:g}" if result["tol"] else ""
            )
        row["images"] = f"{result['images']:,}{' (few)' if result['images'] < FEW else ''}"
        row["seeds"] = str(n)
        for network, of in mean["networks"].items():
            if "inception_score" in of:
                row[f"IS {network}"] = f"{of['inception_score']:.2f}"
            if "class_accuracy" in of:
                row[f"class accuracy {network}"] = f"{of['class_accuracy']:.1%}"
            for name in (k for k, v in of.items() if isinstance(v, dict)):
                at = of[name]
                least = f" (least {at['fid_min']:.3f})" if n > 1 else ""
                row[f"FID {network} {name}"] = f"{at['fid']:.3f}{least}"
                for key in ("kid", "precision", "recall"):
                    if key in at:
                        row[f"{key} {network} {name}"] = f"{at[key]:.4g}"
        for name, value in mean.get("fdr", {}).items():
            row[f"FDr {name}"] = f"{value:.3f}"
        rows.append(row)
    titles = list(dict.fromkeys(title for row in rows for title in row))
    return [titles, *([row.get(title, "-") for title in titles] for row in rows)]
