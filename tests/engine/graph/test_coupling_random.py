"""Random networks from templates of operators, random units removed: the oracle must hold for every one of them."""

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zoo import Net

from engine.graph.coupling import analyse
from engine.graph.masking import mask
from engine.graph.slicing import remove

SIDE = 8
Step = tuple[int, int, int, int]


def _gate(net, x, size, pick):
    s = net.op("GlobalAveragePool", x)
    return net.op("Mul", x, net.op("Sigmoid", net.conv(net.op("Relu", net.conv(s, size, 4, 1)), 4, size, 1)))


def _attention(net, x, size, pick):
    """Positions attend to each other; some heads or one, some with a shared rotation of their width."""
    heads = 4 if size % 8 == 0 else 1
    width = size // heads
    y = net.op("Transpose", net.op("Reshape", x, net.ints(0, size, SIDE * SIDE)), perm=[0, 2, 1])
    q, k, v = (net.linear(y, size, size, bias=bool(pick % 2)) for _ in range(3))
    q, k, v = (
        net.op("Transpose", net.op("Reshape", part, net.ints(0, -1, heads, width)), perm=[0, 2, 1, 3])
        for part in (q, k, v)
    )
    if pick % 3 == 0:
        table = net.vector(width)
        q, k = net.op("Mul", q, table), net.op("Sub", k, table)
    scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    y = net.op("Transpose", net.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    y = net.linear(net.op("Reshape", y, net.ints(0, -1, size)), size, size)
    return net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1]), net.ints(0, size, SIDE, SIDE))


def _feed_forward(net, x, size, pick):
    y = net.norm(net.op("Transpose", x, perm=[0, 2, 3, 1]), size)
    y = net.linear(net.gelu(net.linear(y, size, 2 * size)), 2 * size, size)
    return net.op("Transpose", y, perm=[0, 3, 1, 2])


def _group_norm(net, x, size, pick):
    groups = 4 if size % 4 == 0 else 1
    y = net.op("Reshape", x, net.ints(0, groups, -1))
    y = net.op("InstanceNormalization", y, net.vector(groups), net.vector(groups, -0.5, 0.5))
    return net.op("Reshape", y, net.ints(0, size, SIDE, SIDE))


def _shuffle(net, x, size, pick):
    groups = 2 if size % 2 == 0 else 1
    y = net.op("Reshape", x, net.ints(-1, groups, size // groups, SIDE, SIDE))
    return net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3, 4]), net.ints(-1, size, SIDE, SIDE))


def _space(net, x, size, pick):
    y = net.op("SpaceToDepth", x, blocksize=2)
    mode = "CRD" if pick % 2 else "DCR"
    return net.op("DepthToSpace", net.conv(y, 4 * size, 4 * size, 1), blocksize=2, mode=mode)


def _grouped(net, x, size, pick):
    groups = (2, 4)[pick % 2]
    return net.conv(x, size, size, 3, groups=groups) if size % groups == 0 else net.conv(x, size, size, 1)


def _flip(net, x, size, pick):
    """Every second channel and then the others, by steps, by indices or by ranges from behind."""
    if pick % 3 == 0:
        even = net.op("Slice", x, net.ints(0), net.ints(size), net.ints(1), net.ints(2))
        odd = net.op("Slice", x, net.ints(1), net.ints(size), net.ints(1), net.ints(2))
        return net.op("Concat", odd, even, axis=1)
    if pick % 3 == 1:
        return net.op("Gather", x, net.ints(*net.random.permutation(size).tolist()), axis=1)
    return net.op("Slice", x, net.ints(-1), net.ints(-(2**40)), net.ints(1), net.ints(-1))


SAME_SIZE = (
    lambda net, x, size, pick: net.conv(x, size, size, 3, groups=size),
    lambda net, x, size, pick: net.bn(x, size),
    lambda net, x, size, pick: net.op(("Relu", "Sigmoid", "HardSwish", "Exp", "Softplus")[pick % 5], net.op("Tanh", x)),
    lambda net, x, size, pick: net.op("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4),
    lambda net, x, size, pick: net.op("PRelu", x, net.const(net.random.uniform(0, 1, (size, 1, 1)).astype(np.float32))),
    lambda net, x, size, pick: net.op("Clip", x, net.const(np.float32(-1)), net.const(np.float32(1))),
    _gate,
    _attention,
    _feed_forward,
    _group_norm,
    _shuffle,
    _space,
    _grouped,
    _flip,
)


def build(seed: int, steps: list[Step]) -> onnx.ModelProto:
    """Grow a graph: each step takes earlier values and appends one more."""
    net = Net(seed)
    values = [(net.conv(net.input("x", ["N", 3, SIDE, SIDE]), 3, 16), 16)]
    for kind, first, second, pick in steps:
        x, size = values[-1] if first % 3 else values[first % len(values)]
        y, other = values[second % len(values)]
        if kind == 0:
            wide = (8, 12, 16)[pick % 3]
            values.append((net.conv(x, size, wide, (1, 3)[pick % 2]), wide))
        elif kind == 1 and size == other:
            values.append((net.op(("Add", "Mul", "Max")[pick % 3], x, y), size))
        elif kind == 2 and size + other <= 32:
            values.append((net.op("Concat", x, y, axis=1), size + other))
        elif kind == 3:
            left = 1 + pick % (size - 2)
            a, b = net.op("Split", x, net.ints(left, size - left), axis=1, count=2)
            values.append((b, size - left) if pick % 2 and size - left > 2 else (a, left) if left > 2 else (x, size))
        else:
            values.append((SAME_SIZE[pick % len(SAME_SIZE)](net, x, size, first + second), size))
    x, size = values[-1]
    y, other = values[len(values) // 2]
    x = net.op("Concat", net.op("GlobalAveragePool", x), net.op("GlobalAveragePool", y), axis=1)
    x = net.op("Relu", net.gemm(net.op("Flatten", x), size + other, 12))
    return net.done(net.gemm(x, 12, 3), ["N", 3])


STEP = st.tuples(*[st.integers(0, top) for top in (8, 11, 11, 41)])


@settings(suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 999), steps=st.lists(STEP, min_size=3, max_size=9), random=st.randoms(use_true_random=False))
def test_what_is_left_computes_what_the_mask_computes(run, difference, seed, steps, random):
    proto = build(seed, steps)
    model = ir.from_proto(proto)
    coupling = analyse(model)
    atoms: set[int] = set()
    for group in coupling.groups:
        scores = {atom: random.random() for atom in group.atoms}
        count = random.randint(0, len(coupling.units(group)))
        atoms.update(atom for unit in coupling.choose(group, count, scores, atoms) for atom in unit.atoms)
    pruned, masked = remove(model, coupling, atoms), mask(model, coupling, atoms)
    onnx.checker.check_model(ir.to_proto(pruned), full_check=True)
    feed = {"x": np.random.default_rng(seed).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)}
    expected = run(masked, feed)
    assert difference(run(pruned, feed), expected) <= 2e-5
