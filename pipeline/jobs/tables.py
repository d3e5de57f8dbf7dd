"""Markdown tables, and the places in documents where they are kept up to date.

A table stands between the marks `<!-- table:NAME -->` and `<!-- end -->`.
"""

import re
from collections.abc import Mapping, Sequence

MARKS = re.compile(r"<!-- table:(\S+) -->.*?<!-- end -->", re.DOTALL)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Format rows, the first of them a header, as a Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def marked(text: str) -> set[str]:
    """Return the names of the tables that a document has marks for."""
    return set(MARKS.findall(text))


def renewed(text: str, tables: Mapping[str, str]) -> str:
    """Return a document with these tables between their marks; other tables stay as they are."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        return (
            f"<!-- table:{name} -->\n{tables[name]}\n<!-- end -->" if name in tables else match[0]
        )

    return MARKS.sub(table, text)


def for_a_terminal(rows: list[list[str]]) -> str:
    """Format the table with a line per figure and a column per model."""
    widths = [max(map(len, row)) for row in rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*rows, strict=True)
    )
