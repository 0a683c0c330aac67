"""The documented public API of installed Python packages, read from source and never imported.

`public_docs` parses files with `ast` and follows re-exports statically, from each public module to
the private file that holds the definition, so that `jax/_src/numpy/reductions.py` is reported as
`jax.numpy.sum`. Choices:

- Only files reachable from public dotted names are read: a private file that is not re-exported is
  never parsed.
- A definition has one name, the shortest public one (then the first in the alphabet). Re-exports
  of the same definition are therefore one entry, not several.
- A name imported into a module counts as an export only if it is declared: listed in `__all__`,
  written `X as X`, or in a package's `__init__.py`. Otherwise every helper that a module imports
  would appear public.
- If a package assembles its names at import time (scipy.signal, scipy.special), no import statement
  shows them. Names in `__all__` of a private module are attributed to the nearest public package
  above it.
- C functions have no Python source. NumPy and SciPy keep their docstrings in tables of
  `add_newdoc(…)` calls, which are read, too.
- Function bodies hold no API and are most of the code, so they are removed before parsing
  (`_without_bodies`), which makes it three times as fast. If the result is not valid Python, the
  file is parsed unchanged.
"""

from __future__ import annotations

import ast
import functools
import gc
import importlib.util
import inspect
import itertools
import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

STDLIB = "stdlib"
# Folders and modules that hold no API: tests, build scripts, vendored programs, opcode tables.
_SKIP = frozenset(
    "test tests testing conftest setup site-packages __pycache__ idlelib lib2to3 turtledemo "
    "ensurepip pydoc_data encodings distutils _lib __main__ __phello__ this antigravity".split()
)
# Tables of docstrings for C functions -> the module their bare names belong to
# (None: each call names its module).
_DOC_TABLES = {
    "numpy._core._add_newdocs": None,
    "scipy.special._add_newdocs": "scipy.special",
}


@dataclass
class _Module:
    """The definitions and imports of one parsed file."""

    is_package: bool = False
    doc: str | None = None
    docs: dict[str, str] = field(default_factory=dict)  # "f", "Class", "Class.method" -> docstring
    methods: dict[str, list[str]] = field(default_factory=dict)  # class -> its documented methods
    defined: set[str] = field(default_factory=set)  # functions and classes, documented or not
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)  # local -> (module, name)
    modules: dict[str, str] = field(default_factory=dict)  # local name -> module it is bound to
    stars: list[str] = field(default_factory=list)
    explicit: set[str] = field(default_factory=set)  # written `X as X`, or an alias `X = mod.Y`
    all_names: list[str] | None = None  # the literal names of `__all__`
    all_computed: bool = False  # and it has others, which only running the module would show


def find_roots(packages: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """The location of each package's source.

    Args:
        packages: top-level package names; `STDLIB` stands for the standard library.

    Returns:
        (name -> folder, names that are not installed)
    """
    roots, missing = {}, []
    for package in packages:
        if package == STDLIB:
            roots[package] = Path(sysconfig.get_path("stdlib"))
            continue
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            missing.append(package)
        else:
            roots[package] = Path(next(iter(spec.submodule_search_locations)))
    return roots, missing


def public_docs(package: str, root: Path) -> dict[str, str]:
    """Docstrings of the public API of `package`.

    Args:
        package: its name, or `STDLIB` (where every top-level module is a separate package).
        root: the folder that holds its source.

    Returns:
        dotted public name -> cleaned docstring, in alphabetical order of the name.
    """
    # A syntax tree is hundreds of thousands of objects without cycles: garbage collection while it
    # grows costs a fifth of the time and frees nothing.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _Source(package, root).public_docs()
    finally:
        if collecting:
            gc.enable()


class _Source:
    """The modules of one package, parsed on first use."""

    def __init__(self, package: str, root: Path):
        self._prefix = "" if package == STDLIB else package
        self._root = root
        self._modules: dict[str, _Module | None] = {}
        for table, owner in _DOC_TABLES.items():
            if package == table.split(".")[0]:
                self._read_doc_table(table, owner)

    def public_docs(self) -> dict[str, str]:
        best: dict[tuple[str, str], str] = {}  # (module, name) of a definition -> its public name
        for module_name in self._public_modules():
            module = self._module(module_name)
            if module is None:
                continue
            for name in sorted(self._exports(module)):
                target = self._resolve(module_name, name)
                if target is None:
                    continue
                public = f"{module_name}.{name}"
                known = best.get(target)
                if known is None or _rank(public) < _rank(known):
                    best[target] = public
        for module_name in self._private_modules():
            owner = ".".join(_public_parts(module_name))
            module = self._module(module_name)
            for name in (module.all_names or ()) if module else ():
                target = self._resolve(module_name, name)
                if target is not None and not name.startswith("_"):
                    best.setdefault(target, f"{owner}.{name}")
        found = {}
        for module_name in self._public_modules():
            module = self._module(module_name)
            if module is not None and module.doc:
                found[module_name] = module.doc
        for (module_name, name), public in best.items():
            module = self._module(module_name)
            for inner in ("", *(f".{method}" for method in module.methods.get(name, ()))):
                if name + inner in module.docs:
                    found[public + inner] = module.docs[name + inner]
        return dict(sorted(found.items()))

    def _public_modules(self) -> list[str]:
        """Dotted names of all modules no part of which is private, in alphabetical order."""
        return [name for name in self._names if _public_parts(name) == name.split(".")]

    def _private_modules(self) -> list[str]:
        """The other modules that mention `__all__`. None in the standard library."""
        return [
            name
            for name in self._names
            if self._prefix
            and _public_parts(name) != name.split(".")
            and b"__all__" in self._path(name)[0].read_bytes()
        ]

    @functools.cached_property
    def _names(self) -> list[str]:
        pending, names = [(self._root, self._prefix)], []
        while pending:
            folder, dotted = pending.pop()
            if dotted and (folder / "__init__.py").is_file():
                names.append(dotted)
            for entry in folder.iterdir():
                stem = entry.stem if entry.suffix == ".py" else entry.name
                if stem in _SKIP or not stem.isidentifier() or stem == "__init__":
                    continue
                name = f"{dotted}.{stem}" if dotted else stem
                if entry.suffix == ".py":
                    names.append(name)
                elif (entry / "__init__.py").is_file():
                    pending.append((entry, name))
        return sorted(names)

    def _path(self, name: str) -> tuple[Path, bool] | None:
        """(file of the module, whether it is a package); None if there is no source."""
        parts = name.split(".")
        if self._prefix:
            if parts[0] != self._prefix:
                return None
            parts = parts[1:]
        base = self._root.joinpath(*parts)
        for path, is_package in ((base / "__init__.py", True), (base.with_suffix(".py"), False)):
            if (parts and path.is_file()) or (not parts and is_package):
                return path, is_package
        return None

    def _module(self, name: str) -> _Module | None:
        if name not in self._modules:
            self._modules[name] = self._parse(name)
        return self._modules[name]

    def _parse(self, name: str) -> _Module | None:
        found = self._path(name)
        if found is None:
            return None
        path, is_package = found
        tree = _parse_surface(path.read_bytes())
        if tree is None:
            return None
        module = _Module(is_package=is_package, doc=ast.get_docstring(tree))
        _Reader(module, name).read(tree.body)
        return module

    def _exports(self, module: _Module) -> set[str]:
        names = set(module.all_names or ())
        if module.all_names is not None and not module.all_computed:
            return {name for name in names if not name.startswith("_")}
        names |= module.explicit | module.defined
        if module.is_package:
            names |= set(module.imported)
            for star in module.stars:
                target = self._module(star)
                if target is not None:
                    names |= self._exports(target)
        return {name for name in names if not name.startswith("_")}

    def _resolve(
        self, module_name: str, name: str, seen: frozenset[tuple[str, str]] = frozenset()
    ) -> tuple[str, str] | None:
        """The (module, name) that defines `module_name.name`; None if not in source."""
        if (module_name, name) in seen:
            return None
        module = self._module(module_name)
        if module is None:
            return None
        if name in module.defined:
            return module_name, name
        seen = seen | {(module_name, name)}
        if name in module.imported:
            return self._resolve(*module.imported[name], seen)
        for star in reversed(module.stars):
            found = self._resolve(star, name, seen)
            if found is not None:
                return found
        return None

    def _read_doc_table(self, table: str, owner: str | None) -> None:
        found = self._path(table)
        tree = _parse_surface(found[0].read_bytes()) if found else None
        for node in tree.body if tree else ():
            if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
                continue
            if not (isinstance(node.value.func, ast.Name) and node.value.func.id == "add_newdoc"):
                continue
            try:
                args = [ast.literal_eval(arg) for arg in node.value.args]
            except ValueError:  # the text is computed
                continue
            module_name = owner or args.pop(0)
            module = self._module(module_name)
            if module is None or len(args) != 2:
                continue
            name, docs = args
            module.defined.add(name)
            for doc in [docs] if isinstance(docs, (str, tuple)) else docs:
                method, text = doc if isinstance(doc, tuple) else ("", doc)
                if method.startswith("_"):
                    continue
                key = f"{name}.{method}" if method else name
                if method and key not in module.docs:
                    module.methods.setdefault(name, []).append(method)
                module.docs[key] = inspect.cleandoc(text)


def _public_parts(module_name: str) -> list[str]:
    """The leading parts of a dotted name, up to the first private one."""
    return list(itertools.takewhile(lambda part: part[0] != "_", module_name.split(".")))


_DEF_OR_TEXT = re.compile(r"^( *)(?:async +)?def +\w|(\"\"\"|''')", re.MULTILINE)
_COLON_AT_END = re.compile(r":[ \t]*(?:#[^\n]*)?\n")
_DOCSTRING = re.compile(
    r"(?:[ \t]*(?:#[^\n]*)?\n)*[ \t]*[rRuU]?(\"\"\"|'''|\"|').*?\1[^\n]*\n", re.DOTALL
)


@functools.cache
def _dedent(indent: int) -> re.Pattern[str]:
    """Finds the next line of code no further in than `indent`. `)` may end a signature there."""
    return re.compile(rf"^ {{0,{indent}}}[^\s#)]", re.MULTILINE)


def _without_bodies(source: str) -> str:
    """`source` with every function reduced to its signature and docstring, by line and indent."""
    kept, position = [], 0
    start = 0
    while match := _DEF_OR_TEXT.search(source, start):
        if match[2]:  # a docstring of a module or class, whose examples may contain a `def`
            start = source.find(match[2], match.end()) + 3
            if start < 3:
                break
            continue
        indent = len(match[1])
        colon = _COLON_AT_END.search(source, match.end())
        if colon is None:
            break
        if other := _dedent(indent).search(source, match.end(), colon.start()):
            # The colon belongs to a later statement: this function is a single line.
            start = other.start()
            continue
        docstring = _DOCSTRING.match(source, colon.end())
        stop = docstring.end() if docstring else colon.end()
        kept.append(source[position:stop])
        if not docstring:
            kept.append(" " * (indent + 1) + "pass\n")
        end = _dedent(indent).search(source, stop)
        start = position = end.start() if end else len(source)
    kept.append(source[position:])
    return "".join(kept)


def _parse_surface(source: bytes) -> ast.Module | None:
    """The syntax tree without function bodies; None for a file of another Python version."""
    try:
        return ast.parse(_without_bodies(source.decode()))
    except (SyntaxError, ValueError):  # the removal failed, or the file is not UTF-8
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError):
            return None


def _rank(public_name: str) -> tuple[int, str]:
    return public_name.count("."), public_name


class _Reader:
    """Fills a `_Module` from the statements of its file."""

    def __init__(self, module: _Module, name: str):
        self._module = module
        self._package = name if module.is_package else name.rpartition(".")[0]

    def read(self, body: Sequence[ast.stmt]) -> None:
        for node in body:
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    self._define(node.name, node)
                case ast.ClassDef():
                    self._define(node.name, node)
                    self._read_methods(node)
                case ast.ImportFrom():
                    self._read_import_from(node)
                case ast.Import():
                    for alias in node.names:
                        if alias.asname:
                            self._module.modules[alias.asname] = alias.name
                case ast.Assign(targets=[ast.Name(id=target)]):
                    self._read_assign(target, node.value)
                case ast.AugAssign(target=ast.Name(id="__all__")):
                    self._extend_all(node.value)
                case ast.If() | ast.Try() | ast.With():
                    self.read(node.body)
                    self.read(getattr(node, "orelse", ()))
                    for handler in getattr(node, "handlers", ()):
                        self.read(handler.body)

    def _define(self, name: str, node: ast.AST) -> None:
        # An overload or a fallback branch may define a name again: the first docstring is kept.
        self._module.defined.add(name)
        doc = ast.get_docstring(node)
        if doc and name not in self._module.docs:
            self._module.docs[name] = doc

    def _read_methods(self, node: ast.ClassDef) -> None:
        for inner in node.body:
            if not isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            doc = ast.get_docstring(inner)
            key = f"{node.name}.{inner.name}"
            if doc and not inner.name.startswith("_") and key not in self._module.docs:
                self._module.docs[key] = doc
                self._module.methods.setdefault(node.name, []).append(inner.name)

    def _read_import_from(self, node: ast.ImportFrom) -> None:
        source = node.module or ""
        if node.level:
            parts = self._package.split(".")
            parts = parts[: len(parts) - node.level + 1]
            source = ".".join([*parts, source] if source else parts)
        for alias in node.names:
            if alias.name == "*":
                self._module.stars.append(source)
                continue
            local = alias.asname or alias.name
            self._module.imported[local] = (source, alias.name)
            self._module.modules[local] = f"{source}.{alias.name}"
            if alias.asname == alias.name:
                self._module.explicit.add(local)

    def _read_assign(self, target: str, value: ast.expr) -> None:
        match value:
            case ast.List() | ast.Tuple() | ast.BinOp() if target == "__all__":
                self._module.all_names = []
                self._extend_all(value)
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if (
                owner in self._module.modules
            ):
                self._module.imported[target] = (self._module.modules[owner], name)
                self._module.explicit.add(target)

    def _extend_all(self, value: ast.expr) -> None:
        """Adds the literal strings of an `__all__` expression; notes whether it has other parts."""
        names = self._module.all_names = self._module.all_names or []
        for node in ast.walk(value):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.append(node.value)
            elif isinstance(node, ast.Name | ast.Call | ast.ListComp):
                self._module.all_computed = True
