"""The table of a recipe: what it shows of several feature networks, and that it marks training."""

import json
import shutil
import signal
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from data.files import read_json
from pipeline.evaluate import trained_on
from pipeline.jobs import comparison

from .processes import At

MEASURED = Path(__file__).parents[1] / "docs" / "measurements" / "equilibria"


def models(networks: int) -> list[comparison.Model]:
    """Return two committed measurements, with figures of so many networks."""
    found = [read_json(MEASURED / f"{name}.json") for name in ("teacher", "equilibria")]
    for model in found:
        for figures in (model, *model.get("by_iterations", {}).values()):
            figures.pop("networks", None)
            if networks and "training" in figures:
                fid = figures["training"]["fid"]
                figures["networks"] = {
                    f"net-{i}": {"fid": fid * (i + 1), "fid_of_real": 2.0} for i in range(networks)
                }
                figures["fdr"] = 1000 - fid  # the opposite of FID
    return found


def table(found: list[comparison.Model]) -> list[dict[str, str]]:
    header, *rows = comparison.table_rows(found)
    return [dict(zip(header, row, strict=True)) for row in rows]


@pytest.mark.parametrize("networks", [0, 1])
def test_with_one_network_the_table_is_what_it_was(networks):
    rows = table(models(networks))
    assert not {"FDr", "FD in the judges"} & rows[0].keys()
    ((_, by_iterations),) = comparison.at_every_number_of_iterations(models(networks))
    assert "FDr" not in by_iterations[0]


def test_with_several_networks_rows_have_fd_in_each_and_fdr():
    first = models(3)[0]
    fid = first["training"]["fid"]
    row = table([first])[0]
    assert row["FD in the judges"] == f"{2 * fid:.3f} / {3 * fid:.3f}"
    assert row["FDr"] == f"{1000 - fid:.3f}"
    ((_, by_iterations),) = comparison.at_every_number_of_iterations(models(3))
    assert {"FD in the judges", "FDr"} <= {*by_iterations[0]}
    remark = comparison.summary(models(3))
    assert "net-0, which training may use" in remark
    assert "net-1, net-2" in remark


def test_the_best_number_of_iterations_is_that_of_the_lowest_fdr():
    alone, judged = (models(networks)[1] for networks in (1, 3))
    fids = {k: figures["training"]["fid"] for k, figures in alone["by_iterations"].items()}
    assert comparison.best_iterations(alone) == min(fids, key=lambda k: fids[k])
    assert comparison.best_iterations(judged) == max(fids, key=lambda k: fids[k])


def test_what_was_trained_on_the_network_is_marked(tmp_path):
    settings = {"feature_network": "weights/net-0", "frechet_weight": 0.0}
    for weight, expected in ((0.0, None), (0.1, "net-0")):
        settings["frechet_weight"] = weight
        (tmp_path / "run.json").write_text(json.dumps({"config": settings}))
        assert trained_on(tmp_path) == expected
    teacher, student = models(3)
    student["trained_on"] = "net-0"
    rows = table([teacher, student])
    assert ["trained on" in row["FID training"] for row in rows] == [False, *[True] * len(rows[1:])]


# ---------------------------------------------------------------- the page


class Page(HTMLParser):
    """What a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """Return a folder with the committed measurements of digits."""
    return Path(shutil.copytree(MEASURED.parent / "digits", tmp_path / "evaluation"))


def begun(run: Path, steps: int) -> Path:
    """Write what a training that has made so many steps of 100 has written."""
    run.mkdir()
    record = {"config": {"max_train_steps": 100, "note": "<b>&"}, "versions": {"torch": "2"}}
    (run / "run.json").write_text(json.dumps(record))
    logged = [
        {"step": s, "loss": 1 / s, "residual": 0.5, "validation_fid": 9.0}
        for s in range(10, steps + 1, 10)
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in logged) + '{"st')
    return run


def test_the_page_holds_all_it_shows(evaluation, tmp_path, here):
    runs = begun(tmp_path / "digits", 100), tmp_path / "digits-vit"  # the second never began
    assert here("report", "digits", "--evaluation", evaluation, "--runs", *runs).code == 0
    text = (evaluation / "report.html").read_text()
    page = Page(text)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/png;base64,")), (tag, value)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert "@import" not in text
    assert [tag for tag, _ in page.tags].count("svg") == 5  # dial, cost, fid, loss, residual
    shown = " ".join(page.words)
    markdown = (evaluation / "report.md").read_text()
    for cell in (
        c.strip() for line in markdown.splitlines() if "|" in line for c in line.split("|")
    ):
        assert cell in shown or set(cell) <= {"-"}
    assert "<b>" not in text  # of the settings
    assert "&lt;b&gt;&amp;" in text
    assert "#000000" not in text
    assert "http-equiv" not in text


def test_the_page_shows_analyses_and_benchmarks_that_have_results(evaluation, here):
    flags = "--analyses", MEASURED.parent, "--benchmarks", MEASURED.parent / "benchmarks"
    assert here("report", "digits", "--evaluation", evaluation, *flags).code == 0
    shown = " ".join(Page((evaluation / "report.html").read_text()).words)
    lines = (evaluation / "report.md").read_text().splitlines()
    headings = [line[3:] for line in lines if line.startswith("## ")]
    assert len(headings) >= 4  # the dial, and what the analyses say
    assert all(heading in shown for heading in headings)
    for cell in (cell for line in lines if "|" in line for cell in line.strip("| ").split(" | ")):
        assert cell in shown or set(cell) <= {"-", "|"}


def test_the_page_follows_trainings_until_a_signal(tmp_path, script):
    evaluation, run = tmp_path / "evaluation", begun(tmp_path / "digits", 40)
    flags = "digits", "--watch", "--evaluation", evaluation, "--runs", run
    stopped = script(
        "pipeline.report", *flags, at=At("os.rename", "*report.html"), number=signal.SIGINT
    )
    assert stopped.code == 128 + signal.SIGINT
    assert "digits at step 40" in stopped.out
    page = Page((evaluation / "report.html").read_text())
    assert ("progress", {"max": "100", "value": "40"}) in page.tags
    assert ("meta", {"http-equiv": "refresh", "content": "20"}) in page.tags


def test_watching_trainings_that_have_not_begun_is_refused(tmp_path, here):
    flags = "--watch", "--evaluation", tmp_path, "--runs", tmp_path / "none"
    refused = here("report", "digits", *flags)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "expected a training in" in refused.err


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1200,2600", "390,3000"])
def test_a_browser_shows_the_page(evaluation, tmp_path, here, size):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if browser is None:
        pytest.skip("no chromium")
    runs = begun(tmp_path / "digits", 100)
    assert here("report", "digits", "--evaluation", evaluation, "--runs", runs).code == 0
    picture, page = tmp_path / "shot.png", (evaluation / "report.html").as_uri()
    flags = "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={size}"
    command = [browser, *flags, f"--screenshot={picture}", page]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    with Image.open(picture) as shot:
        colours = {colour for _, colour in shot.convert("RGB").getcolors(1 << 24) or ()}
    assert (0x3B, 0x82, 0xF6) in colours  # the first curve
    assert len(colours) > 200
    # on a narrow screen tables scroll, the page does not
    widths = "document.documentElement.scrollWidth <= window.innerWidth"
    text = (evaluation / "report.html").read_text()
    (evaluation / "measured.html").write_text(f"{text}<script>document.title={widths}</script>")
    url = (evaluation / "measured.html").as_uri()
    dumped = subprocess.run(
        [browser, *flags, "--dump-dom", url], check=True, capture_output=True, timeout=100
    )
    assert b"<title>true</title>" in dumped.stdout
