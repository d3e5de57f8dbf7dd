"""Put the measurements of a recipe into one table, one picture and one page.

Reads what evaluate.py and the trainings wrote and types no number itself: report.md, and
report.html, which holds everything it shows. With `--watch` the page follows trainings that run.
With `--documents README.md docs/*.md`, tables between the marks `<!-- table:NAME -->` and
`<!-- end -->` in them are renewed: the recipe's, with `--benchmarks FOLDER` those of benchmarks,
with `--analyses FOLDER` those of analyses.
"""

from pipeline import cli
from pipeline.recipes.measures import reports

if __name__ == "__main__":
    cli.check_arguments(reports)


from pathlib import Path
from time import monotonic, sleep

from PIL import Image

from data.files import new_file
from get.errors import InputError
from pipeline.analyses.table import sections_of_analyses, tables_of_analyses
from pipeline.benchmarks.frontier import section_of_certificates, tables_of_certificates
from pipeline.benchmarks.table import sections_of_benchmarks, tables_of_benchmarks
from pipeline.jobs.comparison import (
    Model,
    at_every_number_of_iterations,
    iterates,
    read_models,
    summary,
    table_rows,
)
from pipeline.jobs.page import html_page, read_training
from pipeline.jobs.sheet import stacked
from pipeline.jobs.tables import for_a_terminal, markdown, marked, renewed
from pipeline.recipes.settings_measure import ReportConfig

WATCH = 20  # seconds between two pages


def main(config: ReportConfig) -> None:
    """Write report.md, report.html and the picture into the evaluation folder; print the table."""
    if config.watch:
        watch(config)
        return
    models = read_models(config.evaluation)
    picture, page = (config.evaluation / name for name in ("comparison.png", "report.md"))
    draw_picture(picture, config.evaluation, models)
    trainings = [t for run in config.runs if (t := read_training(run)) is not None]
    sections = [
        *sections_of_analyses(config.analyses),
        *section_of_certificates(config.analyses),
        *sections_of_benchmarks(config.benchmarks),
    ]
    lines = [
        f"# {config.recipe}: one call against many",
        f"![same noise, every model]({picture.name})",
        summary(models),
        *(
            part
            for title, rows in at_every_number_of_iterations(models)
            for part in (f"## {title}", markdown(rows))
        ),
        *sections,
    ]
    write(page, "\n\n".join(lines) + "\n")
    html = html_page(config.recipe, models, trainings, picture, sections=sections)
    write(page.with_suffix(".html"), html)
    if config.documents:
        for path, text in renewed_documents(config, models).items():
            write(path, text)
    print(for_a_terminal(table_rows(models)))
    print(f"report {page}\npage {page.with_suffix('.html')}\npicture {picture}")


def watch(config: ReportConfig) -> None:
    """Write the page again and again until a signal comes; it reloads itself.

    Raises:
        InputError: If no training has begun.
    """
    page, picture = (config.evaluation / name for name in ("report.html", "comparison.png"))
    with cli.Signals() as signals:
        while not signals.received:
            trainings = [t for run in config.runs if (t := read_training(run)) is not None]
            if not trainings:
                runs = ", ".join(map(str, config.runs))
                raise InputError(f"expected a training in {runs}, got none; start one first")
            models = read_models(config.evaluation) if any(config.evaluation.glob("*.json")) else []
            write(page, html_page(config.recipe, models, trainings, picture, reload=WATCH))
            steps = ", ".join(f"{t.name} at step {t.steps}" for t in trainings)
            print(f"page {page}: {steps}", flush=True)
            until = monotonic() + WATCH
            while monotonic() < until and not signals.received:
                sleep(0.2)
        signals.exit(signals.received, f"{page} shows the trainings as they were")


def renewed_documents(config: ReportConfig, models: list[Model]) -> dict[Path, str]:
    """Return the text of every document with the tables that its marks name.

    Raises:
        InputError: If a document is missing, or none has the marks of the recipe.
    """
    if missing := [str(path) for path in config.documents if not path.is_file()]:
        raise InputError(f"expected Markdown files, got none at {', '.join(missing)}")
    texts = {path: path.read_text() for path in config.documents}
    names = set().union(*map(marked, texts.values()))
    if config.recipe not in names:
        raise InputError(
            f"expected the marks <!-- table:{config.recipe} --> and <!-- end --> in "
            f"{', '.join(map(str, texts))}, got none; add them"
        )
    tables = {config.recipe: summary(models)}
    tables |= tables_of_benchmarks(names, config.benchmarks) if config.benchmarks else {}
    if config.analyses:
        tables |= tables_of_analyses(names, config.analyses)
        tables |= tables_of_certificates(names, config.analyses)
    return {path: renewed(text, tables) for path, text in texts.items()}


def write(path: Path, text: str) -> None:
    """Write a text file, complete or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(text)


def draw_picture(path: Path, folder: Path, models: list[Model]) -> None:
    """Stack every model's images of the same noise, each under its name."""
    strips = []
    for model in models:
        source = folder / f"{model['name']}.png"
        if source.exists():
            with Image.open(source) as image:
                strips.append((caption(model), image.convert("RGB")))
    if not strips:
        return
    with new_file(path) as temporary:
        stacked(strips).save(temporary, format="png")


def caption(model: Model) -> str:
    """Return what is written over a model's images."""
    calls = "1 call" if model["evaluations"] == 1 else f"{model['evaluations']} calls"
    iterations = f", {model['default_iterations']} iterations" if iterates(model) else ""
    parameters = f"{model['parameters'] / 1e6:.2f} M parameters"
    return f"{model['name']}: {calls} per image{iterations}, {parameters}"


if __name__ == "__main__":
    cli.run(main, reports)
