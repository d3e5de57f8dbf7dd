"""Recipes of the user's own: `--recipes FILE.py` or `--recipes module:NAME`."""

import sys
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from get.errors import InputError
from pipeline.recipes.recipe import Recipe


@cache
def load(source: str) -> dict[str, Recipe]:
    """Return the recipes of a user's own file.

    Args:
        source: A Python file, or "package.module:NAME"; NAME defaults to RECIPES, a dictionary of
            name to `Recipe`. A file is imported under its stem, so that models defined in it can
            be loaded again.

    Raises:
        InputError: If there are none.
    """
    place, _, name = source.partition(":")
    path = Path(place)
    try:
        if path.suffix == ".py":
            if path.stem in sys.stdlib_module_names or path.stem in ("get", "data", "pipeline"):
                raise InputError(
                    f"expected recipes in a file of another name, got {path}; rename it"
                )
            spec = spec_from_file_location(path.stem, path)
            assert spec is not None
            assert spec.loader is not None
            module = sys.modules[path.stem] = module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = import_module(place)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise InputError(
            f"expected recipes in {source}, got: {error}; give a .py file or module:NAME"
        ) from error
    found = getattr(module, name or "RECIPES", None)
    if not isinstance(found, dict) or not all(isinstance(r, Recipe) for r in found.values()):
        raise InputError(
            f"expected {name or 'RECIPES'} in {place}, a dictionary of name to Recipe, got "
            f"{type(found).__name__}; see CONTRIBUTING.md"
        )
    return found
