"""No module imports itself by any way round: counted over all imports of the repository, wherever in a file they stand."""

import ast
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Where each first-party root package lies.
FOLDERS = {
    **dict.fromkeys(("settings", "standalone", "sandbox", "models", "services", "api", "worker", "engine"), ROOT),
    "onnxpress": ROOT / "client",
}

Graph = Mapping[str, AbstractSet[str]]


def modules_of(roots: Mapping[str, Path]) -> dict[str, Path]:
    """Every module below the root packages, by its dotted name; a package's name stands for its `__init__.py`."""
    found = {}
    for root, folder in roots.items():
        for path in (folder / root).rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def import_graph(modules: Mapping[str, Path]) -> Graph:
    """Which module names which other one in an import: of a function, of `if TYPE_CHECKING` and by `import_module` too.

    That Python runs the packages round a module before it is left out: it would make a circle of every `__init__.py`
    that imports anything.
    """
    return {name: set(_imported(name, path, modules)) - {name} for name, path in modules.items()}


def _imported(name: str, path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield from _nearest(alias.name, modules)
            case ast.ImportFrom():
                base = _absolute(node.module or "", node.level, package)
                for alias in node.names:
                    yield from _nearest(f"{base}.{alias.name}", modules)
            case ast.Call(func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module")):
                yield from _called_with(node, tree, package, modules)


def _absolute(module: str, level: int, package: str) -> str:
    if not level:
        return module
    above = package.split(".")[: len(package.split(".")) - (level - 1)]
    return ".".join([*above, *([module] if module else [])])


def _nearest(name: str, modules: Mapping[str, Path]) -> Iterator[str]:
    """The module of that name, or the one that holds it."""
    while name:
        if name in modules:
            yield name
            return
        name = name.rpartition(".")[0]


def _called_with(call: ast.Call, tree: ast.AST, package: str, modules: Mapping[str, Path]) -> Iterator[str]:
    argument = call.args[0] if call.args else None
    if isinstance(argument, ast.Constant):
        named = str(argument.value)
        level = len(named) - len(named.lstrip("."))
        yield from _nearest(_absolute(named.lstrip("."), level, package), modules)
        return
    # It is worked out when the program runs, from names that the file holds: any of them may be meant.
    yield from (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in modules
    )


def circles(graph: Graph) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan 1972, without recursion)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    waiting: set[str] = set()
    found = []
    for start in sorted(graph):
        if start in index:
            continue
        path = [(start, iter(sorted(graph[start])))]
        index[start] = lowest[start] = len(index)
        stack.append(start)
        waiting.add(start)
        while path:
            module, rest = path[-1]
            for other in rest:
                if other not in index:
                    index[other] = lowest[other] = len(index)
                    stack.append(other)
                    waiting.add(other)
                    path.append((other, iter(sorted(graph[other]))))
                    break
                if other in waiting:
                    lowest[module] = min(lowest[module], index[other])
            else:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[module])
                if lowest[module] == index[module]:
                    component = stack[stack.index(module) :]
                    del stack[-len(component) :]
                    waiting.difference_update(component)
                    if len(component) > 1:
                        found.append(sorted(component))
    return found


def circles_of(*roots: str) -> list[list[str]]:
    """The circles among the modules of some root packages."""
    graph = import_graph(modules_of({root: FOLDERS[root] for root in roots}))
    # A shallow look at the tree must not pass for an acyclic one.
    assert sum(map(len, graph.values())) > 0
    return circles(graph)


@pytest.fixture
def written(tmp_path):
    """Write modules of a package `some` and give their circles."""

    def write(**sources):
        (tmp_path / "some").mkdir(exist_ok=True)
        for name, source in {"__init__": "", **sources}.items():
            (tmp_path / "some" / f"{name}.py").write_text(source)
        return circles(import_graph(modules_of({"some": tmp_path})))

    return write


@pytest.mark.parametrize(
    "back",
    [
        "import some.a",
        "from some import a",
        "from some.a import name",
        "from . import a",
        "from .a import name",
        "def work():\n    from some.a import name",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from some.a import Name",
        "from importlib import import_module\ndef work():\n    import_module('some.a')",
        "import importlib\nimportlib.import_module('.a', __package__)",
        "from importlib import import_module\nHOME = {'name': 'some.a'}\ndef load(name):\n    import_module(HOME[name])",
    ],
)
def test_every_way_to_import_counts(written, back):
    assert written(a="import some.b", b="import some.c", c=back) == [["some.a", "some.b", "some.c"]]


def test_modules_that_import_one_way_are_no_circle(written):
    assert written(a="from some import b, c", b="from some.c import name", c="import os") == []


def test_each_circle_is_told(written):
    found = written(
        a="import some.b", b="import some.a", c="import some.d, some.a", d="import some.c", e="import some.c"
    )
    assert sorted(found) == [["some.a", "some.b"], ["some.c", "some.d"]]


def test_a_package_that_is_imported_for_what_it_holds_is_in_the_circle(written):
    assert written(__init__="from some.a import name", a="from some import name") == [["some", "some.a"]]


def test_no_room_has_a_circle():
    assert circles_of(*FOLDERS) == []
