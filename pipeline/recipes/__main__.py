"""`python -m pipeline.recipes [NAME] [--recipes FILE.py]`: all trainings, or what launch.sh needs.

With the name of a recipe it prints three lines: what to do for a feature network and for a
teacher (`train`, `check PATH` of a shipped one, `use PATH`), and the students. That needs nothing
but Python.
"""

import os
import sys
from pathlib import Path

from data import SHIPPED
from get.errors import InputError
from pipeline.recipes import RECIPES
from pipeline.recipes.measures import evaluations
from pipeline.recipes.own import load
from pipeline.recipes.recipe import Recipe


def stages(recipe: Recipe) -> str:
    """Return the three lines."""
    assert recipe.evaluate is not None
    lines = []
    for weights, own in (
        (recipe.evaluate.feature_networks[0], recipe.classifier),
        (recipe.pairs.teacher, recipe.teacher),
    ):
        if Path(weights).is_relative_to(SHIPPED):
            lines.append(f"check {weights}")
        else:
            lines.append(f"use {weights}" if own is None else "train")
    return "\n".join([*lines, " ".join(recipe.students)])


def main(arguments: list[str]) -> None:
    """Print all trainings, or the stages of a recipe.

    Raises:
        InputError: If there is no such recipe.
    """
    if "--recipes" in arguments[:-1]:
        at = arguments.index("--recipes")
        RECIPES.update(load(arguments[at + 1]))
        del arguments[at : at + 2]
    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: recipes [NAME] [--recipes FILE.py]\n")
        print(f"NAME is one of: {', '.join(evaluations(RECIPES))}")
        print("Without it, all trainings; with it, what launch.sh has to do.")
        return
    if not arguments:
        from pipeline.recipes.trainings import trainings  # needs torch

        print(trainings())
        return
    names, name = evaluations(RECIPES), " ".join(arguments)
    if name not in names:
        raise InputError(f"expected a recipe ({', '.join(names)}), got {name}")
    print(stages(RECIPES[name]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except InputError as error:
        print(f"recipes: {error}", file=sys.stderr)
        sys.exit(2)
