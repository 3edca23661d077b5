"""Integer types: the proof that nothing saturates, held against ONNX Runtime's own kernels."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.errors import SpecInvalidError
from engine.quantize import integer_types
from engine.runtime import sessions
from engine.runtime.processor import cpu_profile
from engine.target import Target

AVX2 = "processor : 0\nmodel name : test\nflags : sse4_1 avx f16c fma avx2\n"
VNNI = "processor : 0\nmodel name : test\nflags : sse4_1 avx f16c fma avx2 avx_vnni\n"
ARM = "processor : 0\nFeatures : asimd asimddp i8mm\n"
STEP = 2000.0


def _limit_weights(random, channels, contracted):
    """Weights at the edge of the 16-bit accumulator: (127, 1), (-127, -1) or (127, -127) in each pair of neighbours."""
    found = np.zeros((channels, contracted), np.int64)
    for at in range(0, contracted, 2):
        sign = random.integers(0, 2, channels) * 2 - 1
        found[:, at] = 127 * sign
        if at + 1 < contracted:
            found[:, at + 1] = np.where(random.integers(0, 2, channels), -127 * sign, sign)
    return found.astype(np.int8)


def _conv(weight, size=9):
    channels = weight.shape[0]
    arrays = {
        "s": np.float32(1), "z": np.uint8(0), "w": weight, "ws": np.ones(channels, np.float32),
        "os": np.float32(STEP), "oz": np.uint8(128),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], axis=0),
        helper.make_node("Conv", ["d", "wd"], ["c"], pads=[weight.shape[2] // 2] * 4),
        helper.make_node("QuantizeLinear", ["c", "os", "oz"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "os", "oz"], ["y"]),
    ]
    return _model(nodes, arrays, [1, weight.shape[1], size, size])


def _matmul(weight):
    arrays = {
        "s": np.float32(1), "z": np.uint8(0), "w": weight, "ws": np.ones(weight.shape[1], np.float32),
        "wz": np.zeros(weight.shape[1], np.int8), "os": np.float32(STEP), "oz": np.uint8(128),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        helper.make_node("MatMul", ["d", "wd"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "os", "oz"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "os", "oz"], ["y"]),
    ]
    return _model(nodes, arrays, [7, weight.shape[0]])


def _model(nodes, arrays, shape):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, ir_version=8, opset_imports=opsets).SerializeToString()


def _steps_apart(model, x):
    """Rounding steps between the integer kernel and the float arithmetic that the network says."""
    fused = sessions.session(model, Target()).run({"x": x})["y"]
    exact = sessions.session(model, Target(), optimise=False).run({"x": x})["y"]
    return np.abs(fused - exact).max() / STEP


def _loud(random, shape):
    return np.where(random.random(shape) < 0.7, 255, random.integers(0, 256, shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("cin", "kernel", "cout"), [(32, 3, 32), (1, 3, 32), (3, 3, 16), (64, 1, 80), (5, 3, 7), (3, 7, 64)]
)
def test_conv_weights_at_the_limit_do_not_saturate_in_our_order(cin, kernel, cout):
    random = np.random.default_rng(0)
    rows = _limit_weights(random, cout, cin * kernel * kernel)
    weight = np.ascontiguousarray(np.moveaxis(rows.reshape(cout, kernel, kernel, cin), -1, 1))
    assert _steps_apart(_conv(weight), _loud(random, (1, cin, 9, 9))) <= 1


@pytest.mark.parametrize(("contracted", "columns"), [(64, 10), (33, 16), (288, 32)])
def test_matmul_weights_at_the_limit_do_not_saturate_in_our_order(contracted, columns):
    random = np.random.default_rng(0)
    weight = np.ascontiguousarray(_limit_weights(random, columns, contracted).T)
    assert _steps_apart(_matmul(weight), _loud(random, (7, contracted))) <= 1


@pytest.mark.skipif(not cpu_profile().saturates_u8s8, reason="this processor's kernels do not saturate")
def test_the_same_weights_in_another_order_saturate():
    random = np.random.default_rng(0)
    rows = _limit_weights(random, 32, 32 * 9)
    assert _steps_apart(_conv(np.ascontiguousarray(rows.reshape(32, 32, 3, 3))), _loud(random, (1, 32, 9, 9))) > 10


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("contracted", [2, 7, 288])
def test_pairs_never_exceed_the_limit_and_scales_are_as_fine_as_that_allows(per_channel, contracted):
    random = np.random.default_rng(contracted)
    weight = random.standard_normal((24, contracted)).astype(np.float32)
    found = integer_types.quantize_weight(weight, "pairs", per_channel=per_channel)
    assert found.worst_pair <= integer_types.PAIR_LIMIT
    assert found.accumulator_load <= 1
    halved = integer_types.quantize_weight(weight, "int7", per_channel=per_channel)
    plain = integer_types.quantize_weight(weight, "int8", per_channel=per_channel)
    assert (found.scale <= halved.scale * 1.001).all()
    assert (found.scale >= plain.scale).all()
    if per_channel and contracted > 2:
        assert integer_types.worst_pairs(found.values.astype(np.float32)).min() >= 126


def test_weights_are_faithful_to_half_a_step():
    weight = np.random.default_rng(3).standard_normal((8, 64)).astype(np.float32)
    for rule in ("int8", "pairs", "int7"):
        found = integer_types.quantize_weight(weight, rule, per_channel=True)
        assert (np.abs(found.values * found.scale[:, None] - weight) <= found.scale[:, None] * 0.5001).all()


def test_zero_and_tiny_channels_have_usable_scales():
    weight = np.zeros((3, 4), np.float32)
    weight[1] = 1.0
    weight[2] = 1e-42
    found = integer_types.quantize_weight(weight, "pairs", per_channel=True)
    assert np.isfinite(found.scale).all()
    assert (found.scale > 0).all()
    assert not found.values[0].any()


def test_a_bias_that_would_overflow_widens_the_scale():
    scale = integer_types.raise_for_bias(np.full(2, 1e-9, np.float32), np.array([0.1, 1e4], np.float32), 1e-6)
    assert scale[0] >= 1e-9
    assert abs(1e4 / (scale[1] * 1e-6)) <= 2**30 * 1.001


@pytest.mark.parametrize(
    "bounds", [(0.0, 6.0), (-1.0, 1.0), (2.0, 5.0), (-7.0, -1.0), (0.0, 0.0), (-1e-30, 1e-30), (-3.0, 1e4)]
)
@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_zero_is_exact_and_the_range_is_covered(bounds, kind):
    found = integer_types.affine(*bounds, kind)
    assert found.low <= found.zero_point <= found.high
    assert found.scale > 0
    assert found.floor <= min(bounds[0], 0) + found.scale
    assert found.ceiling >= max(bounds[1], 0) - found.scale
    if bounds[0] >= 0:
        assert found.zero_point == found.low


def test_types_follow_the_processor():
    avx2, vnni, arm = (integer_types.choose(cpu_profile(text)) for text in (AVX2, VNNI, ARM))
    assert (avx2.activation, avx2.rule) == ("uint8", "pairs")
    assert (vnni.activation, vnni.rule) == ("uint8", "int8")
    assert (arm.activation, arm.rule) == ("int8", "int8")
    assert integer_types.choose(cpu_profile(AVX2), weights="uint8").rule == "uint8"
    with pytest.raises(SpecInvalidError, match="no kernels"):
        integer_types.choose(cpu_profile(AVX2), activations="int8", weights="uint8")
