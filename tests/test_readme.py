"""The front door: README.md's commands run in the order written; documents name what exists.

README's commands run with the arguments they have there, in one temporary folder and at a small
size. Commands in docs/ and CONTRIBUTING.md are parsed only.
"""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any, NoReturn

import pytest
import yaml

from pipeline import cli
from pipeline.recipes import RECIPES
from pipeline.recipes import __main__ as recipes_script
from pipeline.recipes.own import load

from .processes import ROOT, Result

README = ROOT / "README.md"
# log.md and CHANGELOG.md tell of files and commands that are gone.
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS.remove(ROOT / "docs" / "log.md")
EVERY_DOCUMENT = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)

STEPS = ("--max_train_steps", 2, "--lr_warmup_steps", 1)
SIZES = {  # what makes a command of README.md small
    "train_classifier": (*STEPS, "--width", 8),
    "train_teacher": (*STEPS, "--global_batch_size", 16, "--block_out_channels", 8, 16),
    "make_pairs": (
        *("--num_pairs", 384, "--pairs_per_shard", 64),
        *("--teacher_batch_size", 64, "--num_inference_steps", 2),
    ),
    "verify_pairs": ("--batches", 1),
    "plan": (),
    "train": (
        *(*STEPS, "--holdout_shards", 1, "--model.width", 16),
        *("--frechet_steps", 1, "--frechet_images", 1),
    ),
    "sample": ("--num_images", 4),
}


# ---------------------------------------------------------------- reading documents


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield (language, code) of every block; indented ones are "shell"."""
    pattern = re.compile(r"^```(\w+)\n(.*?)^```$|((?:^ {4}[^\n]*\n)+)", re.M | re.S)
    for language, fenced, indented in pattern.findall(text):
        yield (language, fenced) if language else ("shell", indented)


def lines(shell: str) -> list[str]:
    """Return the commands of a block, without comments."""
    joined = shell.replace("\\\n", " ").splitlines()
    return [line.strip() for line in joined if line.strip() and not line.strip().startswith("#")]


def commands(path: Path) -> list[str]:
    """Return `VERB ARGUMENTS` of every command of ours that a document shows."""
    text = path.read_text().replace("\\\n", " ")
    inline = (span.replace("\n", " ") for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text))
    code = [
        line for language, block in blocks(text) if language == "shell" for line in lines(block)
    ]
    ours = re.compile(r"(?:-m pipeline\.|accelerate launch .*?pipeline/)(\w+)(?:\.py)?(?: (.*))?$")
    found = [m for line in (*inline, *code) if (m := ours.search(line))]
    return sorted({f"{m[1]} {m[2] or ''}".strip() for m in found})


# ---------------------------------------------------------------- the commands of README.md


@pytest.fixture
def folder(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the weights of this repository and the user's pictures."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    (tmp_path / "pictures").symlink_to(pictures)
    monkeypatch.chdir(tmp_path)
    before = dict(RECIPES)
    yield tmp_path
    RECIPES.clear()
    RECIPES.update(before)
    load.cache_clear()
    sys.modules.pop("my_recipes", None)


class Reader:
    """Does what README.md says, from top to bottom."""

    def __init__(self, here: Callable[..., Result], capsys: pytest.CaptureFixture) -> None:
        self.here, self.capsys = here, capsys
        self.variables: dict[str, str] = {}
        self.installed = self.active = False  # the environment that launch.sh makes

    def shell(self, line: str) -> None:
        match shlex.split(Template(line).substitute(self.variables), comments=True):
            case ["./launch.sh", *arguments]:
                self.launch(*arguments)
            case ["source", ".venv/bin/activate"] if self.installed:
                self.active = True
            case ["python", "-m", script, *arguments] if self.active:
                self.run(script.removeprefix("pipeline."), *arguments)
            case ["accelerate", "launch", script, *arguments] if self.active:
                assert (ROOT / script).is_file()
                self.run(Path(script).stem, *arguments)
            case [assignment] if assignment.partition("=")[0].isidentifier():
                name, _, self.variables[name] = assignment.partition("=")
            case _:
                pytest.fail(f"no environment is active, or this test does not know how to: {line}")

    def run(self, verb: str, *arguments: str) -> None:
        result = self.here(verb, *arguments, *SIZES[verb])
        assert result.codes == [0], (verb, arguments, result.err)
        assert "do not fit" not in result.out, result.out  # a plan without its pairs

    def launch(self, *arguments: str) -> None:
        """Let launch.sh check its options; make what its first stages make."""
        command = [ROOT / "launch.sh", *arguments, "--help"]
        checked = subprocess.run(command, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        self.installed = True
        if arguments[:1] == ("test",):
            return
        name, *own = arguments or ("digits",)
        self.capsys.readouterr()
        recipes_script.main([name, *own])
        features, teacher, students = self.capsys.readouterr().out.splitlines()
        if features == "train":
            self.run("train_classifier", name, *own)
        if teacher == "train":
            self.run("train_teacher", name, *own)
        self.run("make_pairs", name, *own)
        self.run("train", students.split()[0], *own)

    def python(self, code: str) -> None:
        """Save code whose first line names a file; run other code."""
        if name := re.match(r"# (\w+\.py)\n", code):
            Path(name[1]).write_text(code)
        else:
            exec(compile(code, README.name, "exec"), {})


def test_the_commands_of_the_readme_run_one_after_the_other(folder, here, capsys):
    reader = Reader(here, capsys)
    text = re.sub(r"^## The tree.*?(?=^## )", "", README.read_text(), flags=re.M | re.S)
    for language, block in blocks(text):
        if language == "python":
            reader.python(block)
        else:
            for line in lines(block):
                reader.shell(line)
    assert (folder / "three.png").exists()
    assert (folder / "runs" / "own" / "images" / "grid.png").exists()
    assert (folder / "runs" / "mine" / "model_index.json").exists()


# ---------------------------------------------------------------- what documents show


class Parsed(Exception):
    """The command line was understood."""


@pytest.mark.parametrize("command", sorted({c for path in DOCUMENTS for c in commands(path)}))
def test_every_command_in_a_document_can_be_parsed(command, here, monkeypatch):
    verb, *arguments = shlex.split(command, comments=True)
    if verb == "recipes":
        assert not arguments
        return
    parse_flags = cli.parse_flags

    def parsed(*values: Any) -> NoReturn:
        parse_flags(*values)
        raise Parsed

    monkeypatch.setattr(cli, "parse_flags", parsed)
    try:
        result = here(verb, *arguments)
        assert result.codes == [0], result.err
        assert arguments[-1] == "--help"
    except Parsed:
        pass


@pytest.mark.parametrize("path", DOCUMENTS[1:], ids=lambda path: path.name)
def test_python_in_a_document_runs(path):
    for language, code in blocks(path.read_text()):
        if language == "python":
            nodes = ast.parse(code).body
            packages = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
            if not all(map(find_spec, packages)):  # ray; what is imported of ours must exist
                code = "\n".join(ast.unparse(n) for n in nodes if isinstance(n, ast.ImportFrom))
            exec(compile(code, path.name, "exec"), {"__file__": str(path)})


def slug(heading: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@EVERY_DOCUMENT
def test_links_lead_somewhere(path):
    for target, _, anchor in re.findall(r"\]\(([^)#]*)(#([^)]*))?\)", path.read_text()):
        if not target.startswith("https://"):
            end = path.parent / target if target else path
            assert end.exists(), target
            headings = re.findall(r"^#+ (.*)$", end.read_text(), re.MULTILINE) if anchor else []
            assert not anchor or anchor in map(slug, headings), (target, anchor)


@EVERY_DOCUMENT
def test_paths_that_are_named_exist(path):
    rooms = "get|data|pipeline|tests|docs"
    named = re.findall(rf"(?<![\w/.:-])((?:{rooms})/[\w./-]*\w/?)", path.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_tree_of_the_readme_is_the_tree():
    tree = README.read_text().split("## The tree\n")[1].split("\n## ")[0]
    parent = ROOT
    for indent, name in re.findall(r"^ {4}( *)(\S+)", tree, re.MULTILINE):
        entry = (parent if indent else ROOT) / name
        assert entry.exists()
        parent = parent if indent else entry


def test_the_readme_is_short():
    assert README.read_text().count("\n") <= 150


def test_pre_commit_lints_as_launch_sh_does():
    checks = re.findall(
        r'^    run "\$python" -m ((?:ruff|pyrefly).*)$|(lint-imports)"$',
        (ROOT / "launch.sh").read_text(),
        re.MULTILINE,
    )
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == [ruff or imports for ruff, imports in checks]
