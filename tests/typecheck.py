"""The type checker of the test run, for pyproject.toml."""

from collections.abc import Callable

from beartype import beartype


def checked(function: Callable) -> Callable:
    """Return the function with checks of its types.

    A function inside another is left alone: it would be made anew, in milliseconds, in every call
    of the outer one, whose own types are checked.
    """
    return function if "<locals>" in function.__qualname__ else beartype(function)
