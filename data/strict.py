"""JSON that others may have written: parsed within bounds, every value checked, or refused."""

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from data.teachers.settings import Execution, Sampler

Rule = Callable[[Any], bool]


def parse(
    data: bytes, rules: Mapping[str, Rule], optional: Collection[str] = (), *, unknown: bool = False
) -> dict[str, Any]:
    """Return the fields of an object in JSON, each of which fulfils its rule.

    Args:
        data: The JSON.
        rules: The fields that there are.
        optional: Those that may be missing.
        unknown: Whether other fields are taken too, unchecked.

    Raises:
        ValueError: If it is anything else; the message is short and printable.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:  # no JSON, no text, a number of 5,000 digits
        raise ValueError(type(error).__name__) from None
    if not isinstance(fields, dict):
        raise ValueError("no object")
    if unknown:
        return fields
    if missing := rules.keys() - fields.keys() - set(optional):
        raise ValueError(f"no {', '.join(sorted(missing))[:100]}")
    for name, value in fields.items():
        if name not in rules or not rules[name](value):
            raise ValueError(f"{ascii(name)[1:51]} {ascii(value)[:50]}")
    return fields


def integer(least: int, most: int) -> Rule:
    """Return a rule for whole numbers; True is none."""
    return lambda value: type(value) is int and least <= value <= most


def list_of(rule: Rule, least: int, most: int) -> Rule:
    """Return a rule for so many values."""
    return lambda value: (
        isinstance(value, list) and least <= len(value) <= most and all(map(rule, value))
    )


def optional(rule: Rule) -> Rule:
    """Return a rule that takes null as well."""
    return lambda value: value is None or rule(value)


def text(value: Any) -> bool:
    """Rule for short text."""
    return isinstance(value, str) and len(value) < 1000


def settings_of(kind: type[Sampler] | type[Execution]) -> Rule:
    """Return a rule for what `settings` of this kind returns."""

    def fits(value: Any) -> bool:
        try:
            kind(**value)
        except (TypeError, ValueError):
            return False
        return isinstance(value, dict)

    return fits
