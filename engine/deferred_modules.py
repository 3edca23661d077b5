"""Modules that are loaded when something of them is used: SymPy, which onnx_ir has for arithmetic with names of axes.

Few networks need it, and it is half of what a child loads at its start.
"""

import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
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
        # A package's folder is asked for by whoever imports a module below it: the finder then loads the package first.
        if name == "__path__" and sys.modules.get(self.__name__) is self:
            return []
        # What else is asked of every module says nothing, but for the version, once it is imported.
        if name.startswith("__") and not (name == "__version__" and sys.modules.get(self.__name__) is self):
            raise AttributeError(name)
        return getattr(self._finder.load(self.__name__), name)


class _Finder(MetaPathFinder, Loader):
    """Answers the first `import` of each name with its stand-in."""

    def __init__(self) -> None:
        self._left = set(_NAMES)
        self._loading = threading.RLock()
        self._own: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname in self._left:
            return ModuleSpec(fullname, self)
        package = fullname.partition(".")[0]
        if package not in self._left:
            return None
        self.load(package)
        loaded = sys.modules.get(fullname)
        if loaded is None:
            return find_spec(fullname)
        # The package has loaded it. Were it loaded again, it would be another module than the package's own, and the import
        # system goes by what the module itself says.
        self._own[fullname] = loaded.__spec__
        loaded.__spec__ = ModuleSpec(fullname, self, is_package=hasattr(loaded, "__path__"))
        return loaded.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name] if spec.name in self._own else _Deferred(spec.name, self)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing yet, or no more: what is loaded keeps what it says of itself."""
        name = module.__name__
        if name in self._own:
            module.__spec__ = self._own.pop(name)

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
