"""Small networks of the shapes that pruning meets, built in code with seeded random weights."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

CONTRIB = "com.microsoft"


@dataclass
class Net:
    """Writes a graph node by node; every method gives the name of its result."""

    seed: int = 0
    opset: int = 17
    nodes: list = field(default_factory=list)
    initializers: list = field(default_factory=list)
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)

    def __post_init__(self):
        self.random = np.random.default_rng(self.seed)
        self.count = 0

    def name(self, stem):
        self.count += 1
        return f"{stem}_{self.count}"

    def input(self, name, shape, dtype=TensorProto.FLOAT):
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name, shape=None, dtype=TensorProto.FLOAT):
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def const(self, array, stem="constant"):
        name = self.name(stem)
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def ints(self, *values):
        return self.const(np.array(values, np.int64), "ints")

    def weight(self, *shape, fan=None, stem="weight"):
        fan = fan or int(np.prod(shape[1:])) or 1
        return self.const((self.random.standard_normal(shape) / np.sqrt(fan)).astype(np.float32), stem)

    def vector(self, size, low=0.5, high=1.5, stem="vector"):
        return self.const(self.random.uniform(low, high, size).astype(np.float32), stem)

    def op(self, kind, *inputs, count=1, domain="", **attributes):
        outputs = [self.name(kind) for _ in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0] if count == 1 else outputs

    # layers

    def conv(self, x, cin, cout, k=3, stride=1, groups=1, bias=True, pad=None):
        pad = k // 2 if pad is None else pad
        inputs = [x, self.weight(cout, cin // groups, k, k)]
        if bias:
            inputs.append(self.vector(cout, -0.5, 0.5))
        return self.op("Conv", *inputs, kernel_shape=[k, k], pads=[pad] * 4, strides=[stride] * 2, group=groups)

    def bn(self, x, size):
        vectors = [self.vector(size), self.vector(size, -0.5, 0.5), self.vector(size, -0.5, 0.5), self.vector(size)]
        return self.op("BatchNormalization", x, *vectors)

    def cbr(self, x, cin, cout, k=3, stride=1, groups=1, act="Relu"):
        x = self.bn(self.conv(x, cin, cout, k, stride, groups, bias=False), cout)
        return self.op(act, x) if act else x

    def silu(self, x):
        return self.op("Mul", x, self.op("Sigmoid", x))

    def cbs(self, x, cin, cout, k=3, stride=1):
        return self.silu(self.conv(x, cin, cout, k, stride))

    def gemm(self, x, cin, cout):
        return self.op("Gemm", x, self.weight(cout, cin), self.vector(cout, -0.5, 0.5), transB=1)

    def linear(self, x, cin, cout, bias=True):
        x = self.op("MatMul", x, self.weight(cin, cout, fan=cin))
        return self.op("Add", x, self.vector(cout, -0.5, 0.5)) if bias else x

    def norm(self, x, size):
        return self.op("LayerNormalization", x, self.vector(size), self.vector(size, -0.5, 0.5), axis=-1, epsilon=1e-5)

    def gelu(self, x):
        half = self.op("Erf", self.op("Div", x, self.const(np.float32(2**0.5))))
        x = self.op("Mul", x, self.op("Add", half, self.const(np.float32(1))))
        return self.op("Mul", x, self.const(np.float32(0.5)))

    def head(self, x, cin, classes=10):
        x = self.op("GlobalAveragePool", x)
        return self.gemm(self.op("Flatten", x, axis=1), cin, classes)

    def proto(self):
        known = {info.name for info in self.outputs}
        graph = helper.make_graph(self.nodes, "zoo", self.inputs, self.outputs, self.initializers)
        imports = [helper.make_opsetid("", self.opset)]
        if any(node.domain == CONTRIB for node in self.nodes):
            imports.append(helper.make_opsetid(CONTRIB, 1))
        assert known
        return helper.make_model(graph, opset_imports=imports, ir_version=8 if self.opset < 19 else 10)

    def done(self, result, shape=None):
        self.op_output(result)
        self.output("output", shape)
        return self.proto()

    def op_output(self, result, name="output"):
        self.nodes.append(helper.make_node("Identity", [result], [name], name=f"to_{name}"))


def residual():
    net = Net()
    x = net.cbr(net.input("x", ["N", 3, 32, 32]), 3, 16)
    for cin, cout, stride in ((16, 16, 1), (16, 32, 2), (32, 32, 1)):
        y = net.cbr(net.cbr(x, cin, cout, stride=stride), cout, cout, act=None)
        skip = x if cin == cout else net.cbr(x, cin, cout, 1, stride, act=None)
        x = net.op("Relu", net.op("Add", y, skip))
    return net.done(net.head(x, 32), ["N", 10])


def _squeeze_excite(net, x, size, inner):
    s = net.op("GlobalAveragePool", x)
    s = net.op("Relu", net.conv(s, size, inner, 1))
    return net.op("Mul", x, net.op("HardSigmoid", net.conv(s, inner, size, 1)))


def se_depthwise_flatten():
    net = Net()
    x = net.cbr(net.input("x", ["N", 3, 32, 32]), 3, 16, stride=2, act="HardSwish")
    for cin, wide, cout, stride in ((16, 48, 24, 2), (24, 72, 24, 1), (24, 96, 32, 2)):
        y = net.cbr(net.cbr(x, cin, wide, 1, act="HardSwish"), wide, wide, 5, stride, groups=wide, act="HardSwish")
        y = net.cbr(_squeeze_excite(net, y, wide, wide // 4), wide, cout, 1, act=None)
        x = net.op("Add", x, y) if cin == cout and stride == 1 else y
    # Features are flattened with their positions: a channel is 16 columns of the next weight.
    x = net.op("Relu", net.gemm(net.op("Flatten", x), 32 * 16, 64))
    return net.done(net.gemm(x, 64, 10), ["N", 10])


def concat_split_pixel_shuffle():
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", ["N", 3, "H", "W"]), 3, 32))
    a, b = net.op("Split", x, net.ints(20, 12), axis=1, count=2)
    a, b = net.op("Relu", net.conv(a, 20, 24)), net.op("Sigmoid", net.conv(b, 12, 24))
    x = net.op("Concat", a, b, x, axis=1)
    x = net.op("LeakyRelu", net.conv(x, 80, 64))
    x = net.op("DepthToSpace", x, blocksize=2, mode="CRD")
    x = net.op("Relu", net.conv(x, 16, 32))
    x = net.op("DepthToSpace", net.conv(x, 32, 32), blocksize=2, mode="DCR")
    return net.done(net.conv(x, 8, 3), ["N", 3, "H4", "W4"])


def pixel_shuffle_by_reshape():
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", ["N", 3, 16, 16]), 3, 32))
    x = net.op("Relu", net.conv(x, 32, 64))
    x = net.op("Reshape", x, net.ints(-1, 16, 2, 2, 16, 16))
    x = net.op("Reshape", net.op("Transpose", x, perm=[0, 1, 4, 2, 5, 3]), net.ints(-1, 16, 32, 32))
    return net.done(net.conv(net.op("Relu", net.conv(x, 16, 16)), 16, 3), ["N", 3, 32, 32])


def _shuffle(net, x, size, groups, side):
    x = net.op("Reshape", x, net.ints(-1, groups, size // groups, side, side))
    return net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3, 4]), net.ints(-1, size, side, side))


def channel_shuffle():
    net = Net()
    x = net.cbr(net.input("x", ["N", 3, 16, 16]), 3, 48)
    for _ in range(2):
        y = net.cbr(x, 48, 48, 1, groups=3)
        y = net.cbr(_shuffle(net, y, 48, 3, 16), 48, 48, 3, groups=48, act=None)
        x = net.op("Relu", net.op("Add", x, net.cbr(y, 48, 48, 1, groups=3, act=None)))
    return net.done(net.head(x, 48), ["N", 10])


def densenet():
    net = Net()
    size = 24
    x = net.conv(net.input("x", ["N", 3, 32, 32]), 3, size)
    for block in range(2):
        for _ in range(3):
            y = net.op("Relu", net.bn(x, size))
            y = net.op("Relu", net.bn(net.conv(y, size, 48, 1), 48))
            x = net.op("Concat", x, net.conv(y, 48, 12), axis=1)
            size += 12
        if block == 0:
            x = net.conv(net.op("Relu", net.bn(x, size)), size, size // 2, 1)
            x, size = net.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]), size // 2
    return net.done(net.head(net.op("Relu", net.bn(x, size)), size), ["N", 10])


def shufflenet():
    net = Net()
    x = net.cbr(net.input("x", ["N", 3, 32, 32]), 3, 24, stride=2)
    left = net.cbr(net.cbr(x, 24, 24, 3, 2, groups=24, act=None), 24, 32, 1)
    right = net.cbr(net.cbr(net.cbr(x, 24, 32, 1), 32, 32, 3, 2, groups=32, act=None), 32, 32, 1)
    x = _shuffle(net, net.op("Concat", left, right, axis=1), 64, 2, 8)
    for _ in range(2):
        left, right = net.op("Split", x, net.ints(32, 32), axis=1, count=2)
        right = net.cbr(net.cbr(right, 32, 32, 1), 32, 32, groups=32, act=None)
        right = net.cbr(right, 32, 32, 1)
        x = _shuffle(net, net.op("Concat", left, right, axis=1), 64, 2, 8)
    return net.done(net.head(net.cbr(x, 64, 96, 1), 96), ["N", 10])


def inception():
    net = Net()
    x = net.cbr(net.input("x", ["N", 3, "H", "W"]), 3, 32, stride=2)
    size = 32
    for _ in range(2):
        a = net.cbr(x, size, 16, 1)
        b = net.cbr(net.cbr(x, size, 24, 1), 24, 32)
        c = net.cbr(net.cbr(net.cbr(x, size, 8, 1), 8, 16, 5), 16, 16)
        d = net.op("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)
        x, size = net.op("Concat", a, b, c, net.cbr(d, size, 16, 1), axis=1), 80
    return net.done(net.head(x, size), ["N", 10])


def unet():
    net = Net()
    skips = []
    x = net.input("x", ["N", 1, "H", "W"])
    size = 1
    for wide in (16, 32):
        x = net.cbr(net.cbr(x, size, wide), wide, wide)
        skips.append((x, wide))
        x, size = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), wide
    x, size = net.cbr(x, size, 64), 64
    for number, (skip, wide) in enumerate(reversed(skips)):
        if number:
            x = net.op("Resize", x, "", net.const(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
            x = net.conv(x, size, wide, 1)
        else:
            x = net.op("ConvTranspose", x, net.weight(size, wide, 2, 2, fan=size), net.vector(wide), strides=[2, 2])
        x, size = net.cbr(net.op("Concat", skip, x, axis=1), 2 * wide, wide), wide
    return net.done(net.op("Sigmoid", net.conv(x, size, 2, 1)), ["N", 2, "H", "W"])


def _c2f(net, x, cin, cout, count, shortcut=True):
    half = cout // 2
    x = net.cbs(x, cin, cout, 1)
    parts = list(net.op("Split", x, net.ints(half, half), axis=1, count=2))
    for _ in range(count):
        y = net.cbs(net.cbs(parts[-1], half, half), half, half)
        parts.append(net.op("Add", parts[-1], y) if shortcut else y)
    return net.cbs(net.op("Concat", *parts, axis=1), half * (count + 2), cout, 1)


def yolo():
    net = Net()
    x = net.cbs(net.input("x", ["N", 3, 64, 64]), 3, 16, stride=2)
    small = _c2f(net, net.cbs(x, 16, 32, stride=2), 32, 32, 2)
    x = _c2f(net, net.cbs(small, 32, 64, stride=2), 64, 64, 1)
    y = net.cbs(x, 64, 32, 1)
    pools = [y]
    for _ in range(3):
        pools.append(net.op("MaxPool", pools[-1], kernel_shape=[5, 5], pads=[2] * 4))
    x = net.cbs(net.op("Concat", *pools, axis=1), 128, 64, 1)
    up = net.op(
        "Resize", x, "", "", net.op("Concat", net.op("Shape", x, end=1), net.ints(64, 16, 16), axis=0), mode="nearest"
    )
    x = _c2f(net, net.op("Concat", up, small, axis=1), 96, 32, 1, shortcut=False)
    box = net.conv(net.cbs(x, 32, 32), 32, 16, 1)
    score = net.conv(net.cbs(x, 32, 48), 48, 6, 1)
    both = net.op("Reshape", net.op("Concat", box, score, axis=1), net.ints(0, 22, -1))
    box, score = net.op("Split", both, net.ints(16, 6), axis=1, count=2)
    result = net.op("Concat", net.op("Mul", box, net.const(np.float32(8))), net.op("Sigmoid", score), axis=1)
    return net.done(result, ["N", 22, 256])


def _attend(net, q, k, v, heads, width, mask=None):
    """Batch x time x hidden to the same, by constants in the target shapes."""
    hidden = heads * width
    parts = [
        net.op("Transpose", net.op("Reshape", part, net.ints(0, -1, heads, width)), perm=[0, 2, 1, 3])
        for part in (q, k, v)
    ]
    scores = net.op("MatMul", parts[0], net.op("Transpose", parts[1], perm=[0, 1, 3, 2]))
    scores = net.op("Mul", scores, net.const(np.float32(width**-0.5)))
    if mask is not None:
        scores = net.op("Add", scores, mask)
    y = net.op("MatMul", net.op("Softmax", scores, axis=-1), parts[2])
    return net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, -1, hidden))


def _patches(net, hidden, side=4):
    """Image to tokens with a class token, as exporters write it with a dynamic batch."""
    x = net.conv(net.input("x", ["N", 3, 16, 16]), 3, hidden, side, stride=side, pad=0)
    shape = net.op("Shape", x)
    batch = net.op("Unsqueeze", net.op("Gather", shape, net.const(np.int64(0))), net.ints(0))
    x = net.op("Reshape", x, net.op("Concat", batch, net.ints(hidden, -1), axis=0))
    x = net.op("Transpose", x, perm=[0, 2, 1])
    token = net.op("Expand", net.weight(1, 1, hidden, fan=1), net.op("Concat", batch, net.ints(1, 1), axis=0))
    x = net.op("Concat", token, x, axis=1)
    return net.op("Add", x, net.weight(1, 17, hidden, fan=4))


def vit(fused=False):
    net = Net()
    hidden, heads, width = 48, 6, 8
    x = _patches(net, hidden)
    for _ in range(2):
        y = net.norm(x, hidden)
        if fused:
            qkv = net.linear(y, hidden, 3 * hidden)
            qkv = net.op("Reshape", qkv, net.ints(0, -1, 3, heads, width))
            qkv = net.op("Transpose", qkv, perm=[2, 0, 3, 1, 4])
            q, k, v = (net.op("Gather", qkv, net.const(np.int64(place)), axis=0) for place in range(3))
            scores = net.op(
                "MatMul",
                net.op("Mul", q, net.const(np.float32(width**-0.5))),
                net.op("Transpose", k, perm=[0, 1, 3, 2]),
            )
            y = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
            y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, -1, hidden))
        else:
            y = _attend(net, *(net.linear(y, hidden, hidden) for _ in range(3)), heads, width)
        x = net.op("Add", x, net.linear(y, hidden, hidden))
        y = net.linear(net.gelu(net.linear(net.norm(x, hidden), hidden, 96)), 96, hidden)
        x = net.op("Add", x, y)
    x = net.op("Gather", net.norm(x, hidden), net.const(np.int64(0)), axis=1)
    return net.done(net.gemm(x, hidden, 10), ["N", 10])


def vit_fused_qkv():
    return vit(fused=True)


def _decomposed_norm(net, x, size):
    """LayerNormalization as older exporters spell it."""
    centred = net.op("Sub", x, net.op("ReduceMean", x, axes=[-1]))
    square = net.op("ReduceMean", net.op("Pow", centred, net.const(np.float32(2))), axes=[-1])
    y = net.op("Div", centred, net.op("Sqrt", net.op("Add", square, net.const(np.float32(1e-5)))))
    return net.op("Add", net.op("Mul", y, net.vector(size)), net.vector(size, -0.5, 0.5))


def _dynamic_heads(net, x, heads, width):
    """Reshape to heads by sizes read at run time."""
    shape = net.op("Shape", x)
    ends = [net.op("Unsqueeze", net.op("Gather", shape, net.const(np.int64(place))), net.ints(0)) for place in (0, 1)]
    target = net.op("Concat", *ends, net.ints(heads), net.ints(width), axis=0)
    return net.op("Transpose", net.op("Reshape", x, target), perm=[0, 2, 1, 3])


def bert():
    net = Net()
    hidden, heads, width = 48, 6, 8
    ids = net.input("ids", ["N", "T"], TensorProto.INT64)
    attention = net.input("attention", ["N", "T"], TensorProto.INT64)
    mask = net.op("Cast", net.op("Unsqueeze", attention, net.ints(1, 2)), to=TensorProto.FLOAT)
    mask = net.op("Mul", net.op("Sub", net.const(np.float32(1)), mask), net.const(np.float32(-10000)))
    length = net.op("Unsqueeze", net.op("Gather", net.op("Shape", ids), net.const(np.int64(1))), net.ints(0))
    places = net.op("Slice", net.const(np.arange(64, dtype=np.int64)[None]), net.ints(0), length, net.ints(1))
    words = net.op("Gather", net.weight(100, hidden, fan=1), ids)
    x = net.op(
        "Add",
        net.op("Add", words, net.op("Gather", net.weight(64, hidden, fan=1), places)),
        net.weight(1, 1, hidden, fan=1),
    )
    x = _decomposed_norm(net, x, hidden)
    for _ in range(2):
        q, k, v = (_dynamic_heads(net, net.linear(x, hidden, hidden), heads, width) for _ in range(3))
        scores = net.op(
            "Div", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), net.const(np.float32(width**0.5))
        )
        y = net.op("MatMul", net.op("Softmax", net.op("Add", scores, mask), axis=-1), v)
        y = net.op("Transpose", y, perm=[0, 2, 1, 3])
        shape = net.op("Shape", y)
        ends = [
            net.op("Unsqueeze", net.op("Gather", shape, net.const(np.int64(place))), net.ints(0)) for place in (0, 1)
        ]
        y = net.op("Reshape", y, net.op("Concat", *ends, net.ints(hidden), axis=0))
        x = _decomposed_norm(net, net.op("Add", x, net.linear(y, hidden, hidden)), hidden)
        y = net.linear(net.gelu(net.linear(x, hidden, 144)), 144, hidden)
        x = _decomposed_norm(net, net.op("Add", x, y), hidden)
    x = net.op("Tanh", net.gemm(net.op("Gather", x, net.const(np.int64(0)), axis=1), hidden, hidden))
    return net.done(net.gemm(x, hidden, 4), ["N", 4])


def _rms(net, x, size):
    square = net.op("ReduceMean", net.op("Mul", x, x), axes=[-1])
    y = net.op("Mul", x, net.op("Reciprocal", net.op("Sqrt", net.op("Add", square, net.const(np.float32(1e-6))))))
    return net.op("Mul", net.vector(size), y)


def decoder():
    net = Net()
    hidden, heads, shared, width, wide = 48, 8, 4, 8, 160
    ids = net.input("ids", ["N", "T"], TensorProto.INT64)
    table = net.weight(90, hidden, fan=1)
    x = net.op("Gather", table, ids)
    length = net.op("Unsqueeze", net.op("Gather", net.op("Shape", ids), net.const(np.int64(1))), net.ints(0))
    angle = np.outer(np.arange(32), 1 / 100 ** (np.arange(width // 2) / (width // 2))).astype(np.float32)
    angle = np.concatenate([angle, angle], axis=1)
    cos, sin = (
        net.op("Slice", net.const(table), net.ints(0), length, net.ints(0)) for table in (np.cos(angle), np.sin(angle))
    )
    causal = np.triu(np.full((32, 32), -1e4, np.float32), 1)
    mask = net.op("Slice", net.const(causal), net.ints(0, 0), net.op("Concat", length, length, axis=0), net.ints(0, 1))

    def rotate(part):
        low = net.op("Slice", part, net.ints(0), net.ints(width // 2), net.ints(3))
        high = net.op("Slice", part, net.ints(width // 2), net.ints(2**62), net.ints(3))
        turned = net.op("Concat", net.op("Neg", high), low, axis=-1)
        return net.op("Add", net.op("Mul", part, cos), net.op("Mul", turned, sin))

    def repeat(part):
        shape = net.op("Shape", part)
        n, _, t, _ = (
            net.op("Unsqueeze", net.op("Gather", shape, net.const(np.int64(place))), net.ints(0)) for place in range(4)
        )
        part = net.op("Unsqueeze", part, net.ints(2))
        part = net.op(
            "Expand", part, net.op("Concat", n, net.ints(shared, heads // shared), t, net.ints(width), axis=0)
        )
        return net.op("Reshape", part, net.op("Concat", n, net.ints(heads), t, net.ints(width), axis=0))

    for _ in range(2):
        y = _rms(net, x, hidden)
        q = rotate(_dynamic_heads(net, net.linear(y, hidden, heads * width, bias=False), heads, width))
        k = repeat(rotate(_dynamic_heads(net, net.linear(y, hidden, shared * width, bias=False), shared, width)))
        v = repeat(_dynamic_heads(net, net.linear(y, hidden, shared * width, bias=False), shared, width))
        scores = net.op(
            "Mul", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), net.const(np.float32(width**-0.5))
        )
        y = net.op("MatMul", net.op("Softmax", net.op("Add", scores, mask), axis=-1), v)
        y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, -1, heads * width))
        x = net.op("Add", x, net.linear(y, heads * width, hidden, bias=False))
        y = _rms(net, x, hidden)
        y = net.op("Mul", net.silu(net.linear(y, hidden, wide, bias=False)), net.linear(y, hidden, wide, bias=False))
        x = net.op("Add", x, net.linear(y, wide, hidden, bias=False))
    logits = net.op("MatMul", _rms(net, x, hidden), net.op("Transpose", table, perm=[1, 0]))
    return net.done(logits, ["N", "T", 90])


def convnext():
    net = Net()
    hidden = 32
    x = net.conv(net.input("x", ["N", 3, "H", "W"]), 3, hidden, 4, stride=4, pad=0)
    for _ in range(2):
        y = net.op("Transpose", net.conv(x, hidden, hidden, 7, groups=hidden), perm=[0, 2, 3, 1])
        y = net.linear(net.gelu(net.linear(net.norm(y, hidden), hidden, 4 * hidden)), 4 * hidden, hidden)
        y = net.op("Transpose", net.op("Mul", y, net.vector(hidden)), perm=[0, 3, 1, 2])
        x = net.op("Add", x, y)
    x = net.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    return net.done(net.gemm(net.norm(x, hidden), hidden, 10), ["N", 10])


def _recurrent(net, kind, x, width, hidden, directions=2):
    gates = {"LSTM": 4, "GRU": 3}[kind]
    inputs = [
        net.weight(directions, gates * hidden, width, fan=width),
        net.weight(directions, gates * hidden, hidden, fan=hidden),
        net.const((net.random.standard_normal((directions, 2 * gates * hidden)) * 0.2).astype(np.float32)),
    ]
    way = "bidirectional" if directions == 2 else "forward"
    return net.op(kind, x, *inputs, hidden_size=hidden, direction=way)


def lstm_ocr(kind="LSTM"):
    net = Net()
    x = net.cbr(net.input("x", ["N", 1, 16, "W"]), 1, 24, stride=2)
    x = net.cbr(x, 24, 48, stride=1)
    x = net.op("MaxPool", x, kernel_shape=[8, 1], strides=[8, 1])
    x = net.op("Transpose", net.op("Squeeze", x, net.ints(2)), perm=[2, 0, 1])
    width = 48
    for _ in range(2):
        y = _recurrent(net, kind, x, width, 32)
        x, width = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, -1)), 64
    x = net.linear(net.op("Transpose", x, perm=[1, 0, 2]), 64, 37)
    return net.done(net.op("Softmax", x, axis=2), ["N", "T", 37])


def gru_ocr():
    return lstm_ocr("GRU")


def fused_bert():
    """A BERT layer as the runtime's fusions write it."""
    net = Net()
    hidden, heads = 48, 6
    x = net.input("x", ["N", "T", 20])
    x = net.linear(x, 20, hidden)
    for number in range(2):
        if number:
            y = net.op(
                "Attention",
                x,
                net.weight(hidden, 3 * hidden, fan=hidden),
                net.vector(3 * hidden, -0.5, 0.5),
                domain=CONTRIB,
                num_heads=heads,
            )
        else:
            q, k, v = (net.linear(x, hidden, hidden) for _ in range(3))
            y = net.op("MultiHeadAttention", q, k, v, domain=CONTRIB, num_heads=heads)
        y = net.op("MatMul", y, net.weight(hidden, hidden))
        norm = [net.vector(hidden), net.vector(hidden, -0.5, 0.5), net.vector(hidden, -0.5, 0.5)]
        x = net.op("SkipLayerNormalization", y, x, *norm, domain=CONTRIB, epsilon=1e-5)
        y = net.op(
            "BiasGelu",
            net.op("MatMul", x, net.weight(hidden, 128, fan=hidden)),
            net.vector(128, -0.5, 0.5),
            domain=CONTRIB,
        )
        y = net.op("MatMul", y, net.weight(128, hidden, fan=128))
        norm = [net.vector(hidden), net.vector(hidden, -0.5, 0.5)]
        x = net.op("SkipLayerNormalization", y, x, *norm, domain=CONTRIB, epsilon=1e-5)
    return net.done(net.linear(x, hidden, 5), ["N", "T", 5])


def group_norm(decomposed=True):
    """A residual block of a diffusion network."""
    net = Net(opset=17 if decomposed else 21)
    x = net.conv(net.input("x", ["N", 4, "H", "W"]), 4, 32)

    def normalise(part, size, groups):
        if not decomposed:
            return net.op("GroupNormalization", part, net.vector(size), net.vector(size), num_groups=groups)
        shape = net.op("Shape", part)
        y = net.op("Reshape", part, net.ints(0, groups, -1))
        y = net.op(
            "InstanceNormalization", y, net.const(np.ones(groups, np.float32)), net.const(np.zeros(groups, np.float32))
        )
        y = net.op("Reshape", y, shape)
        scale = net.const(net.random.uniform(0.5, 1.5, (size, 1, 1)).astype(np.float32))
        return net.op(
            "Add", net.op("Mul", y, scale), net.const(net.random.uniform(-1, 1, (size, 1, 1)).astype(np.float32))
        )

    for _ in range(2):
        y = net.conv(net.silu(normalise(x, 32, 8)), 32, 64)
        y = net.conv(net.silu(normalise(y, 64, 8)), 64, 32)
        x = net.op("Add", x, y)
    return net.done(net.conv(net.silu(normalise(x, 32, 8)), 32, 4), ["N", 4, "H", "W"])


def group_norm_op():
    return group_norm(decomposed=False)


def mixer():
    """Token mixing: hidden units of the transposed product meet the channels of the stream."""
    net = Net()
    hidden, tokens = 32, 16
    x = net.conv(net.input("x", ["N", 3, 16, 16]), 3, hidden, 4, stride=4, pad=0)
    x = net.op("Transpose", net.op("Reshape", x, net.ints(0, hidden, tokens)), perm=[0, 2, 1])
    for _ in range(2):
        y = net.op("Transpose", net.norm(x, hidden), perm=[0, 2, 1])
        y = net.linear(net.gelu(net.linear(y, tokens, 24)), 24, tokens)
        x = net.op("Add", x, net.op("Transpose", y, perm=[0, 2, 1]))
        x = net.op("Add", x, net.linear(net.gelu(net.linear(net.norm(x, hidden), hidden, 96)), 96, hidden))
    return net.done(net.gemm(net.op("ReduceMean", x, axes=[1], keepdims=0), hidden, 10), ["N", 10])


def swin():
    """Attention in windows with a relative position bias for each head, and a cyclic shift."""
    net = Net()
    hidden, heads, width, side, window = 48, 6, 8, 8, 4
    x = net.conv(net.input("x", ["N", 3, 32, 32]), 3, hidden, 4, stride=4, pad=0)
    x = net.norm(net.op("Transpose", x, perm=[0, 2, 3, 1]), hidden)
    for shift in (0, 2):
        y = net.norm(x, hidden)
        if shift:
            parts = [
                net.op("Slice", y, net.ints(start), net.ints(end), net.ints(1))
                for start, end in ((shift, 2**62), (0, shift))
            ]
            y = net.op("Concat", *parts, axis=1)
        y = net.op("Reshape", y, net.ints(-1, side // window, window, side // window, window, hidden))
        y = net.op("Reshape", net.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), net.ints(-1, window * window, hidden))
        bias = net.weight(1, heads, window * window, window * window, fan=4)
        y = net.linear(
            _attend(net, *(net.linear(y, hidden, hidden) for _ in range(3)), heads, width, bias), hidden, hidden
        )
        y = net.op("Reshape", y, net.ints(-1, side // window, side // window, window, window, hidden))
        y = net.op("Reshape", net.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), net.ints(-1, side, side, hidden))
        if shift:
            parts = [
                net.op("Slice", y, net.ints(start), net.ints(end), net.ints(1))
                for start, end in ((-shift, 2**62), (0, -shift))
            ]
            y = net.op("Concat", *parts, axis=1)
        x = net.op("Add", x, y)
        x = net.op("Add", x, net.linear(net.gelu(net.linear(net.norm(x, hidden), hidden, 96)), 96, hidden))
    return net.done(net.gemm(net.op("ReduceMean", x, axes=[1, 2], keepdims=0), hidden, 10), ["N", 10])


def quantized():
    """Convolutions with quantized weights by channel and activations by tensor."""
    net = Net()

    def through(x):
        scale, zero = net.const(np.float32(0.02)), net.const(np.uint8(120))
        return net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, zero), scale, zero)

    def conv(x, cin, cout):
        weight = net.const(net.random.integers(-127, 128, (cout, cin, 3, 3)).astype(np.int8))
        scale = net.vector(cout, 0.002, 0.004)
        weight = net.op("DequantizeLinear", weight, scale, net.const(np.zeros(cout, np.int8)), axis=0)
        return net.op("Relu", net.op("Conv", x, weight, net.vector(cout, -0.5, 0.5), pads=[1] * 4))

    x = through(net.input("x", ["N", 3, 16, 16]))
    x = through(conv(x, 3, 24))
    x = through(net.op("Add", x, conv(x, 24, 24)))
    return net.done(net.head(through(conv(x, 24, 48)), 48), ["N", 10])


def densenet121():
    """The topology of DenseNet-121 with every node that a plain export has, for timing."""
    net = Net()
    size = 64
    x = net.op("Relu", net.bn(net.conv(net.input("x", ["N", 3, 224, 224]), 3, size, 7, 2), size))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for block, layers in enumerate((6, 12, 24, 16)):
        features = [x]
        for _ in range(layers):
            y = net.op("Concat", *features, axis=1) if len(features) > 1 else features[0]
            # Exporters leave shape arithmetic and identities around; they count as nodes.
            for _ in range(10):
                y = net.op("Identity", y)
            for _ in range(6):
                net.op("Gather", net.op("Shape", y), net.const(np.int64(1)))
            y = net.op("Relu", net.bn(y, size))
            y = net.op("Relu", net.bn(net.conv(y, size, 128, 1, bias=False), 128))
            features.append(net.conv(y, 128, 32, bias=False))
            size += 32
        x = net.op("Relu", net.bn(net.op("Concat", *features, axis=1), size))
        if block < 3:
            x = net.op("AveragePool", net.conv(x, size, size // 2, 1, bias=False), kernel_shape=[2, 2], strides=[2, 2])
            size //= 2
    return net.done(net.head(x, size, 1000), ["N", 1000])


ZOO: dict[str, Callable[[], onnx.ModelProto]] = {
    function.__name__: function
    for function in (
        residual, se_depthwise_flatten, concat_split_pixel_shuffle, pixel_shuffle_by_reshape, channel_shuffle, densenet,
        shufflenet, inception, unet, yolo, vit, vit_fused_qkv, bert, decoder, convnext, lstm_ocr, gru_ocr, fused_bert,
        group_norm, group_norm_op, mixer, swin, quantized,
    )
}  # fmt: skip


def feed(model, batch=2, seed=1):
    """Random inputs of a batch size; every other dynamic dimension gets 32 (images) or 6 (sequences)."""
    random = np.random.default_rng(seed)
    found = {}
    for value in model.graph.input:
        dims = []
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            rank = len(value.type.tensor_type.shape.dim)
            dims.append(dim.dim_value or (batch if axis == 0 else 32 if rank == 4 else 6))
        if value.type.tensor_type.elem_type == TensorProto.INT64:
            top = 2 if value.name == "attention" else 80
            found[value.name] = random.integers(0, top, dims)
            if value.name == "attention":
                found[value.name][:, 0] = 1
        else:
            found[value.name] = random.standard_normal(dims).astype(np.float32)
    return found


def load(proto):
    """Read a zoo network as the engine reads it."""
    return ir.from_proto(proto)
