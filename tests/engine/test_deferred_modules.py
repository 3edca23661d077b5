"""A child does not load what few networks need, and has it where one does."""

import subprocess
import sys

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
