"""Train text retrievers in JAX, after NV-Retriever (arXiv 2407.15831).

    import nvret_jax as nv

    data = nv.load_dataset("pairs:faq.csv")            # or pairs of texts, a DataFrame, …
    student = nv.Encoder.from_pretrained("all-MiniLM-L6-v2")
    negatives = nv.mine(data, teacher=student)
    trained = nv.train(student, data, negatives)
    nv.evaluate(trained, data, "test")
    nv.export(trained, "my-model")

    result = nv.run("configs/own.py", "runs/mine")     # a whole run, kept in a folder

The command is `python -m nvret_jax.main`. Importing this package loads nothing else: each name is
found when it is first used.
"""

import importlib
import sys
import types

__version__ = "0.1.0"

_HOME = {
    name: home
    for home, names in {
        "nvret_jax.api": (
            "Bm25Ranker Dataset Encoder Evaluation Exclude InputError LoraConfig Loss Mining "
            "Negatives Rule evaluate export load_dataset make_mesh mine search train"
        ),
        "nvret_jax.pipeline": "Result run",
        "nvret_jax": "config",
    }.items()
    for name in names.split()
}
__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'nvret_jax' has no attribute {name!r}")
    if _HOME[name] == __name__:
        return importlib.import_module(f"{__name__}.{name}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Function:
    """A function of the interface with the name of a package inside this one.

    The import system binds a package to its parent: `nvret_jax.search` would be the function until
    anything imports `nvret_jax.search.index`, and the package from then on. Here it is always the
    function, with the package's modules as its attributes, so that dotted names and
    `import nvret_jax.search.index as index` mean what they say.
    """

    def __init__(self, name: str):
        self._name = name

    def __get__(self, module, _=None):
        function = getattr(importlib.import_module(_HOME[self._name]), self._name)
        package = sys.modules[f"{__name__}.{self._name}"]
        for name, value in vars(package).items():
            if isinstance(value, types.ModuleType):
                setattr(function, name, value)
        return function

    def __set__(self, module, package):
        """The import system's binding; `sys.modules` has the package as well."""


class _Module(types.ModuleType):
    search = _Function("search")
    export = _Function("export")


sys.modules[__name__].__class__ = _Module
