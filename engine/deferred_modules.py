"""Modules that are loaded when something of them is used: SymPy, which onnx_ir has for arithmetic with names of axes.

Few networks need it, and it is half of what a child loads at its start.
"""

import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# The second one, which takes functions of the first as soon as it is imported, is used where an axis' name is parsed.
_NAMES = ("sympy", "onnx_ir._symbolic_shapes")


class _Deferred(ModuleType):
    """Stands for a module until a name of it, or a module below it, is asked for.

    The standard library's LazyLoader loads at the second `import` already.
    """

    def __init__(self, name: str, finder: "_Finder") -> None:
        super().__init__(name)
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        # What is asked of every module says nothing, but for the folder of those below, once it is imported.
        asks = name in {"__path__", "__version__"} and sys.modules.get(self.__name__) is self
        if name.startswith("__") and not asks:
            raise AttributeError(name)
        return getattr(self._finder.load(self.__name__), name)


class _Finder(MetaPathFinder, Loader):
    """Answers the first `import` of each name with its stand-in."""

    def __init__(self) -> None:
        self._left = set(_NAMES)
        self._loading = threading.RLock()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        return ModuleSpec(fullname, self) if fullname in self._left else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Deferred(spec.name, self)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing yet."""

    def load(self, name: str) -> ModuleType:
        """Give the module itself; others that ask for it meanwhile wait."""
        with self._loading:
            if name in self._left:
                self._left.remove(name)
                del sys.modules[name]
            return import_module(name)


def defer() -> None:
    """Have imports of these modules load them only when they are used; those that are loaded already stay."""
    sys.meta_path.insert(0, _Finder())
