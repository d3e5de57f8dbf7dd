"""launch.sh: one command from arguments to exit code, in the environment the tests run in."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRAIN = (
    ("train smoke, smoke-vit",) if (os.cpu_count() or 1) > 1 else ("train smoke", "train smoke-vit")
)
STAGES = ("teacher", "pairs", *TRAIN, "sample", "evaluate", "report")


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start launch.sh with this Python's environment active."""
    environment = {
        **os.environ,
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.Popen(
        [ROOT / "launch.sh", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs, this test run perhaps, deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture
def installed() -> None:
    """Skip where launch.sh would first have to install something, which is no test's business."""
    command = "cat pyproject.toml constraints.txt | cksum"
    wanted = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True).stdout
    stamp = Path(sys.prefix) / ".get-installed"
    if not stamp.exists() or not stamp.read_text().startswith(wanted.strip()):
        pytest.skip("launch.sh did not set this environment up")


def test_help_explains_every_option():
    code, out, err = end(start("--help"))
    assert (code, err) == (0, "")
    assert out.startswith("Usage: ./launch.sh [RECIPE]")
    for option in ("--recipes FILE.py", "--num_processes N", "--output_dir DIR", "test [--slow]"):
        assert option in out.split("\n\n")[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["smoke", "--retrain-teacher"], "an option of --help, got --retrain-teacher"),
        (["smoke", "digits"], "an option of --help, got digits"),
        (["--num_processes"], "a value after --num_processes"),
        (["--output_dir", ""], "a value after --output_dir"),
        (["--num_processes", "two"], "a positive number after --num_processes, got two"),
        (["--num_processes", "0"], "a positive number after --num_processes, got 0"),
    ],
)
def test_arguments_that_mean_nothing_end_with_2_and_one_line(arguments, expected):
    assert end(start(*arguments)) == (2, "", f"launch.sh: expected {expected}\n")


def test_an_unknown_recipe_ends_with_2_and_the_list(installed, tmp_path):
    code, out, err = end(start("digit", "--output_dir", tmp_path / "runs"))
    assert (code, out) == (2, "")
    known = "digits, photos, equilibria, smoke"
    assert err == f"recipes: expected a recipe ({known}), got digit\n"
    assert not (tmp_path / "runs").exists()


def files(folder: Path) -> dict[Path, int]:
    """Return when every file that a finished stage leaves alone was written."""
    # made anew, the same
    again = "report.md", "report.html", "comparison.png", "grid.png", "metrics.jsonl"
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*.*") if p.name not in again}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_stages_run_once_and_a_signal_only_delays_them(installed, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    code, out, err = end(start("smoke", "--output_dir", whole))
    assert code == 0, err[-2000:]
    titles = [line[3:] for line in out.splitlines() if line.startswith("== ")]
    assert [title.partition(" (")[0] for title in titles] == [*STAGES]  # "pairs (2 processes)"
    assert all(f"\n{stage:24}" in out for stage in STAGES)
    for name in ("model_index.json", "images/grid.png", "evaluation/report.md"):
        assert (whole / "smoke" / name).exists()

    before = files(whole)
    code, out, err = end(start("smoke", "--output_dir", whole))
    assert code == 0, err[-2000:]
    assert before == files(whole)
    assert out.count("nothing to do") == 5

    moments = {
        signal.SIGTERM: stopped / "pairs" / "smoke" / "pairs-000000.json",
        signal.SIGINT: stopped / "smoke" / "metrics.jsonl",
    }
    for number, sight in moments.items():
        process = start("smoke", "--output_dir", stopped)
        while not sight.exists():
            assert process.poll() is None, process.communicate()[1][-2000:]
            time.sleep(0.01)
        process.send_signal(number)
        code, _, err = end(process)
        assert code == 128 + number, err[-2000:]
        assert "run the same command to continue" in err.splitlines()[-1]
    assert not (stopped / "smoke" / "finished.json").exists()
    code, out, err = end(start("smoke", "--output_dir", stopped))
    assert code == 0, err[-2000:]
    assert "continuing at step" in out
    weights = "smoke/model/diffusion_pytorch_model.safetensors"
    assert (stopped / weights).read_bytes() == (whole / weights).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_and_a_new_teacher_run_all_stages(installed, tmp_path):
    options = "--num_processes", 2, "--retrain_teacher", "--output_dir", tmp_path
    code, out, err = end(start("smoke", *options))
    assert code == 0, err[-2000:]
    assert out.count("(2 processes)") == 4
    assert "global batch 16 = 2 processes" in out
    assert (tmp_path / "smoke-teacher" / "card.json").exists()
    assert (tmp_path / "smoke" / "evaluation" / "report.md").exists()
