"""What may import what, and how large a file may be: read from the source, imports hidden in
functions and under TYPE_CHECKING included."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

import pytest

from nvret_jax.mining.rules import RULES

PACKAGE = pathlib.Path(__file__).parents[1] / "nvret_jax"
# Packages and top modules in their order: each may import those of earlier lines.
ORDER = (
    ("errors",),
    ("options", "files", "processes", "platforms"),
    ("mesh",),
    ("artifacts",),
    ("data",),
    ("models",),
    ("search",),
    ("mining",),
    ("training",),
    ("evaluation",),
    ("export", "report"),
    ("config",),
    ("api", "plan"),
    ("pipeline",),
    ("commands",),
    ("main",),
    ("__main__",),
)
MOST_LINES, MOST_TOP_MODULES = 600, 7
NEVER = ("torch", "tensorflow", "jax._src")


def modules(package: pathlib.Path) -> dict[str, ast.Module]:
    """Dotted name -> syntax tree of each module."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text(), str(path))
    return found


def imports(tree: ast.Module) -> Iterator[tuple[str, str | None]]:
    """(module, name taken from it or None) of every import, wherever it is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import by dots"
            yield from ((node.module, alias.name) for alias in node.names)


def imported_modules(tree: ast.Module, known: dict[str, ast.Module]) -> set[str]:
    """The package's own modules that a module imports."""
    found = set()
    for module, name in imports(tree):
        found |= {module, f"{module}.{name}"} & known.keys()
        if name is not None and f"{module}.{name}" in known:
            found.discard(module)  # only a folder on the way
    return found


def circles(known: dict[str, ast.Module]) -> list[str]:
    """Modules that import each other, directly or by others: one line for each way back."""
    graph = {name: imported_modules(tree, known) for name, tree in known.items()}
    state: dict[str, int] = {}
    found = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        state[name] = 1
        for other in sorted(graph[name] - {name}):
            if state.get(other) == 1:
                found.append(" -> ".join([*path[path.index(other) :], other]))
            elif other not in state:
                visit(other, (*path, other))
        state[name] = 2

    for name in graph:
        if name not in state:
            visit(name, (name,))
    return found


def place(module: str) -> tuple[str, int | None]:
    """The package or top module that a module belongs to, and its line in `ORDER`."""
    parts = module.split(".")
    first = parts[1] if len(parts) > 1 else ""
    if parts[-1] == "__main__":  # a command, wherever it is
        first = "__main__"
    found = [number for number, line in enumerate(ORDER) if first in line]
    return first, found[0] if found else None


def backward(known: dict[str, ast.Module]) -> list[str]:
    """Imports of a package from one that does not come before it."""
    root = next(iter(known)).split(".")[0]
    found = []
    for name, tree in known.items():
        if name == root:
            continue
        own, line = place(name)
        if line is None:
            found.append(f"{name}: {own} is not in ORDER")
            continue
        for other in sorted(imported_modules(tree, known) - {root}):
            its, before = place(other)
            if its != own and (before is None or before >= line):
                found.append(f"{name} imports {other}")
    return found


def private(known: dict[str, ast.Module]) -> list[str]:
    """Names with an underscore that are taken from another module of the package."""
    found = []
    for name, tree in known.items():
        aliases: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    hidden = alias.name.startswith("_") and not alias.name.startswith("__")
                    if node.module.split(".")[0] == name.split(".")[0]:
                        if hidden:
                            found.append(f"{name}: {node.module}.{alias.name}")
                        if f"{node.module}.{alias.name}" in known:
                            aliases.add(alias.asname or alias.name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                hidden = node.attr.startswith("_") and not node.attr.startswith("__")
                if hidden and node.value.id in aliases:
                    found.append(f"{name}: {node.value.id}.{node.attr}")
    return found


def forbidden(known: dict[str, ast.Module]) -> list[str]:
    """Imports of what the package never imports."""
    found = []
    for name, tree in known.items():
        for module, taken in imports(tree):
            full = f"{module}.{taken}" if taken else module
            if any(full == never or full.startswith(f"{never}.") for never in NEVER):
                found.append(f"{name} imports {full}")
    return found


def asks_for_the_platform(known: dict[str, ast.Module]) -> list[str]:
    """Modules but `platforms` that ask JAX which platform this is."""
    found = []
    for name, tree in known.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "default_backend":
                found.append(name)
    return [name for name in found if name.split(".")[-1] != "platforms"]


def rule_names(known: dict[str, ast.Module]) -> list[str]:
    """String literals outside of mining/rules.py that name a rule of mining."""
    return [
        f"{name}:{node.lineno}: {node.value!r}"
        for name, tree in known.items()
        if not name.endswith("mining.rules")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in RULES
    ]


CHECKS = (circles, backward, private, forbidden, asks_for_the_platform, rule_names)


@pytest.fixture(scope="module")
def known():
    return modules(PACKAGE)


@pytest.mark.parametrize("check", CHECKS)
def test_the_package_keeps_its_layout(check, known):
    assert check(known) == []


def test_every_line_of_the_order_is_there(known):
    there = {place(name)[0] for name in known} - {""}
    assert there == {name for line in ORDER for name in line}


def test_few_modules_at_the_top_and_no_long_file():
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_TOP_MODULES
    root = PACKAGE.parent
    files = [
        path
        for name in (PACKAGE.name, "tests", "benchmarks")
        for path in (root / name).rglob("*.py")
    ]
    lines = {path: path.read_text().count("\n") for path in files}
    assert {str(path): count for path, count in lines.items() if count > MOST_LINES} == {}


FINE = {
    "__init__": "",
    "errors": "class InputError(Exception): pass",
    "platforms": "import jax\nhere = jax.default_backend",
    "data/__init__": "",
    "data/load": "from p.errors import InputError\nfrom p.data import table\ntable.of",
    "data/table": "",
    "models/__init__": "",
    "models/encoder": "from p.data.load import InputError\nimport jax\njax._private_of_others",
    "mining/__init__": "",
    "mining/rules": "NAIVE = 'naive'",
    "plan/__init__": "",
    "plan/__main__": "from p import main",
    "main": "from p.models import encoder\nencoder.__doc__",
}


def made(folder: pathlib.Path, files: dict[str, str]) -> dict[str, ast.Module]:
    for name, text in files.items():
        path = folder / "p" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return modules(folder / "p")


@pytest.mark.parametrize("check", CHECKS)
def test_a_sound_package_is_sound(check, tmp_path):
    assert check(made(tmp_path, FINE)) == []


@pytest.mark.parametrize(
    ("check", "module", "text", "says"),
    [
        (
            circles,
            "data/table",
            "def later():\n    from p.data.load import of",
            "p.data.load -> p.data.table -> p.data.load",
        ),
        (
            circles,
            "data/table",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.data import load",
            "p.data.load -> p.data.table -> p.data.load",
        ),
        (
            backward,
            "data/table",
            "import p.models.encoder",
            "p.data.table imports p.models.encoder",
        ),
        (backward, "data/table", "from p import main", "p.data.table imports p.main"),
        (backward, "attic/old", "", "p.attic.old: attic is not in ORDER"),
        (private, "main", "from p.data.load import _part", "p.main: p.data.load._part"),
        (private, "main", "from p.data import load as l\nl._part()", "p.main: l._part"),
        (forbidden, "data/table", "def f():\n    import torch.nn", "p.data.table imports torch.nn"),
        (
            forbidden,
            "data/table",
            "from jax._src import core",
            "p.data.table imports jax._src.core",
        ),
        (forbidden, "data/table", "from jax import _src", "p.data.table imports jax._src"),
        (asks_for_the_platform, "main", "import jax\njax.default_backend()", "p.main"),
        (rule_names, "main", "f(rule='perc_pos')", "p.main:1: 'perc_pos'"),
    ],
)
def test_what_breaks_the_layout_is_found(check, module, text, says, tmp_path):
    assert check(made(tmp_path, FINE | {module: text})) == [says]
