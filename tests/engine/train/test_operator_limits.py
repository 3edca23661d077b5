"""What operators refuse, by name and reason, and that no slope is NaN where a root or a softmax has none."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto

from engine.train.twin.module import Twin
from tests.engine.train.operator_cases import CONTRIB, Case


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


REFUSED = {
    "values of type FLOAT8E4M3FN are not whole numbers": Case(
        "float8", "QuantizeLinear", (ones(2), ones()), {"output_dtype": TensorProto.FLOAT8E4M3FN}, opset=23
    ),
    "sequences packed into one batch": Case(
        "packed",
        "RotaryEmbedding",
        (ones(1, 2, 4), ones(1, 2, dtype=np.int64), ones(4, 2), ones(4, 2)),
        {"is_packed_batching": 1},
        CONTRIB,
    ),
    "rotary embedding has no table": Case(
        "rotary", "Attention", (ones(1, 2, 4), ones(4, 12)), {"num_heads": 2, "do_rotary": 1}, CONTRIB
    ),
    "columns are regrouped": Case(
        "groups",
        "MatMulNBits",
        (ones(1, 16), ones(2, 1, 8, dtype=np.uint8), ones(2), None, ones(16, dtype=np.int32)),
        {"K": 16, "N": 2, "bits": 4, "block_size": 16},
        CONTRIB,
    ),
    "gathers or rounds along another axis": Case(
        "axis",
        "GatherBlockQuantized",
        (ones(2, 8, dtype=np.uint8), ones(1, dtype=np.int64), ones(2, 1)),
        {"gather_axis": 1, "quantize_axis": 0},
        CONTRIB,
    ),
    "softmax has a sink": Case(
        "sink",
        "GroupQueryAttention",
        (ones(1, 1, 4),),
        {"num_heads": 1, "kv_num_heads": 1, "smooth_softmax": 1},
        CONTRIB,
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_says_what_it_cannot_train_through(reason):
    case = REFUSED[reason]
    (found,) = Twin.of(ir.from_proto(case.model())).unsupported()
    assert reason in found.reason
    assert found.operator.split(".")[-1].startswith(case.op_type)


ZEROS = np.zeros((1, 2, 4, 4), np.float32)
FLAT = {
    "LpPool": Case("zeros", "LpPool", (ZEROS,), {"kernel_shape": [2, 2]}),
    "GlobalLpPool": Case("zeros", "GlobalLpPool", (ZEROS,), opset=2),
    "LpNormalization": Case("zeros", "LpNormalization", (ZEROS,)),
    "MeanVarianceNormalization": Case("zeros", "MeanVarianceNormalization", (ZEROS,), opset=13),
    "Attention": Case("hidden", "Attention", (ZEROS, ZEROS, ZEROS, np.zeros((4, 4), bool)), {"softcap": 2.0}, opset=23),
    "Attention without a cap": Case("hidden", "Attention", (ZEROS, ZEROS, ZEROS, np.zeros((4, 4), bool)), opset=23),
}


@pytest.mark.parametrize("name", FLAT)
def test_no_slope_is_nan(name):
    case = FLAT[name]
    twin = Twin.of(ir.from_proto(case.model()))
    feeds = twin.feed(case.feeds)
    x = feeds["x0"].requires_grad_()
    y = twin.run(feeds)["y0"]
    assert torch.isfinite(y).all()
    y.sum().backward()
    assert torch.isfinite(x.grad).all()
