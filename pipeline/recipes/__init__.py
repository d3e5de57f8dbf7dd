"""The recipes: named distillations; every script takes its settings from one, flags change them.

`python -m pipeline.recipes` prints all trainings. A file of your own, given with
`--recipes FILE.py`, adds to them: see CONTRIBUTING.md. Importing this package is quick.
"""

from pipeline.recipes import builtin, published
from pipeline.recipes.architectures import Architecture as Architecture
from pipeline.recipes.architectures import GETModel as GETModel
from pipeline.recipes.architectures import ViTModel as ViTModel
from pipeline.recipes.recipe import Recipe as Recipe
from pipeline.recipes.recipe import distillation as distillation
from pipeline.recipes.recipe import with_students as with_students
from pipeline.recipes.settings_train import TrainConfig as TrainConfig

RECIPES: dict[str, Recipe] = {
    "digits": builtin.DIGITS,
    "photos": builtin.PHOTOS,
    "equilibria": builtin.EQUILIBRIA,
    "smoke": builtin.SMOKE,
    **published.RECIPES,
}
