"""Put the measurements of a recipe into one table, one picture and one page.

Reads what evaluate.py wrote and types no number itself; with `--readme README.md` the table
between the marks `<!-- table:RECIPE -->` and `<!-- end -->` of that file is renewed.
"""

from pipeline import cli
from pipeline.recipes.recipe import reports

if __name__ == "__main__":
    cli.check_arguments(reports)


import json
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data.files import new_file, read_json
from get.errors import InputError
from pipeline.benchmarks import memory as benchmark_memory
from pipeline.benchmarks import modes as benchmark_modes
from pipeline.benchmarks import seeds as benchmark_seeds
from pipeline.benchmarks import solvers as benchmark_solvers
from pipeline.benchmarks import train as benchmark_train
from pipeline.recipes.settings_measure import ReportConfig

ORDER = ("teacher", "GET", "ViT")
COLUMNS = (
    *("model", "parameters", "MACs an image", "network evaluations", "FID training"),
    *("FID held-out", "KID training", "precision", "recall", "class accuracy"),
    *("nearest training image", "images/s", "x teacher", "training time"),
)


BENCHMARKS = {
    "claim": benchmark_seeds.markdown,
    "memory": benchmark_memory.markdown,
    "modes": benchmark_modes.markdown,
    "ours": benchmark_seeds.markdown,
    "solvers": benchmark_solvers.markdown,
    "train": benchmark_train.markdown,
}


@dataclass(frozen=True)
class Row:
    """One line of the table: a model, at one number of iterations."""

    model: dict
    title: str
    figures: dict

    def cells(self) -> list[str]:
        """Return the formatted cells, one a column."""
        m, f = self.model, self.figures
        speedup, seconds = f.get("speedup_over_teacher"), m["train_seconds"]
        return [
            self.title,
            f"{m['parameters'] / 1e6:.2f} M",
            f"{f['macs'] / 1e6:.1f} M",
            str(m["evaluations"]),
            f"{f['training']['fid']:.2f}",
            f"{f['held_out']['fid']:.2f}",
            f"{f['training']['kid']:.0f}",
            f"{f['training']['precision']:.3f}",
            f"{f['training']['recall']:.3f}",
            f"{f['class_accuracy']:.1%}" if "class_accuracy" in f else "-",
            f"{f['nearest_training_image']:.3f}",
            f"{f['images_per_second']:.0f}",
            f"{speedup:.1f}" if speedup else "1",
            f"{seconds / 60:.1f} min" if seconds is not None else "-",
        ]


def main(config: ReportConfig) -> None:
    """Write report.md and the picture among the measurements; print the table."""
    models = read_models(config.evaluation)
    rows = [row for model in models for row in rows_of(model)]
    table = markdown([list(COLUMNS), *(row.cells() for row in rows)])
    picture = config.evaluation / "comparison.png"
    draw_picture(picture, config.evaluation, models)
    report = config.evaluation / "report.md"
    text = "\n\n".join(
        [
            f"# {config.recipe}: one call against many",
            f"![same noise, every model]({picture.name})",
            table,
            *remarks(models),
            *anytime(models),
        ]
    )
    with new_file(report) as temporary:
        temporary.write_text(text + "\n")
    if config.readme:
        renew(config.readme, config.recipe, "\n\n".join([table, *remarks(models)]))
    if config.readme and config.benchmarks:
        renew_benchmarks(config.readme, config.benchmarks)
    print(plain([list(COLUMNS), *(row.cells() for row in rows)]))
    print(f"report {report}\npicture {picture}")


def read_models(folder: Path) -> list[dict]:
    """Return the measurements in a folder, teacher first.

    Raises:
        InputError: If there are none, or they were not made on the same images.
    """
    models = [read_json(path) for path in sorted(folder.glob("*.json"))]
    if not models:
        raise InputError(f"expected measurements (*.json) in {folder}, got none; run evaluate.py")
    common = {json.dumps({k: v for k, v in m["of"].items() if k != "weights"}) for m in models}
    if len(common) > 1:
        raise InputError(
            f"expected measurements of one evaluation in {folder}, got {len(common)} different "
            "ones; delete the old files there and run evaluate.py again"
        )
    return sorted(models, key=lambda m: (ORDER.index(m["kind"]), m["parameters"]))


def rows_of(model: dict) -> list[Row]:
    """Return a model's lines: a GET as trained and at its best number of iterations."""
    if model["kind"] != "GET":
        return [Row(model, model["name"], model)]
    default, best = str(model["default_iterations"]), best_iterations(model)
    rows = []
    for iterations in sorted({default, best}, key=int):
        note = " (as trained)" if iterations == default else " (best FID)"
        title = f"{model['name']}, {iterations} iterations{note}"
        rows.append(Row(model, title, model["by_iterations"][iterations]))
    return rows


def best_iterations(model: dict) -> str:
    """Return the number of iterations, as a key, with the lowest FID."""
    return min(model["by_iterations"], key=lambda k: model["by_iterations"][k]["training"]["fid"])


def remarks(models: list[dict]) -> list[str]:
    """Say in words what the figures are and how GET stands to the others."""
    first, figures = models[0], rows_of(models[0])[0].figures
    sizes = {split: figures[split]["real"] for split in ("training", "held_out")}
    lines = [
        f"FID, KID, precision and recall compare {first['of']['num_images']:,} images with "
        f"{sizes['training']:,} real training images (and {sizes['held_out']:,} held-out ones) in "
        f"the features of a small classifier trained on {first['of']['real_images']}: only ratios "
        "between rows mean anything, and the held-out column is higher because it has fewer "
        "images. Nearest training image: mean root-mean-square pixel distance; "
        f"{figures['nearest_training_image_of_held_out']:.3f} for the real held-out images. "
        f"Measured on {hardware(first)}, commit {first['commit']}, one seed."
    ]
    teacher = [m for m in models if m["kind"] == "teacher"]
    for get in (m for m in models if m["kind"] == "GET"):
        best = best_iterations(get)
        fid = get["by_iterations"][best]["training"]["fid"]
        said = [
            f"{fid / other['training']['fid']:.2f}x that of {other['name']} "
            f"({other['parameters'] / get['parameters']:.1f}x its parameters)"
            for other in (*teacher, *(m for m in models if m["kind"] == "ViT"))
        ]
        if said:
            lines.append(f"FID of {get['name']} at {best} iterations is {', '.join(said)}.")
    return lines


def anytime(models: list[dict]) -> list[str]:
    """Return a table of every GET at every number of iterations measured."""
    parts = []
    for model in (m for m in models if m["kind"] == "GET"):
        header = ["iterations", "FID training", "FID held-out", "L1 to the teacher", "x teacher"]
        rows = [
            [
                iterations,
                f"{f['training']['fid']:.2f}",
                f"{f['held_out']['fid']:.2f}",
                f"{f['l1_to_teacher']:.4f}",
                f"{f['speedup_over_teacher']:.1f}",
            ]
            for iterations, f in model["by_iterations"].items()
        ]
        parts += [f"## {model['name']} at any time", markdown([header, *rows])]
    return parts


def hardware(model: dict) -> str:
    """Return what the figures were measured on."""
    h = model["hardware"]
    return ", ".join(h["gpus"]) if h["gpus"] else f"{h['cores']} CPU cores ({h['cpu']})"


def markdown(rows: list[list[str]]) -> str:
    """Format rows, the first a header, as a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def plain(rows: list[list[str]]) -> str:
    """Format the table for a terminal: a line a figure, a column a model."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, row)) for row in rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in columns
    )


def renew(readme: Path, recipe: str, text: str) -> None:
    """Replace what stands between the marks of a recipe in a Markdown file.

    Raises:
        InputError: If the file or the marks are missing.
    """
    begin, end = f"<!-- table:{recipe} -->", "<!-- end -->"
    old = readme.read_text() if readme.is_file() else ""
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(old):
        raise InputError(f"expected the marks {begin} and {end} in {readme}, got none; add them")
    with new_file(readme) as temporary:
        temporary.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", old))


def renew_benchmarks(readme: Path, folder: Path) -> None:
    """Renew every table of a benchmark that a Markdown file has the marks for."""
    text = readme.read_text()
    for name, markdown_of in BENCHMARKS.items():
        if f"<!-- table:{name} -->" in text:
            renew(readme, name, markdown_of(read_json(folder / f"{name}.json")))


def draw_picture(path: Path, folder: Path, models: list[dict]) -> None:
    """Stack every model's images of the same noise, each under its name."""
    captions = {m["name"]: caption(m) for m in models}
    strips = []
    for name, text in captions.items():
        source = folder / f"{name}.png"
        if source.exists():
            with Image.open(source) as image:
                strips.append((text, image.convert("RGB")))
    if not strips:
        return
    font, head = ImageFont.load_default(18), 30
    width = max(image.width for _, image in strips) + 20
    height = sum(image.height + head + 10 for _, image in strips) + 10
    sheet = Image.new("RGB", (width, height), "white")
    draw, y = ImageDraw.Draw(sheet), 5
    for text, image in strips:
        draw.text((10, y + 3), text, fill="black", font=font)
        sheet.paste(image, (10, y + head))
        y += image.height + head + 10
    with new_file(path) as temporary:
        sheet.save(temporary, format="png")


def caption(model: dict) -> str:
    """Return what is written over a model's images."""
    calls = "1 call" if model["evaluations"] == 1 else f"{model['evaluations']} calls"
    extra = f", {model['default_iterations']} iterations" if model["kind"] == "GET" else ""
    return f"{model['name']}: {calls} an image{extra}, {model['parameters'] / 1e6:.2f} M parameters"


if __name__ == "__main__":
    cli.run(main, reports)
