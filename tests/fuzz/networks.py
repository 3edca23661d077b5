"""Networks at random that know what a network is: every operator of the standard, tensors of the types that it takes, then something wrong.

What comes of a seed is always the same.
"""

import random
from contextlib import suppress

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

_OLDEST, _NEWEST = 7, 22
_NUMPY = {f"tensor({name})": np.dtype(kind) for name, kind in {
    "float": "f4", "double": "f8", "float16": "f2", "int8": "i1", "int16": "i2", "int32": "i4", "int64": "i8",
    "uint8": "u1", "uint16": "u2", "uint32": "u4", "uint64": "u8", "bool": "?",
}.items()}  # fmt: skip
_WHOLE = (-(1 << 63), -(1 << 31), -2, -1, 0, 0, 1, 1, 1, 2, 2, 3, 7, 64, 1 << 31, (1 << 63) - 1)
_REAL = (0.0, 1.0, 0.5, -1.0, 1e-5, 1e30, float("inf"), float("nan"))
_TEXT = (
    "",
    "NOTSET",
    "SAME_UPPER",
    "VALID",
    "constant",
    "reflect",
    "linear",
    "nearest",
    "ij,jk->ik",
    "...i->i",
    "forward",
    "\u00e9",
)
_SIZES = (0, 1, 1, 2, 2, 3, 4, 5)


class Networks:
    """Makes one network."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.opset = self.random.randint(_OLDEST, _NEWEST)
        # Names of tensors by type.
        self.tensors = {}
        self.weights, self.nodes, self.inputs, self.types = [], [], [], {}

    def make(self):
        """Give the bytes, and what was done."""
        for _ in range(self.random.randint(1, 2)):
            self._input()
        schemas = _schemas(self.opset)
        for schema in self.random.sample(schemas, self.random.randint(1, 4)):
            self._node(schema)
        last = self.nodes[-1].output
        outputs = [helper.make_tensor_value_info(name, self._code(self.types[name]), None) for name in last if name]
        graph = helper.make_graph(self.nodes, "random", self.inputs, outputs, self.weights)
        model = shaped(helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9))
        harms = [self.random.choice(HARMS) for _ in range(self.random.choice((0, 0, 1, 1, 2)))]
        for harm in harms:
            harm(self.random, model)
        content = model.SerializeToString()
        if self.random.random() < 0.1:
            content = _flipped(self.random, content)
        return content, [node.op_type for node in model.graph.node] + [harm.__name__ for harm in harms]

    @staticmethod
    def _code(kind):
        return helper.np_dtype_to_tensor_dtype(_NUMPY[kind])

    def _shape(self):
        return [self.random.choice(_SIZES) for _ in range(self.random.choice((0, 1, 2, 2, 3, 4, 4, 5)))]

    def _name(self, kind):
        name = f"t{len(self.types)}"
        self.types[name] = kind
        self.tensors.setdefault(kind, []).append(name)
        return name

    def _input(self):
        shape = [self.random.choice((size, size, "N", None)) for size in self._shape()]
        self.inputs.append(helper.make_tensor_value_info(self._name("tensor(float)"), TensorProto.FLOAT, shape))

    def _weight(self, kind):
        shape = self._shape()
        if kind == "tensor(int64)" and self.random.random() < 0.7:
            # Shapes, axes, repeats and the like.
            values = np.array([self.random.choice(_WHOLE) for _ in range(self.random.randint(0, 4))], np.int64)
        else:
            draws = np.random.default_rng(self.random.randrange(1 << 32))
            values = draws.normal(scale=2, size=shape).astype(_NUMPY[kind])
        name = self._name(kind)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def _node(self, schema):
        chosen = {}

        def kind_of(formal):
            if formal.type_str not in chosen:
                allowed = sorted(set(formal.types) & set(_NUMPY)) or ["tensor(float)"]
                usual = [kind for kind in ("tensor(float)", "tensor(int64)") if kind in allowed]
                chosen[formal.type_str] = (
                    self.random.choice(usual or allowed) if self.random.random() < 0.8 else self.random.choice(allowed)
                )
            return chosen[formal.type_str]

        names = []
        for formal in schema.inputs:
            if formal.option.name == "Optional" and self.random.random() < 0.5:
                names.append("")
                continue
            for _ in range(self.random.randint(1, 3) if formal.option.name == "Variadic" else 1):
                kind = kind_of(formal)
                there = self.tensors.get(kind, [])
                names.append(self.random.choice(there) if there and self.random.random() < 0.6 else self._weight(kind))
        outputs = [self._name(kind_of(formal)) for formal in schema.outputs[: max(1, schema.min_output)]]
        node = helper.make_node(schema.name, names, outputs)
        for attribute in schema.attributes.values():
            if attribute.required or self.random.random() < 0.4:
                value = self._attribute(attribute)
                if value is not None:
                    node.attribute.append(value)
        self.nodes.append(node)

    def _attribute(self, attribute):
        pick, many = self.random.choice, self.random.randint(0, 4)
        kind = attribute.type.name
        values = {
            "INT": lambda: pick(_WHOLE),
            "INTS": lambda: [pick(_WHOLE) for _ in range(many)],
            "FLOAT": lambda: pick(_REAL),
            "FLOATS": lambda: [pick(_REAL) for _ in range(many)],
            "STRING": lambda: pick(_TEXT),
            "STRINGS": lambda: [pick(_TEXT) for _ in range(many)],
            "TENSOR": lambda: numpy_helper.from_array(np.array([pick(_REAL)], np.float32)),
            "GRAPH": self._branch,
        }
        if kind not in values:
            return None
        made = AttributeProto(name=attribute.name, type=getattr(AttributeProto, kind))
        value = values[kind]()
        field = {"INT": "i", "FLOAT": "f", "STRING": "s", "INTS": "ints", "FLOATS": "floats", "STRINGS": "strings", "TENSOR": "t", "GRAPH": "g"}[kind]  # fmt: skip
        if kind in {"TENSOR", "GRAPH"}:
            getattr(made, field).CopyFrom(value)
        elif kind.endswith("S"):
            getattr(made, field).extend(one.encode() if isinstance(one, str) else one for one in value)
        else:
            setattr(made, field, value.encode() if isinstance(value, str) else value)
        return made

    def _branch(self):
        name = self.random.choice(self.tensors["tensor(float)"])
        node = helper.make_node("Identity", [name], [f"b{len(self.types)}"])
        return helper.make_graph(
            [node], "branch", [], [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)]
        )


def shaped(model):
    """Give every output of a network its shape: inferred, or two open sizes. Without one it is refused for that alone."""
    with suppress(Exception):
        model = onnx.shape_inference.infer_shapes(model)
    for output in model.graph.output:
        kind = output.type.tensor_type
        if not kind.HasField("shape"):
            kind.shape.dim.add(dim_param="a")
            kind.shape.dim.add(dim_param="b")
    return model


def _schemas(opset):
    newest = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= opset and not schema.deprecated:
            known = newest.get(schema.name)
            if known is None or known.since_version < schema.since_version:
                newest[schema.name] = schema
    return [newest[name] for name in sorted(newest)]


def _flipped(random_, content):
    data = bytearray(content)
    for _ in range(random_.randint(1, 8)):
        data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
    return bytes(data)


# What is done to a network that was right until then.


def _lose_an_input(random_, model):
    node = random_.choice(model.graph.node)
    if node.input:
        node.input[random_.randrange(len(node.input))] = random_.choice(("", "nowhere", *model.graph.node[-1].output))


def _repeat_a_node(random_, model):
    model.graph.node.append(random_.choice(model.graph.node))


def _change_the_order(random_, model):
    nodes = list(model.graph.node)
    random_.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _lie_about_a_weight(random_, model):
    if model.graph.initializer:
        weight = random_.choice(model.graph.initializer)
        weight.dims[:] = [random_.choice((*_WHOLE, *_SIZES)) for _ in range(random_.randint(0, 5))]


def _change_a_weights_type(random_, model):
    if model.graph.initializer:
        random_.choice(model.graph.initializer).data_type = random_.choice((0, 1, 8, 9, 14, 16, 21, 22, 23, 99, -1))


def _lie_about_an_input(random_, model):
    if model.graph.input:
        kind = random_.choice(model.graph.input).type.tensor_type
        kind.elem_type = random_.choice((0, 1, 8, 14, 99))
        del kind.shape.dim[:]
        for _ in range(random_.choice((0, 2, 70))):
            kind.shape.dim.add(dim_value=random_.choice(_WHOLE))


def _change_the_opset(random_, model):
    model.opset_import[0].version = random_.choice((-1, 0, 1, 6, 7, 13, 21, 23, 99, 1 << 62))


def _change_an_attributes_type(random_, model):
    found = [attribute for node in model.graph.node for attribute in node.attribute]
    if found:
        random_.choice(found).type = random_.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 13))


def _rename_an_operator(random_, model):
    node = random_.choice(model.graph.node)
    node.op_type, node.domain = random_.choice(
        (("", ""), ("Relu", "ai.onnx"), ("Conv", "com.microsoft"), ("X", "evil"), ("Loop", ""))
    )


def _wrap_in_itself(random_, model):
    inner = model.graph.node[0].attribute.add(name="body", type=AttributeProto.GRAPH)
    for _ in range(random_.choice((1, 30))):
        copy = onnx.GraphProto()
        copy.CopyFrom(model.graph)
        if copy.ByteSize() > 1 << 16:
            break
        inner.g.CopyFrom(copy)


HARMS = (
    _lose_an_input,
    _repeat_a_node,
    _change_the_order,
    _lie_about_a_weight,
    _change_a_weights_type,
    _lie_about_an_input,
    _change_the_opset,
    _change_an_attributes_type,
    _rename_an_operator,
    _wrap_in_itself,
)
