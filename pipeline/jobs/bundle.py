"""One file with a class of the library and all that it needs of it, for places without it.

`diffusers` loads such files with `trust_remote_code=True`; it copies single files, so the modules
are put into one: each in the order of imports, without its imports of the others.
"""

import ast
import importlib.util
import re
from collections import defaultdict
from pathlib import Path

LIBRARY = "get"
TYPES = "jaxtyping"
SHAPED = '''

class _Shaped:
    """Stands for jaxtyping's types: `Float[Tensor, "batch channels"]` is a Tensor."""

    def __class_getitem__(cls, item: tuple) -> type:
        return item[0]

'''


def bundle(module: str, replaced: dict[str, str] | None = None) -> str:
    """Return the source of a module of the library, bundled with those it imports.

    Args:
        module: Its name, "get.models.get" for example.
        replaced: Modules that are left out, and the import statement that takes their place.

    Raises:
        RuntimeError: If two modules define one name, so that they cannot share a file.
    """
    modules: dict[str, ast.Module] = {}
    _visit(module, replaced or {}, modules)
    imports = [ast.parse(statement).body[0] for statement in (replaced or {}).values()]
    bodies, owner = [], dict[str, str]()
    for name, tree in modules.items():
        lines = _source(name).read_text().splitlines()
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                imports.append(node)
                last = node.end_lineno or node.lineno
                lines[node.lineno - 1 : last] = [""] * (last - node.lineno + 1)
            for defined in _defined(node):
                if owner.setdefault(defined, name) != name:
                    raise RuntimeError(f"{defined} is in {owner[defined]} and in {name}")
        if ast.get_docstring(tree) is not None:
            lines[: tree.body[0].end_lineno] = []
        if text := "\n".join(lines).strip("\n"):
            bodies.append(f"# ---------------- {name}\n\n{text}")
    head = f'"""Made from {module} and what it imports, by `python -m pipeline.convert export`."""'
    parts = [f"{head}\n\nfrom __future__ import annotations\n\n{_merged(imports)}", *bodies]
    return re.sub("\n{4,}", "\n\n\n", "\n\n\n".join(parts)) + "\n"


def _merged(nodes: list[ast.stmt]) -> str:
    """Return the imports of everything else, once each, and a stand-in for jaxtyping's types."""
    plain, names, shaped = set[str](), defaultdict[str, set[str]](set), set[str]()
    for node in nodes:
        if isinstance(node, ast.Import):
            plain.add(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom) and _root(node) == TYPES:
            shaped.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and _root(node) not in (LIBRARY, "__future__"):
            names[node.module or ""].update(map(ast.unparse, node.names))
    text = "\n".join(
        [
            *sorted(plain),
            *(f"from {m} import {', '.join(sorted(n))}" for m, n in sorted(names.items())),
        ]
    )
    return f"{text}\n{SHAPED}\n{' = '.join(sorted(shaped))} = _Shaped" if shaped else text


def _visit(module: str, replaced: dict[str, str], found: dict[str, ast.Module]) -> None:
    """Add a module to those found, after all that it imports."""
    if module in found or module in replaced:
        return
    tree = ast.parse(_source(module).read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and _root(node) == LIBRARY and node.module:
            _visit(node.module, replaced, found)
    found[module] = tree


def _source(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"no source of {module}")
    return Path(spec.origin)


def _root(node: ast.Import | ast.ImportFrom) -> str:
    name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
    return (name or "").split(".")[0]


def _defined(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []
