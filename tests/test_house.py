"""The house rules that no other tool checks: names, rooms, sizes."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch

from data.manifest import Manifest
from pipeline import report
from pipeline.analyses.table import ANALYSES
from pipeline.benchmarks import frontier
from pipeline.benchmarks.table import BENCHMARKS
from pipeline.jobs.comparison import read_models
from pipeline.jobs.tables import marked
from pipeline.recipes import RECIPES
from pipeline.recipes.recipe import students
from pipeline.recipes.settings_measure import ReportConfig
from pipeline.training.build import build_student

ROOT = Path(__file__).parents[1]
PACKAGES = ("get", "data", "pipeline")
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
HOMES = {  # third party: the only places that import it
    "webdataset": (
        "data/open_shard.py",
        "data/other_layouts.py",
        "pipeline/benchmarks/reader.py",
        "pipeline/jobs/image_files.py",
    ),
    "torch_fidelity": ("get/metrics/",),
    "accelerate": ("pipeline/",),
    "tyro": ("pipeline/",),
    "gradio": ("pipeline/demo.py",),
    "skimage": ("data/real/photos.py",),
    "data": ("data/", "pipeline/"),
    "pipeline": ("pipeline/",),
}
EVERY_SOURCE = pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def committed() -> list[Path]:
    command = [
        "git",
        "-C",
        str(ROOT),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_the_packages_come_from_this_repository():
    for name in PACKAGES:
        assert Path(import_module(name).__file__ or "").parent == ROOT / name


VERBS = {
    *("train_teacher", "train_classifier", "train_equilibrium_classifier"),
    *("make_pairs", "pairs_status"),
    *("verify_pairs", "curate_pairs", "train", "sample", "evaluate", "fid", "report"),
    *("diagnose", "certify", "convert", "benchmark", "analyze", "plan", "demo"),
}
ROOMS = {"recipes", "jobs", "training", "benchmarks", "analyses", "conversions"}


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def own_imports() -> dict[str, set[str]]:
    """Return the modules of ours that each module imports, anywhere in its code."""
    modules = {module(path) for path in SOURCES}
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
        graph[module(path)] = names & modules
        for name in list(graph[module(path)]):  # `from package import submodule` needs no package
            inner = {other for other in names & modules if other.startswith(f"{name}.")}
            public = [a for a in names if a.startswith(f"{name}.") and a not in modules]
            if inner and not public:
                graph[module(path)].discard(name)
    return graph


def test_pipeline_shows_its_verbs_and_its_rooms():
    entries = {p.stem for p in (ROOT / "pipeline").iterdir() if p.name != "__pycache__"}
    assert entries == VERBS | ROOMS | {"cli", "__init__"}


def test_no_module_imports_a_verb():
    verbs = {f"pipeline.{verb}" for verb in VERBS}
    assert not {name: found for name, to in own_imports().items() if (found := to & verbs)}


def test_imports_go_in_no_circle():
    graph = own_imports()
    while leaves := {name for name, to in graph.items() if not to & graph.keys() - {name}}:
        graph = {name: to for name, to in graph.items() if name not in leaves}
    assert not graph


def test_the_recipes_are_plain_data():
    code = (
        "import sys, pipeline.recipes; assert not {'torch', 'tyro', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_commands_explain_themselves_before_they_import_torch():
    """But for three that dispatch to others, whose settings stand beside the work."""
    verbs = sorted(VERBS - {"analyze", "benchmark", "convert"})
    code = (
        "import runpy, sys\n"
        f"for verb in {verbs}:\n"
        "    sys.argv = [verb, '--help']\n"
        "    try:\n"
        "        runpy.run_module(f'pipeline.{verb}', run_name='__main__')\n"
        "    except SystemExit as end:\n"
        "        assert not end.code and 'torch' not in sys.modules, verb\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.count(b"usage: ") == len(verbs)


def test_no_script_hides_a_module():
    """`accelerate launch pipeline/train.py` puts pipeline/ first on the path."""
    taken = {*sys.stdlib_module_names, *packages_distributions(), *PACKAGES}
    names = {path.stem for path in (ROOT / "pipeline").iterdir()} - {"__init__"}
    assert not names & taken


@EVERY_SOURCE
def test_a_file_imports_only_what_belongs_in_its_room(path):
    name = path.relative_to(ROOT).as_posix()
    found = {module.split(".")[0] for module in imports(ast.parse(path.read_text()))}
    assert not {m for m, homes in HOMES.items() if m in found and not name.startswith(homes)}


def test_the_library_does_not_talk_seed_globally_or_read_the_environment():
    banned = re.compile(
        r"\bprint\(|\bargparse\b|os\.environ|os\.getenv|sys\.argv|torch\.manual_seed"
    )
    for path in SOURCES:
        if path.is_relative_to(ROOT / "get"):
            # Without docstrings, which may show a user's call.
            code = ast.parse(path.read_text())
            for node in ast.walk(code):
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    node.value.value = ""
            assert not banned.search(ast.unparse(code)), path


EVERY_FILE = pytest.mark.parametrize(
    "path", [*SOURCES, *TESTS], ids=lambda p: str(p.relative_to(ROOT))
)


@EVERY_FILE
def test_a_file_says_why_it_exists_and_is_short(path):
    text = path.read_text()
    if path not in TESTS or text:
        assert ast.get_docstring(ast.parse(text))
    assert text.count("\n") <= 300


def test_no_file_names_a_package_index_or_a_place_on_this_machine():
    hosts = "|".join(re.escape(host) for host in ("pypi" + ".org", "pythonhosted" + ".org"))
    places = "|".join(f"/{top}/" for top in ("ro" + "ot", "wo" + "rk", "ho" + "me", "Us" + "ers"))
    options = "--(extra-)?index-" + "url"
    banned = re.compile(rf"{hosts}|{options}|(?<![\w.}}/~])({places})".encode())
    found = {
        path.relative_to(ROOT): m[0]
        for path in committed()
        if (m := banned.search(path.read_bytes()))
    }
    assert not found


@pytest.mark.parametrize("name", students(RECIPES))
def test_every_student_can_be_built(name: str):
    pairs = Manifest(
        teacher="", sampler={}, evaluations=1, seed=0, teacher_batch_size=1,
        image_shape=(1, 8, 8), num_classes=10, image_format="png", pairs_per_shard=1,
    )  # fmt: skip
    with torch.device("meta"):
        student = build_student(students(RECIPES)[name], pairs)
    assert all(p.is_meta for p in student.parameters())


def test_the_readme_shows_both_commands():
    readme = (ROOT / "README.md").read_text()
    assert re.search(r"^    \./launch\.sh( |$)", readme, re.MULTILINE)
    assert re.search(r"^    \./launch\.sh test( |$)", readme, re.MULTILINE)
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("./launch.sh test")


def test_the_tables_in_documents_are_what_the_committed_measurements_say():
    measurements = ROOT / "docs" / "measurements"
    config = ReportConfig(
        recipe="digits",
        evaluation=measurements / "digits",
        documents=(ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))),
        benchmarks=measurements / "benchmarks",
        analyses=measurements,
    )
    texts = {path: path.read_text() for path in config.documents}
    marks = {Path(mark).name for mark in set().union(*map(marked, texts.values()))}
    known = {"digits", *(n for n, b in BENCHMARKS.items() if b.markdown)}
    known |= frontier.TABLES.keys()
    assert marks <= known.union(*(analysis.tables for analysis in ANALYSES.values()))
    assert report.renewed_documents(config, read_models(config.evaluation)) == texts
