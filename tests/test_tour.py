"""docs/tour.py runs from its first cell to its last, with the recipe that is smallest."""

from pathlib import Path

import pytest

from pipeline.recipes import RECIPES

from .problems import as_users_run_it as as_users_run_it

TOUR = Path(__file__).parents[1] / "docs" / "tour.py"
PAIRS = RECIPES["smoke"].pairs.num_pairs


@pytest.mark.usefixtures("as_users_run_it")
def test_the_tour_ends_with_a_student_and_its_equilibrium(tmp_path, capsys):
    text = TOUR.read_text()
    for before, after in (
        ('Path("runs/tour"), 8192, 1500', f"Path({str(tmp_path)!r}), {PAIRS}, 4"),
        ('RECIPES["digits"]', 'RECIPES["smoke"]'),
        ('recipe.students["digits"]', 'recipe.students["smoke"]'),
    ):
        assert before in text
        text = text.replace(before, after)
    exec(compile(text, TOUR.name, "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out
    for line in ("teacher: ", "a shard: noise", "student: ", "16 iterations: ", "Anderson: "):
        assert line in said
    assert (tmp_path / "teacher-and-student.png").stat().st_size > 1000
    assert (tmp_path / "student" / "model_index.json").is_file()
