"""What no import linter sees: lean imports, words that are not ours, code that must not be there."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("settings", "standalone", "engine", "sandbox", "models", "services", "api", "worker", "migrations", "client")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


@cache
def _nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def _imported_by(module: str) -> set[str]:
    code = f"import sys; import {module}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("module", ["engine", "api.app", "worker.app"])
def test_web_and_queue_processes_cannot_open_a_session(module):
    loaded = _imported_by(module)
    assert not loaded & {"onnxruntime", "torch", "onnx", "onnx_ir", "scipy"}


def test_the_client_needs_no_server():
    loaded = _imported_by("onnxpress.cli")
    assert not loaded & {"engine", "api", "services", "models", "sqlalchemy", "fastapi", "numpy", "onnx"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle_and_no_vague_names(path):
    for node in _nodes(path):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {name.split(".")[0] for name in names} & {"pickle", "dill", "cloudpickle", "joblib", "marshal"}
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant), path
            assert node.value.value is False, path
        if isinstance(node, ast.ClassDef):
            assert not node.name.endswith(("Manager", "Helper", "Handler", "Util", "Utils")), node.name
    assert path.stem not in {"utils", "util", "common", "core", "helpers", "misc"}


@pytest.mark.parametrize(
    ("package", "module"),
    [("onnxruntime", "engine/runtime/library.py"), ("torch", "engine/train/framework.py")],
)
def test_only_one_module_imports_it(package, module):
    importers = set()
    for path in SOURCES:
        for node in _nodes(path):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            if any(name.split(".")[0] == package for name in names):
                importers.add(path)
    assert importers == {ROOT / module}


def test_asking_whether_training_is_possible_loads_no_torch():
    assert not _imported_by("engine.train.training_support") & {"torch", "onnx", "onnxruntime"}
