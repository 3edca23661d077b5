"""Operators with weights and structure beside onnxruntime's kernels, and their slopes beside finite differences."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from engine.train.twin.module import Twin
from engine.train.twin.table import OPERATORS
from tests.engine.train.operator_cases import CASES

# Those that round have slopes which finite differences cannot see; those of integers alone have none.
_WITHOUT_SLOPES = {
    "ConvInteger",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
}
# Rounded to whole numbers: a sum in another order may fall to the other side of a half.
_ONE_STEP = {"QLinearConv", "QLinearMatMul", "QuantizeLinear"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gives_what_onnxruntime_gives(case):
    model = case.model()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    twin = Twin.of(ir.from_proto(model))
    assert not twin.unsupported()
    found = twin.run(twin.feed(case.feeds))
    for name, expected in zip(found, session.run(None, case.feeds), strict=True):
        result = found[name].detach().numpy()
        assert result.shape == expected.shape
        steps = 1 if case.op_type in _ONE_STEP else 0
        np.testing.assert_allclose(result, expected, rtol=case.tolerance, atol=max(case.tolerance, steps))


@pytest.mark.parametrize(
    "case", [each for each in CASES if each.op_type not in _WITHOUT_SLOPES], ids=lambda case: case.name
)
def test_slopes_are_those_of_finite_differences(case):
    twin = Twin.of(ir.from_proto(case.model()), dtype=torch.float64)
    feeds = twin.feed(case.feeds)
    read = {f"x{place}" for place in OPERATORS[case.domain, case.op_type].host}
    names = [
        name for name, tensor in feeds.items() if tensor.is_floating_point() and tensor.numel() and name not in read
    ]

    def run(*values):
        results = twin.run({**feeds, **dict(zip(names, values, strict=True))})
        return tuple(result for result in results.values() if result.requires_grad)

    values = [feeds[name].clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(run, values, fast_mode=True, atol=1e-4, nondet_tol=1e-10)
