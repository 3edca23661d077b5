"""Networks built by hand, run with and without the runtime's optimisation, and the context that a pass works in."""

import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper


class Feeds:
    """Samples from arrays whose first axis counts them."""

    def __init__(self, **arrays):
        self.arrays = arrays

    def __len__(self):
        return len(next(iter(self.arrays.values())))

    def batches(self, size):
        for start in range(0, len(self), size):
            yield {name: array[start : start + size] for name, array in self.arrays.items()}


def build(nodes, inputs, outputs, weights=None, *, opset=17, ir_version=9, value_info=()):
    """Give an ir.Model; inputs and outputs are {name: shape or (dtype, shape)}."""

    def info(name, form):
        kind, shape = form if isinstance(form, tuple) else (TensorProto.FLOAT, form)
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        nodes,
        "network",
        [info(name, form) for name, form in inputs.items()],
        [info(name, form) for name, form in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()],
        value_info=[info(name, form) for name, form in dict(value_info).items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def run(model, feed, *, optimise=True):
    """Check the network and run it on the CPU; give its outputs by name."""
    from engine.graph import io
    from engine.runtime import sessions
    from engine.target import Target

    written = io.to_bytes(model)
    onnx.checker.check_model(written)
    return sessions.session(written, Target(), optimise=optimise).run(feed)


def sqnr(reference, found):
    """Give the ratio of the reference's energy to the difference's, in dB."""
    reference, found = np.asarray(reference, np.float64), np.asarray(found, np.float64)
    return 10 * np.log10(np.square(reference).sum() / max(np.square(reference - found).sum(), 1e-30))


@pytest.fixture
def tools():
    return SimpleNamespace(Feeds=Feeds, build=build, run=run, sqnr=sqnr, context=context)


def context(model, samples=None, select=None):
    """Give what a pass may ask of the pipeline."""
    from engine.contract import Context
    from engine.target import Target

    return Context(
        original=model,
        target=Target(),
        calibration=samples,
        select=select or samples,
        evaluate=lambda _model: (),
        observe=lambda _model, _requests: {},
        progress=lambda _fraction, _message: None,
        race=lambda models: [1.0] * len(models),
        working=nullcontext,
        measuring=nullcontext,
        checkpoint=Path(tempfile.gettempdir()),
    )
