"""Networks quantized by our own passes, for tests of training them."""

import numpy as np
import onnx
import onnx_ir as ir

from engine.graph import io
from engine.passes.quantize_static import QuantizeStatic
from engine.passes.quantize_weights import QuantizeWeights


def parsed(serialized):
    return ir.from_proto(onnx.load_model_from_string(serialized))


def static(serialized, context, samples, **parameters):
    """Quantize weights and activations to 8 bits; give the float network and the quantized one."""
    original, model = parsed(serialized), parsed(serialized)
    step = QuantizeStatic(**{"improve": False, "measure_layers": False, **parameters})
    given = context(model, samples)
    step.prepare(model)
    assert step.check(model) is None
    step.apply(model, given.observe(model, step.observes(model)), given)
    return original, written(model)


def few_bits(serialized, context, samples, **parameters):
    """Store weights in 4 bits."""
    original, model = parsed(serialized), parsed(serialized)
    step = QuantizeWeights(**{"method": "rtn", "accuracy": "float32", "group": 16, **parameters})
    step.prepare(model)
    assert step.check(model) is None
    step.apply(model, {}, context(model, samples))
    return original, written(model)


def written(model):
    """Give the network as the next step of a job reads it."""
    io.strip(model)
    serialized = io.to_bytes(model)
    onnx.checker.check_model(serialized)
    return parsed(serialized)


def perceptron(network, *, opset=21, inputs=48, hidden=64):
    """MatMul and Gemm stored both ways, large enough for 4 bits."""
    net = network()
    x = net.relu(net.op("MatMul", "image", net.normal("first.w", inputs, hidden, scale=inputs**-0.5), name="first"))
    weight = net.normal("second.w", hidden, hidden, scale=hidden**-0.5)
    x = net.op("Tanh", net.op("Gemm", x, weight, net.normal("second.b", hidden), name="second", transB=1))
    head = net.op("Gemm", x, net.normal("head.w", hidden, 20, scale=hidden**-0.5), name="head")
    return net.build(head, ("n", inputs), ("n", 20), opset=opset)


def rows(count=64, inputs=48, seed=3):
    return np.random.default_rng(seed).standard_normal((count, inputs)).astype(np.float32)
