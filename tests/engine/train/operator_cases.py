"""Networks of one node that ONNX's own node tests have none of: of onnxruntime's operators, and of older or rarer forms of the standard's."""

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx import helper

CONTRIB = "com.microsoft"


@dataclass(frozen=True)
class Case:
    """One node with its inputs, None where one is left out; `outputs` has one letter for each output, "-" where it is left out."""

    name: str
    op_type: str
    inputs: tuple
    attributes: dict = field(default_factory=dict)
    domain: str = ""
    opset: int = 21
    outputs: str = "y"
    tolerance: float = 1e-5

    @property
    def feeds(self):
        return {f"x{place}": array for place, array in enumerate(self.inputs) if array is not None}

    def model(self):
        names = [f"x{place}" if array is not None else "" for place, array in enumerate(self.inputs)]
        outputs = ["" if letter == "-" else f"y{place}" for place, letter in enumerate(self.outputs)]
        node = helper.make_node(self.op_type, names, outputs, "node", domain=self.domain, **self.attributes)
        graph = helper.make_graph(
            [node],
            "network",
            [
                helper.make_tensor_value_info(name, ir.DataType.from_numpy(array.dtype), array.shape)
                for name, array in self.feeds.items()
            ],
            [
                helper.make_tensor_value_info(name, _output_type(letter), None)
                for name, letter in zip(outputs, self.outputs, strict=True)
                if name
            ],
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _output_type(letter):
    """y: float, i: int32, l: int64, u: uint8, b: int8."""
    kinds = {"y": "FLOAT", "i": "INT32", "l": "INT64", "u": "UINT8", "b": "INT8"}
    return ir.DataType[kinds[letter]]


def _draw(seed):
    random = np.random.default_rng(seed)
    return lambda *shape: random.standard_normal(shape).astype(np.float32)


def _whole(seed, low, high, dtype):
    random = np.random.default_rng(seed)
    return lambda *shape: random.integers(low, high, shape).astype(dtype)


def _ints(*values, dtype=np.int64):
    return np.array(values, dtype)


def _angles(positions, half):
    angle = np.arange(positions)[:, None] / 10.0 ** (np.arange(half) / half)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _contrib(name, op_type, inputs, outputs="y", **attributes):
    tolerance = attributes.pop("tolerance", 1e-5)
    return Case(f"{op_type}_{name}", op_type, inputs, attributes, CONTRIB, outputs=outputs, tolerance=tolerance)


def _standard(name, op_type, inputs, opset=21, outputs="y", **attributes):
    tolerance = attributes.pop("tolerance", 1e-5)
    return Case(f"{op_type}_{name}", op_type, inputs, attributes, opset=opset, outputs=outputs, tolerance=tolerance)


def products():
    draw = _draw(1)
    yield _contrib("alpha", "FusedMatMul", (draw(2, 3, 4), draw(2, 4, 5)), alpha=0.5)
    yield _contrib("turned", "FusedMatMul", (draw(2, 4, 3), draw(2, 5, 4)), transA=1, transB=1)
    yield _contrib("batches", "FusedMatMul", (draw(3, 2, 4), draw(4, 2, 5)), transBatchA=1, transBatchB=1)
    yield _contrib("batches_turned", "FusedMatMul", (draw(4, 2, 3), draw(2, 4, 5)), transBatchA=1, transA=1)
    a, b, c = draw(3, 4), draw(5, 4), draw(5)
    yield _contrib("relu", "FusedGemm", (a, b, c), transB=1, activation="Relu")
    yield _contrib("leaky", "FusedGemm", (a, b, c), transB=1, activation="LeakyRelu", activation_alpha=0.2, alpha=0.5)


def convolutions():
    draw = _draw(2)
    x, weight, bias = draw(2, 4, 6, 5), draw(6, 2, 3, 3), draw(6)
    yield _contrib("residual", "FusedConv", (x, weight, bias, draw(2, 6, 4, 3)), activation="Relu", group=2)
    yield _contrib(
        "hard_sigmoid", "FusedConv", (x, weight), activation="HardSigmoid", activation_params=[0.3, 0.4], group=2
    )
    yield _standard("dilated_1d", "Conv", (draw(1, 2, 9), draw(3, 2, 3), draw(3)), dilations=[2], pads=[1, 3])
    yield _standard("3d", "Conv", (draw(1, 2, 4, 5, 3), draw(2, 1, 3, 2, 2)), group=2, strides=[1, 2, 1])
    yield _standard("same_lower", "Conv", (x, weight), auto_pad="SAME_LOWER", strides=[2, 2], group=2)
    turned = draw(4, 3, 3, 3)
    for name, attributes in {
        "output_padding": {"strides": [2, 3], "output_padding": [1, 2], "pads": [1, 0, 1, 0]},
        "uneven": {"strides": [2, 2], "pads": [0, 1, 1, 0], "group": 2},
        "smaller": {"strides": [2, 2], "output_shape": [10, 9], "auto_pad": "SAME_UPPER"},
        "same_lower": {"strides": [3, 2], "auto_pad": "SAME_LOWER"},
        "dilated": {"strides": [2, 1], "dilations": [2, 3], "pads": [1, 2, 1, 2]},
    }.items():
        yield _standard(name, "ConvTranspose", (x, turned, draw(3 * attributes.get("group", 1))), **attributes)


def pools():
    draw = _draw(3)
    x = draw(2, 2, 7, 6)
    for mode in ("MaxPool", "AveragePool", "LpPool"):
        for name, attributes in {
            "ceil": {"kernel_shape": [3, 2], "strides": [2, 3], "ceil_mode": 1},
            "ceil_padded": {"kernel_shape": [3, 3], "strides": [3, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
            "uneven": {"kernel_shape": [2, 3], "pads": [0, 1, 1, 0]},
            "dilated": {"kernel_shape": [2, 3], "dilations": [3, 2], "pads": [1, 1, 1, 1]},
            "same": {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
        }.items():
            yield _standard(name, mode, (x,), opset=22, **attributes)
    counted = {"kernel_shape": [3, 3], "strides": [3, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1}
    yield _standard("counted", "AveragePool", (x,), opset=22, **counted)
    yield _standard("counted_ceil", "AveragePool", (x,), opset=22, ceil_mode=1, **counted)
    places = {"kernel_shape": [3, 2], "strides": [2, 2]}
    yield _standard("places", "MaxPool", (x,), opset=22, outputs="yl", pads=[1, 0, 0, 1], **places)
    yield _standard("places_by_column", "MaxPool", (x,), opset=22, outputs="yl", storage_order=1, **places)
    yield _standard("norm", "GlobalLpPool", (x,), opset=2, p=3)


def normalizations():
    draw = _draw(4)
    x, skip, scale, shift = draw(2, 3, 8), draw(2, 3, 8), draw(8), draw(8)
    yield _contrib("all", "SkipLayerNormalization", (x, skip, scale, shift, draw(8)), "y--y", epsilon=1e-5)
    yield _contrib("one_skip", "SkipLayerNormalization", (x, draw(1, 3, 8), scale, shift), epsilon=1e-5)
    yield _contrib("bias", "SkipSimplifiedLayerNormalization", (x, skip, scale, draw(8)), "y--y", epsilon=1e-5)
    yield _contrib("plain", "SkipSimplifiedLayerNormalization", (x, skip, scale))
    yield _standard("axis", "SimplifiedLayerNormalization", (x, scale), axis=-1, epsilon=1e-5)
    yield _standard("statistics", "LayerNormalization", (x, scale, shift), outputs="yyy", axis=-1)
    grouped = (draw(2, 6, 4), draw(3), draw(3))
    yield _standard("by_group", "GroupNormalization", grouped, opset=18, num_groups=3)
    yield _standard("three", "LRN", (draw(1, 7, 2, 2),), size=3, alpha=0.3, beta=0.6, bias=1.5)
    yield _standard("flat", "BatchNormalization", (draw(5, 3), draw(3), draw(3), draw(3), np.abs(draw(3)) + 0.5))
    yield _standard("short", "InstanceNormalization", (draw(2, 3, 2), draw(3), draw(3)))


def attentions():
    draw = _draw(5)
    x, weight, bias = draw(2, 4, 6), draw(6, 18), draw(18)
    shown = _ints([1, 1, 1, 0], [1, 1, 0, 0], dtype=np.int32)
    yield _contrib("plain", "Attention", (x, weight, bias), num_heads=2)
    yield _contrib("mask", "Attention", (x, weight, bias, shown), num_heads=2)
    yield _contrib("ends", "Attention", (x, weight, bias, _ints(3, 2, dtype=np.int32)), num_heads=2)
    yield _contrib("causal", "Attention", (x, weight, bias), num_heads=2, unidirectional=1, scale=0.3)
    yield _contrib("sizes", "Attention", (x, draw(6, 16), draw(16)), num_heads=2, qkv_hidden_sizes=[6, 6, 4])
    past = draw(2, 2, 2, 3, 3)
    yield _contrib("past", "Attention", (x, weight, bias, None, past), "yy", num_heads=2, unidirectional=1)
    yield _contrib("added", "Attention", (x, weight, bias, None, None, draw(2, 2, 4, 4)), num_heads=2)
    query, key, value = draw(2, 4, 6), draw(2, 5, 6), draw(2, 5, 8)
    yield _contrib("plain", "MultiHeadAttention", (query, key, value), num_heads=2)
    yield _contrib("bias", "MultiHeadAttention", (query, key, value, draw(20)), num_heads=2)
    padded = _ints([1, 1, 1, 0, 1], [1, 1, 0, 0, 0], dtype=np.int32)
    yield _contrib("mask", "MultiHeadAttention", (query, key, value, None, padded), num_heads=2)
    added = draw(1, 2, 4, 5)
    yield _contrib("added", "MultiHeadAttention", (query, key, value, None, None, added), num_heads=2, scale=0.7)
    cross = (query, draw(2, 2, 5, 3), draw(2, 2, 5, 3))
    yield _contrib("cross", "MultiHeadAttention", cross, num_heads=2)
    cached = (query, draw(2, 4, 6), draw(2, 4, 6), None, None, None, draw(2, 2, 3, 3), draw(2, 2, 3, 3))
    yield _contrib("past", "MultiHeadAttention", cached, "yyy", num_heads=2, unidirectional=1)
    yield from _grouped(draw)
    logits = (draw(1, 4, 3, 8), draw(1, 2, 5, 8), draw(1, 2, 5, 8))
    yield _standard("softcap_raw", "Attention", logits, opset=23, outputs="y--y", softcap=1.5)
    yield _standard("softcap", "Attention", logits, opset=23, softcap=1.5, is_causal=1)


def _grouped(draw):
    cosines, sines = _angles(16, 8)
    empty = np.zeros((2, 2, 0, 16), np.float32)
    query, key, value = draw(2, 5, 64), draw(2, 5, 32), draw(2, 5, 32)
    last, total = _ints(4, 4, dtype=np.int32), np.array(5, np.int32)
    heads = {"num_heads": 4, "kv_num_heads": 2}
    begin = (query, key, value, empty, empty, last, total)
    yield _contrib("plain", "GroupQueryAttention", begin, "yyy", **heads)
    yield _contrib("rotary", "GroupQueryAttention", (*begin, cosines, sines), "yyy", do_rotary=1, **heads)
    turned = {"do_rotary": 1, "rotary_interleaved": 1, "softcap": 2.0, "scale": 0.2}
    yield _contrib("interleaved", "GroupQueryAttention", (*begin, cosines, sines), "yyy", **turned, **heads)
    yield _contrib("window", "GroupQueryAttention", begin, "yyy", local_window_size=2, **heads)
    packed = (draw(2, 5, 128), None, None, empty, empty, last, total, cosines, sines)
    yield _contrib("packed", "GroupQueryAttention", packed, "yyy", do_rotary=1, **heads)
    step = (query[:, :1], key[:, :1], value[:, :1], draw(2, 2, 4, 16), draw(2, 2, 4, 16), last, total, cosines, sines)
    yield _contrib("past", "GroupQueryAttention", step, "yyy", do_rotary=1, **heads)


def rotations():
    draw = _draw(6)
    cosines, sines = _angles(9, 3)
    places = _ints([1, 3, 2, 7], [0, 1, 8, 5])
    yield _contrib("positions", "RotaryEmbedding", (draw(2, 4, 12), places, cosines, sines))
    yield _contrib("begin", "RotaryEmbedding", (draw(2, 2, 4, 6), _ints(3), cosines, sines), interleaved=1)
    part = {"num_heads": 2, "rotary_embedding_dim": 6}
    yield _contrib("part", "RotaryEmbedding", (draw(2, 4, 16), places, cosines, sines), **part)


def activations():
    draw = _draw(7)
    x, bias = draw(2, 3, 8), draw(8)
    for op_type in ("BiasGelu", "FastGelu"):
        yield _contrib("bias", op_type, (x, bias), tolerance=1e-4)
    for op_type in ("Gelu", "FastGelu", "QuickGelu"):
        yield _contrib("plain", op_type, (x,), tolerance=1e-4)
    words, kinds = _ints([1, 3, 0], [2, 2, 4], dtype=np.int32), _ints([0, 0, 1], [0, 1, 1], dtype=np.int32)
    tables = (draw(5, 8), draw(7, 8), draw(2, 8), draw(8), draw(8))
    shown = _ints([1, 1, 0], [1, 1, 1], dtype=np.int32)
    yield _contrib("mask", "EmbedLayerNormalization", (words, kinds, *tables, shown), "yiy")
    places = _ints([0, 2, 1], [4, 3, 6], dtype=np.int32)
    bare = (words, None, *tables[:2], None, *tables[3:], None, places)
    yield _contrib("positions", "EmbedLayerNormalization", bare, "yi")


def recurrent():
    draw = _draw(8)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}
    for op_type, count in gates.items():
        states = [draw(2, 2, 3), draw(2, 2, 3)] if op_type == "LSTM" else [draw(2, 2, 3)]
        rest = (draw(2, count * 3, 4), draw(2, count * 3, 3), draw(2, count * 6))
        outputs = "yyy" if op_type == "LSTM" else "yy"
        both = {"hidden_size": 3, "direction": "bidirectional"}
        x, lengths = draw(5, 2, 4), _ints(5, 3, dtype=np.int32)
        yield _standard("both_ways", op_type, (x, *rest, None, *states), outputs=outputs, **both)
        yield _standard("lengths", op_type, (x, *rest, lengths, *states), outputs=outputs, **both)
        back = [each[:1] for each in (*rest, *states)]
        one = (x, *back[:3], None, *back[3:])
        yield _standard("backward", op_type, one, outputs=outputs, hidden_size=3, direction="reverse")
        yield _standard("clip", op_type, one, outputs=outputs, hidden_size=3, clip=0.5)
    linear = {"hidden_size": 3, "linear_before_reset": 1}
    tensors = (draw(5, 2, 4), draw(1, 9, 4), draw(1, 9, 3), draw(1, 18))
    yield _standard("linear", "GRU", tensors, outputs="yy", **linear)
    yield _standard("linear_lengths", "GRU", (*tensors, lengths), outputs="yy", **linear)
    named = {"activations": ["HardSigmoid", "LeakyRelu"], "activation_alpha": [0.3, 0.1], "activation_beta": [0.4]}
    yield _standard("named", "GRU", tensors, outputs="yy", hidden_size=3, **named)
    peep = (draw(5, 2, 4), draw(1, 12, 4), draw(1, 12, 3), draw(1, 24), None, None, None, draw(1, 9))
    yield _standard("peepholes", "LSTM", peep, outputs="yyy", hidden_size=3)
    yield _standard("relu", "RNN", (draw(5, 2, 4), draw(1, 3, 4), draw(1, 3, 3)), activations=["Relu"], hidden_size=3)


def resizes():
    draw = _draw(9)
    x = draw(1, 2, 5, 6)
    larger, smaller = np.float32([1, 1, 2, 1.5]), np.float32([1, 1, 0.6, 0.5])
    empty = np.zeros(0, np.float32)
    for coordinates in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"):
        for mode in ("nearest", "linear", "cubic"):
            for name, scales in (("larger", larger), ("smaller", smaller)):
                attributes = {"mode": mode, "coordinate_transformation_mode": coordinates, "opset": 19}
                yield _standard(f"{mode}_{coordinates}_{name}", "Resize", (x, None, scales), **attributes)
    for rounding in ("round_prefer_ceil", "floor", "ceil"):
        yield _standard(rounding, "Resize", (x, None, smaller), opset=19, nearest_mode=rounding)
    sizes = _ints(1, 2, 3, 11)
    for mode in ("nearest", "linear", "cubic"):
        yield _standard(f"{mode}_sizes", "Resize", (x, None, None, sizes), opset=19, mode=mode)
    for mode in ("linear", "cubic"):
        antialias = {"mode": mode, "antialias": 1, "opset": 19, "tolerance": 1e-4}
        yield _standard(f"{mode}_antialias", "Resize", (x, None, smaller), **antialias)
        yield _standard(f"{mode}_antialias_outside", "Resize", (x, None, smaller), exclude_outside=1, **antialias)
    yield _standard("outside", "Resize", (x, None, smaller), opset=19, mode="cubic", exclude_outside=1)
    crop = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.0}
    region = np.float32([0, 0, 0.2, -0.3, 1, 1, 0.9, 0.8])
    yield _standard("crop", "Resize", (x, region, None, _ints(1, 2, 4, 4)), opset=19, **crop)
    yield _standard("line", "Resize", (draw(1, 2, 7), None, np.float32([1, 1, 2.5])), opset=19, mode="linear")
    yield _standard(
        "volume", "Resize", (draw(1, 1, 3, 4, 2), None, np.float32([1, 1, 2, 2, 2])), opset=13, mode="linear"
    )
    yield _standard("first_axes", "Resize", (draw(3, 4), None, np.float32([2, 0.5])), opset=13, mode="linear")
    for mode in ("nearest", "linear"):
        yield _standard(f"{mode}_10", "Resize", (x, np.float32([1, 1, 2, 0.5])), opset=10, mode=mode)
        yield _standard(f"{mode}_11", "Resize", (x, empty, larger), opset=11, mode=mode)
        yield _standard(f"{mode}_9", "Upsample", (x, np.float32([1, 1, 2, 3])), opset=9, mode=mode)


def samples():
    draw = _draw(10)
    x, grid = draw(2, 2, 4, 5), 0.8 * draw(2, 3, 3, 2)
    for mode in ("linear", "nearest", "cubic"):
        for beyond in ("zeros", "border", "reflection"):
            attributes = {"mode": mode, "padding_mode": beyond, "opset": 20, "tolerance": 1e-4}
            yield _standard(f"{mode}_{beyond}", "GridSample", (x, grid), **attributes)
    regions = np.float32([[0.3, 0.2, 3.4, 2.8], [1.2, 0.4, 4.9, 3.9], [-3, -2, 9, 9]])
    image, batch = draw(2, 2, 6, 7), _ints(0, 1, 0)
    size = {"output_height": 2, "output_width": 3}
    for name, attributes in {
        "adaptive": {"spatial_scale": 0.9},
        "two": {"sampling_ratio": 2, "coordinate_transformation_mode": "output_half_pixel"},
        "max": {"sampling_ratio": 2, "mode": "max"},
    }.items():
        yield _standard(name, "RoiAlign", (image, regions, batch), opset=16, **size, **attributes)
    kernel, moved = draw(4, 1, 2, 3), 0.7 * draw(2, 2 * 6 * 2, 2, 3)
    dilated = {"group": 2, "offset_group": 2, "strides": [2, 1], "dilations": [1, 2], "pads": [0, 1, 1, 1]}
    deformed = (x, kernel, moved, draw(4), draw(2, 2 * 6, 2, 3))
    yield _standard("groups", "DeformConv", deformed, opset=22, tolerance=1e-4, **dilated)
    for mode in ("constant", "reflect", "edge", "wrap"):
        yield _standard(f"{mode}", "Pad", (x, _ints(0, 1, 2, 1, 1, 0, 3, 2)), opset=19, mode=mode)
    cut = (x, _ints(-1, 2, 1, -2), np.array(3.5, np.float32), _ints(-2, 3))
    yield _standard("cut", "Pad", cut, opset=19)
    yield _standard("attributes", "Pad", (x,), opset=10, pads=[0, 0, 1, 0, 0, 0, 2, 1], value=1.5)


def quantizations():
    draw = _draw(11)
    x = draw(3, 4, 5)
    signed, unsigned = _whole(12, -128, 128, np.int8), _whole(13, 0, 256, np.uint8)
    scale, zeros = np.abs(draw(4)) * 0.02 + 0.01, unsigned(4)
    yield _standard("axis", "QuantizeLinear", (x, scale, zeros), outputs="u", axis=1)
    yield _standard("signed", "QuantizeLinear", (x, np.float32(0.02), np.int8(3)), outputs="b")
    yield _standard("default", "QuantizeLinear", (x, np.float32(0.02)), outputs="u")
    yield _standard("last_axis", "DequantizeLinear", (signed(3, 4), scale, signed(4)), axis=-1)
    blocks = (signed(3, 6), np.abs(draw(3, 2)), signed(3, 2))
    yield _standard("blocks", "DequantizeLinear", blocks, axis=1, block_size=3)
    yield _standard("range", "DynamicQuantizeLinear", (x,), outputs="uyu")
    yield _standard("zeros", "DynamicQuantizeLinear", (np.zeros((2, 2), np.float32),), outputs="uyu")
    a, b = unsigned(2, 3, 4), signed(4, 5)
    yield _standard("zero_points", "MatMulInteger", (a, b, np.uint8(120), signed(5)), outputs="i")
    image, kernel = unsigned(1, 2, 5, 5), unsigned(3, 2, 3, 3)
    yield _standard(
        "zero_points", "ConvInteger", (image, kernel, np.uint8(99), np.uint8(130)), outputs="i", pads=[1, 1, 1, 1]
    )
    steps, middle = np.float32(0.04), np.uint8(128)
    conv = (image, steps, middle, signed(3, 2, 3, 3), scale[:3], np.zeros(3, np.int8), np.float32(1.7), middle)
    yield _standard("channels", "QLinearConv", (*conv, _whole(14, -900, 900, np.int32)(3)), outputs="u")
    product = (a, steps, middle, b, scale[0], np.int8(0), np.float32(0.9), middle)
    yield _standard("plain", "QLinearMatMul", tuple(np.asarray(each) for each in product), outputs="u")
    columns = np.abs(draw(5)) * 0.02
    yield _contrib("bias", "MatMulIntegerToFloat", (a, b, steps, columns, middle, np.int8(4), draw(5)))
    yield _contrib("columns", "DynamicQuantizeMatMul", (x, signed(5, 6), np.abs(draw(6)) * 0.02, signed(6), draw(6)))
    yield from _low_bits(draw)


def _low_bits(draw):
    packed = _whole(15, 0, 256, np.uint8)
    for bits in (4, 8):
        size = {"K": 40, "N": 6, "bits": bits, "block_size": 16, "accuracy_level": 1}
        x, codes, scales = draw(3, 40), packed(6, 3, 2 * bits), np.abs(draw(6, 3)) * 0.05
        yield _contrib(f"{bits}", "MatMulNBits", (x, codes, scales), tolerance=1e-4, **size)
        zeros = packed(6, 2 if bits == 4 else 3)
        yield _contrib(f"{bits}_zeros", "MatMulNBits", (x, codes, scales, zeros), tolerance=1e-4, **size)
    floats = (draw(3, 40), packed(6, 3, 8), np.abs(draw(6, 3)) * 0.05, draw(6, 3) + 8)
    yield _contrib("float_zeros", "MatMulNBits", floats, tolerance=1e-4, K=40, N=6, bits=4, block_size=16)
    rows = {"gather_axis": 0, "quantize_axis": 1, "bits": 4, "block_size": 16}
    table, scales = packed(7, 16), np.abs(draw(7, 2))
    yield _contrib("bytes", "GatherBlockQuantized", (table, _ints([1, 6], [0, 3]), scales), **rows)
    yield _contrib("zeros", "GatherBlockQuantized", (table, _ints(2, 5), scales, packed(7, 1)), **rows)


def _arrays(case):
    """Zero-dimensional numbers of numpy are no arrays."""
    inputs = tuple(None if each is None else np.asarray(each) for each in case.inputs)
    return Case(**{**case.__dict__, "inputs": inputs})


FAMILIES = (
    products,
    convolutions,
    pools,
    normalizations,
    attentions,
    rotations,
    activations,
    recurrent,
    resizes,
    samples,
    quantizations,
)
CASES = [_arrays(case) for family in FAMILIES for case in family()]
