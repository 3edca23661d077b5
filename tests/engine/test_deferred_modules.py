"""A child does not load what few networks need, and has it where one does."""

import subprocess
import sys

import pytest

_LOADED = "'sympy.core' in sys.modules"


def run(program):
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_all_that_a_job_imports_does_not_load_it():
    program = f"import sys, engine; engine.run; import engine.job.compress, onnx_ir; print({_LOADED})"
    assert run(program) == ["False"]


def test_arithmetic_with_names_of_axes_loads_it():
    program = f"""
import sys, threading, engine, onnx_ir
found = []
def add():
    found.append(str((onnx_ir.SymbolicDim("N") + 1)))
both = [threading.Thread(target=add) for _ in range(2)]
[one.start() for one in both], [one.join() for one in both]
from sympy.core import Symbol
import sympy
assert isinstance(Symbol("N"), sympy.Expr)
print(*found, {_LOADED}, sep="\\n")
"""
    told = run(program)
    assert " ".join(told[:-1]) == "N + 1 N + 1"
    assert told[-1] == "True"


def test_modules_below_it_are_its_own_whoever_asks_first():
    """As PyTorch does: the package by name, then what lies below it."""
    program = """
import engine
import sympy
from sympy.core.expr import Expr
import sympy.core, sympy.core.symbol, sympy.printing.precedence
import sys
assert sympy.core is sys.modules["sympy"].core is sys.modules["sympy.core"], "two packages"
assert issubclass(sympy.core.symbol.Symbol, Expr) and sympy.Symbol is sympy.core.symbol.Symbol
assert sympy.core.expr.__spec__.origin.endswith("expr.py")
print("one")
"""
    assert run(program) == ["one"]


def test_training_has_it_where_pytorch_wants_it():
    program = """
import engine, torch
x = torch.ones(2, requires_grad=True)
gradient, = torch.autograd.grad((x * 2), x, torch.ones(2))
from torch.fx.experimental import symbolic_shapes
print(gradient.tolist()[0])
"""
    pytest.importorskip("torch")
    assert run(program) == ["2.0"]
