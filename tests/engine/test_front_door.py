"""What may be imported from the engine, and what that must not load."""

import subprocess
import sys

import pytest

import engine
from engine.passes import PASSES, list_passes


@pytest.mark.parametrize(
    "statement", ["import engine", "from engine import Spec, Report, Inspection, check_fit, list_passes"]
)
def test_front_door_loads_no_runtime_and_no_onnx(statement):
    program = f"""
import sys
{statement}
heavy = {{"onnxruntime", "torch", "onnx", "onnx_ir", "onnxscript", "onnxslim", "numpy", "scipy"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_pipeline_loads_what_is_slow_only_when_it_is_needed():
    heavy = {"onnxruntime", "torch", "scipy", "onnxscript", "onnxslim"}
    program = f"import sys\nfrom engine import run\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in engine.__all__:
        assert getattr(engine, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = engine.nothing


def test_passes_describe_themselves():
    described = {entry["type"]: entry for entry in list_passes()}
    assert {"simplify", "quantize_static"} <= set(described)
    assert len(described) == len(PASSES)
    static = described["quantize_static"]
    assert static["needs_data"] is True
    assert static["defaults"]["per_channel"] is True
    assert static["search_space"]["weights"] == {"choices": ("auto", "int8", "int7", "uint8")}
    assert static["schema"]["properties"]["exclude"]["maxItems"] == 4096
    for entry in described.values():
        assert entry["summary"].endswith(".")
        for name, field in entry["schema"]["properties"].items():
            assert name == "type" or field.get("description"), f"{entry['type']}.{name} has no description"
