"""`python -m pipeline.recipes [NAME] [--recipes FILE.py]`: all trainings, or what launch.sh needs.

With the name of a recipe it prints three lines: the shipped teacher, the shipped feature network
(a line is empty where the recipe trains its own), and the students. That needs no installation.
"""

import sys
from pathlib import Path

from data import SHIPPED
from get.errors import InputError
from pipeline.recipes import RECIPES
from pipeline.recipes.recipe import Recipe, evaluations, load


def stages(recipe: Recipe) -> str:
    """Return the three lines."""
    assert recipe.evaluate is not None
    weights = recipe.pairs.teacher, recipe.evaluate.feature_network
    shipped = [str(p) if Path(p).is_relative_to(SHIPPED) else "" for p in weights]
    return "\n".join([*shipped, " ".join(recipe.students)])


def main(arguments: list[str]) -> None:
    """Print the table of trainings, or the stages of a recipe.

    Raises:
        InputError: If there is no such recipe.
    """
    if "--recipes" in arguments[:-1]:
        at = arguments.index("--recipes")
        RECIPES.update(load(arguments[at + 1]))
        del arguments[at : at + 2]
    if not arguments:
        from pipeline.recipes.table import trainings  # needs torch

        print(trainings())
        return
    names, name = evaluations(RECIPES), " ".join(arguments)
    if name not in names:
        raise InputError(f"expected a recipe ({', '.join(names)}), got {name}")
    print(stages(RECIPES[name]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"recipes: {error}", file=sys.stderr)
        sys.exit(2)
