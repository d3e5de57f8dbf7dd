"""Certify an equilibrium classifier by randomised smoothing; say what each way of solving costs.

Writes certified.json, certified.md and certified.png: certified accuracy and average certified
radius against evaluations of the map, for full, adaptive, truncated, clean and serial solves.
`get/robustness.py` explains them, docs/certified.md shows what came out.
"""

from pipeline import cli
from pipeline.recipes.settings_classify import certifications

if __name__ == "__main__":
    cli.check_arguments(certifications, default="digits")


from dataclasses import asdict
from typing import Any

import torch

from data.files import new_file, read_json, write_json
from data.real import Labelled, real_images
from get.attack import attack, share_of_votes
from get.errors import InputError
from get.models.image_classifier import EquilibriumClassifier, ImageClassifier
from get.robustness import certify
from pipeline.benchmarks import frontier
from pipeline.benchmarks.labelling import label_images
from pipeline.jobs.image_classifiers import load_image_classifier
from pipeline.jobs.plots import new_plot
from pipeline.jobs.processes import local_device
from pipeline.jobs.provenance import provenance
from pipeline.jobs.students import weights_hash
from pipeline.recipes.settings_classify import CertifyConfig

AUDITED = "serial 3"  # whose audits are drawn
PATHS = ("model", "twin", "output_dir")
BEYOND = 3.0  # attacks of so many radii show that the attack can find something


def main(config: CertifyConfig) -> None:
    """Certify the held-out images; the same command continues what was interrupted."""
    device = local_device()
    model = load_image_classifier(config.model, device)
    if not isinstance(model, EquilibriumClassifier):
        kind = type(model).__name__
        raise InputError(f"expected an EquilibriumClassifier in {config.model}, got {kind}")
    twin = None if config.twin is None else load_image_classifier(config.twin, device)
    images, truth = real_images(config.real_images, "held_out")
    images, truth = images[: config.num_images].to(device), truth[: config.num_images]
    if tuple(images.shape[1:]) != model.image_shape:
        raise InputError(
            f"expected images of {model.image_shape} as in {config.model}, got "
            f"{tuple(images.shape[1:])}; name others with --real_images"
        )
    weights = weights_hash(config.model, "")
    _check_folder(config, weights)
    bar = cli.progress_bar(len(images), "certify", "image")
    with cli.Signals() as signals, bar:

        def progress() -> None:
            bar.update()
            if signals.received:
                bar.close()
                signals.exit(signals.received, f"finished images are in {config.output_dir}")

        found = list(label_images(model, twin, images, config, progress))
    rows = frontier.rows_of(found, truth, config)
    best = frontier.compare(rows)
    figures = {
        "weights": weights,
        "settings": {k: v for k, v in asdict(config).items() if k not in PATHS},
        "images": len(images),
        "best": {k: best[k] for k in ("name", "bound", "audits", "speed", "speed_seconds", "loss")},
        "rows": rows,
        "largest_radii": frontier.largest_radii(config),
        "attacks": attacks(model, Labelled(images, truth), config),
        **provenance(),
    }
    path = config.output_dir / "certified.json"
    write_json(path, figures)
    with new_file(path.with_suffix(".md")) as temporary:
        temporary.write_text(frontier.markdown(figures) + "\n")
    plot(config, rows)
    counting = f"{best['bound']} bound, {best['audits']} audits" if best["bound"] else "votes"
    print(
        f"best sound way: {best['name']} ({counting}), {best['speed']:.1f}x fewer evaluations than "
        f"{frontier.FIXED}, at most {best['loss']:.1f} points lost at a radius"
    )
    print(f"certified {path}, {path.with_suffix('.md')}, {path.with_suffix('.png')}")


def _check_folder(config: CertifyConfig, weights: str) -> None:
    """Refuse labels that were made with other settings."""
    kept = ("sigma", "num_trials", "num_selection", "chains", "seed", "real_images")
    settings = {"weights": weights, **{name: getattr(config, name) for name in kept}}
    path = config.output_dir / "labels" / "settings.json"
    if path.exists() and (before := read_json(path)) != settings:
        changed = [k for k in settings if before.get(k) != settings[k]]
        raise InputError(
            f"expected labels of these settings in {path.parent}, got others "
            f"({', '.join(changed)}); delete that folder or choose another --output_dir"
        )
    write_json(path, settings)


def attacks(model: ImageClassifier, data: Labelled, config: CertifyConfig) -> dict[str, Any]:
    """Attack the certificates of the first images, inside their radius and far beyond it."""
    counts = {"attacked": 0, "broken_inside": 0, "broken_beyond": 0}
    generator = torch.Generator().manual_seed(config.seed)
    for index, (image, label) in enumerate(zip(*data, strict=True)):
        if counts["attacked"] >= config.num_attacked:
            break
        sizes = {"trials": config.num_trials, "selection": config.num_selection}
        given = {"sigma": config.sigma, "alpha": config.alpha, "seed": config.seed}
        certificate = certify(model, image, index=index, **sizes, **given)
        if certificate.label != int(label):
            continue
        counts["attacked"] += 1
        for name, times in (("broken_inside", 1.0), ("broken_beyond", BEYOND)):
            radius = times * certificate.radius
            noise = {"sigma": config.sigma, "generator": generator}
            shifts = attack(model, image, int(label), radius=radius, **noise)
            least = min(share_of_votes(model, image + s, int(label), **noise) for s in shifts)
            counts[name] += least < 0.5
    return {**counts, "beyond": BEYOND}


def plot(config: CertifyConfig, rows: list[dict[str, Any]]) -> None:
    """Draw the average radius against evaluations, and certified accuracy against the radius."""
    kinds = {
        "votes of independent labels": ("o", lambda r: r["sound"] and r["bound"] is None),
        "stated bound": ("s", lambda r: r["bound"] == "stated"),
        "audited bound": ("^", lambda r: r["bound"] == "audited"),
        "unsound: uncorrected votes": ("x", lambda r: not r["sound"]),
    }
    with new_plot(config.output_dir / "certified.png", (12, 4.5), columns=2) as (_, axes):
        for label, (marker, belongs) in kinds.items():
            chosen = [row for row in rows if row["evaluations"] and belongs(row)]
            at = [row["evaluations"] for row in chosen], [row["average_radius"] for row in chosen]
            axes[0].scatter(*at, marker=marker, label=label)
        for row in rows:
            if row["evaluations"] and row["bound"] is None and row["sound"]:
                axes[0].annotate(
                    row["name"], (row["evaluations"], row["average_radius"]), fontsize=6
                )
        axes[0].set(xscale="log", xlabel="evaluations an image", ylabel="average certified radius")
        axes[0].legend(fontsize=7)
        for row in rows:
            if row["sound"] and (row["bound"] is None or row["name"] == AUDITED):
                counted = f", {row['bound']}, K = {row['audits']}" if row["bound"] else ""
                points = [float(r) for r in row["certified"]], list(row["certified"].values())
                style = "-" if row["bound"] is None else ":"
                axes[1].plot(*points, style, label=f"{row['name']}{counted}", lw=1)
        axes[1].set(xlabel="radius", ylabel="certified accuracy")
        axes[1].legend(fontsize=6)


if __name__ == "__main__":
    cli.run(main, certifications, default="digits")
