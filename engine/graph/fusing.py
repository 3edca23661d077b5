"""The work of the `fuse` pass: exporters write one operation as several operators; the runtime sees through few of them."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.graph import io
from engine.graph.attention_matching import TakenApart
from engine.graph.opset import upgrade
from engine.graph.sizes import Sizes, infer
from engine.report.detail_parts import CountChange
from engine.report.graph_details import FuseDetails
from engine.report.values import Change, Refusal

# Of HardSwish; networks below are converted where the converter can.
_HARD_SWISH_OPSET = 14
# In which Gelu became a standard operator.
_GELU_OPSET = 20
# Since which Softmax is over one axis.
_SOFTMAX_OPSET = 13
# In which Split took sizes as an input.
_SPLIT_OPSET = 13
_FEWEST_MERGED = 2
_STANDARD = frozenset({"", "ai.onnx"})
_SAME = 1e-4

Floats = npt.NDArray[np.floating[Any]]


def fuse(model: ir.Model, *, attention: bool = False) -> Change | Refusal:
    """Fuse in place, until nothing more can be fused; `attention`: into the runtime's own operator too."""
    before = sum(1 for _ in model.graph)
    upgrade(model, _HARD_SWISH_OPSET)
    done: Counter[str] = Counter()
    fusing = _Fusing(model, attention=attention)
    while found := fusing.sweep():
        done.update(found)
    after = sum(1 for _ in model.graph)
    if not done:
        return Refusal(code="not_applicable", reason="No operators could be fused.")
    return Change(
        summary=f"{before} operators became {after}: "
        + ", ".join(f"{n} {what}" for what, n in sorted(done.items()))
        + ".",
        details=FuseDetails(nodes=CountChange(before=before, after=after), fused=dict(sorted(done.items()))),
        lossless=True,
    )


class _Fusing:
    def __init__(self, model: ir.Model, *, attention: bool) -> None:
        self._model, self._graph, self._attention = model, model.graph, attention
        self._taken = io.value_names(model)
        # Values that bodies of If and Loop read are not ours to move.
        self._captured = {
            value
            for node in model.graph.all_nodes()
            if node.graph is not model.graph
            for value in node.inputs
            if value is not None
        }

    def sweep(self) -> list[str]:
        """Go once through the network; give what was fused."""
        rules: tuple[tuple[str, Callable[[ir.Node], bool]], ...] = (
            ("factors and offsets folded into the weights before them", self._fold_back),
            ("hard-swishes", self._hard_swish),
            ("hard-sigmoids", self._hard_sigmoid),
            ("GELUs", self._gelu),
            ("offsets folded into the weights after them", self._fold_offset_forward),
            ("factors folded into the weights after them", self._fold_factor_forward),
            ("products of one input made in one", self._merge_products),
        )
        if self._attention and io.opset(self._model) >= _SOFTMAX_OPSET:
            sizes = infer(self._model)
            rules = (*rules, ("attentions", lambda node: self._attention_around(node, sizes)))
        done = []
        for node in list(self._graph):
            if node.graph is not self._graph or node.domain not in _STANDARD:
                continue
            done += [name for name, rule in rules if node.graph is self._graph and rule(node)]
        self._drop_unused()
        return done

    # Weights

    def _fold_back(self, node: ir.Node) -> bool:
        """Conv -> Mul, Div, Add or Sub by a constant of one number per channel."""
        if node.op_type not in {"Conv", "ConvTranspose"} or (node.op_type == "ConvTranspose" and _group(node) != 1):
            return False
        user = self._only_user(node.outputs[0])
        weight, bias = self._array(node.inputs[1]), self._bias(node)
        if user is None or weight is None or bias is None:
            return False
        constant = self._by_channel(user, node.outputs[0], len(bias), weight.ndim)
        if constant is None:
            return False
        axis = 0 if node.op_type == "Conv" else 1
        if user.op_type in {"Mul", "Div"}:
            factor = constant if user.op_type == "Mul" else 1 / constant
            along = [1] * weight.ndim
            along[axis] = -1
            self._store(node, 1, weight * factor.reshape(along))
            self._store(node, 2, bias * factor)
        else:
            self._store(node, 2, bias + (constant if user.op_type == "Add" else -constant))
        self._bypass(user, node.outputs[0])
        return True

    def _fold_factor_forward(self, node: ir.Node) -> bool:
        """A factor, perhaps with an offset behind it, before convolutions alone: they take the factor."""
        if node.op_type not in {"Mul", "Div"}:
            return False
        source, number = self._scalar_operand(node)
        if (
            source is None
            or not number
            or not math.isfinite(number)
            or (node.op_type == "Div" and node.inputs[0] is not source)
        ):
            return False
        factor = number if node.op_type == "Mul" else 1 / number
        last, offset = node.outputs[0], None
        user = self._only_user(last)
        if user is not None and user.op_type == "Add":
            left, added = self._scalar_operand(user)
            if left is last and added is not None:
                last, offset = user.outputs[0], added
        readers = self._convolutions_that_read(last)
        if not readers:
            return False
        for reader in readers:
            weight = self._array(reader.inputs[1])
            assert weight is not None
            self._store(reader, 1, weight * factor)
        if offset is not None and user is not None:
            replacement = self._constant(np.float32(offset / factor))
            user.replace_input_with(0, source)
            user.replace_input_with(1, replacement)
            self._graph.remove(node, safe=True)
        else:
            self._bypass(node, source)
        return True

    def _fold_offset_forward(self, node: ir.Node) -> bool:
        """An offset before convolutions that pad nothing: their biases take it."""
        if node.op_type != "Add":
            return False
        source, offset = self._scalar_operand(node)
        readers = self._convolutions_that_read(node.outputs[0])
        if source is None or offset is None or not readers or any(_pads(reader) for reader in readers):
            return False
        for reader in readers:
            weight, bias = self._array(reader.inputs[1]), self._bias(reader)
            assert weight is not None
            assert bias is not None
            self._store(reader, 2, bias + offset * weight.reshape(len(weight), -1).sum(axis=1))
        self._bypass(node, source)
        return True

    def _merge_products(self, node: ir.Node) -> bool:
        """MatMuls with the same input, as the projections of attention: one product, which reads (and rounds) it once."""
        if node.op_type != "MatMul" or node.inputs[0] is None or io.opset(self._model) < _SPLIT_OPSET:
            return False
        users = dict.fromkeys(use.node for use in node.inputs[0].uses() if use.idx == 0)
        found = [user for user in self._graph if user in users and self._is_projection(user)]
        adds = [self._bias_after(each) for each in found]
        if len(found) < _FEWEST_MERGED or node not in found or len({add is None for add in adds}) != 1:
            return False
        source, first = node.inputs[0], found[0]
        weights = [self._array(each.inputs[1]) for each in found]
        together = self._constant(np.concatenate([each for each in weights if each is not None], 1).astype(np.float32))
        sizes = np.array([each.shape[1] for each in weights if each is not None], np.int64)
        made = [ir.Node("", "MatMul", [source, together], name=first.name)]
        lasts = found
        ends = [add for add in adds if add is not None]
        if ends:
            biases = [
                self._array(each.inputs[1 - _position(each, one.outputs[0])])
                for each, one in zip(ends, found, strict=True)
            ]
            bias = self._constant(np.concatenate([each for each in biases if each is not None]).astype(np.float32))
            made.append(ir.node("Add", [made[0].outputs[0], bias]))
            lasts = ends
        split = ir.node("Split", [made[-1].outputs[0], self._constant(sizes)], {"axis": -1}, num_outputs=len(found))
        made.append(split)
        for each in made:
            for value in each.outputs:
                value.name = io.unused_name(self._taken, "merged_")
        self._graph.insert_before(first, made)
        for last, part in zip(lasts, split.outputs, strict=True):
            self._bypass_to(last, part)
        for each in found:
            if ends:
                self._graph.remove(each, safe=True)
        return True

    def _is_projection(self, node: ir.Node) -> bool:
        weight = self._array(node.inputs[1]) if node.op_type == "MatMul" and node.domain in _STANDARD else None
        return weight is not None and weight.ndim == 2 and node.inputs[0] is not node.inputs[1]

    def _bias_after(self, node: ir.Node) -> ir.Node | None:
        add = self._only_user(node.outputs[0])
        if add is None or add.op_type != "Add":
            return None
        bias, weight = self._array(add.inputs[1 - _position(add, node.outputs[0])]), self._array(node.inputs[1])
        return add if bias is not None and weight is not None and bias.shape == weight.shape[1:] else None

    def _attention_around(self, softmax: ir.Node, sizes: Sizes) -> bool:
        """Scores of heads, Softmax and the weighted sum of values: one operator that moves nothing between layouts."""
        found = TakenApart.at(softmax, sizes)
        if found is None:
            return False
        self._model.opset_imports.setdefault("com.microsoft", 1)
        attributes = {"num_heads": found.heads, "scale": found.scale}
        inputs = [found.query, found.key, found.value]
        made = ir.node("MultiHeadAttention", inputs, attributes, domain="com.microsoft", name=softmax.name)
        made.outputs[0].name = io.unused_name(self._taken, "attention_")
        self._graph.insert_before(found.last, made)
        self._bypass_to(found.last, made.outputs[0])
        return True

    # Activations

    def _hard_swish(self, node: ir.Node) -> bool:
        """Fuse x * clip(x + 3, 0, 6) / 6, and x * HardSigmoid(x), in any order."""
        if io.opset(self._model) < _HARD_SWISH_OPSET or node.op_type != "Mul" or len(node.inputs) != 2:
            return False
        for source, gate in (node.inputs, node.inputs[::-1]):
            maker = gate.producer() if gate is not None and source is not None else None
            if maker is None or gate is None or source is None or self._only_user(gate) is not node:
                continue
            if maker.op_type == "HardSigmoid" and maker.inputs[0] is source and _is_a_sixth(maker):
                self._replace(node, "HardSwish", [source])
                return True
            if self._shifted_clip(maker) is not source:
                continue
            last = self._only_user(node.outputs[0])
            scaled = self._scalar_operand(last) if last is not None and last.op_type in {"Div", "Mul"} else (None, None)
            if last is not None and scaled[0] is node.outputs[0] and _is_sixth(last, scaled[1]):
                self._replace(last, "HardSwish", [source])
                return True
        return False

    def _hard_sigmoid(self, node: ir.Node) -> bool:
        """clip(x + 3, 0, 6) / 6."""
        if node.op_type not in {"Div", "Mul"}:
            return False
        clipped, number = self._scalar_operand(node)
        maker = clipped.producer() if clipped is not None and self._only_user(clipped) is node else None
        source = self._shifted_clip(maker) if maker is not None else None
        if source is None or not _is_sixth(node, number):
            return False
        self._replace(node, "HardSigmoid", [source], alpha=1 / 6, beta=0.5)
        return True

    def _gelu(self, node: ir.Node) -> bool:
        """Fuse x * (1 + erf(x / sqrt 2)) / 2, in the orders in which exporters write it."""
        if node.op_type != "Erf" or node.inputs[0] is None:
            return False
        inner = node.inputs[0].producer()
        if inner is None:
            return False
        source, divisor = self._scalar_operand(inner)
        root = math.sqrt(2) if inner.op_type == "Div" else math.sqrt(0.5)
        if inner.op_type not in {"Div", "Mul"} or source is None or divisor is None or not _near(divisor, root):
            return False
        plus = self._only_user(node.outputs[0])
        if plus is None or plus.op_type != "Add" or not _near(self._scalar_operand(plus)[1], 1.0):
            return False
        last = self._product_of_half(source, plus.outputs[0])
        if last is None:
            return False
        domain = "" if io.opset(self._model) >= _GELU_OPSET else "com.microsoft"
        if domain:
            self._model.opset_imports.setdefault(domain, 1)
        self._replace(last, "Gelu", [source], domain=domain)
        return True

    def _product_of_half(self, source: ir.Value, gate: ir.Value) -> ir.Node | None:
        """Give the node that ends (x * gate) / 2, (x / 2) * gate or x * (gate / 2)."""
        user = self._only_user(gate)
        if user is None or user.op_type not in {"Mul", "Div"}:
            return None
        if self._halves(user, gate):
            last = self._only_user(user.outputs[0])
            return last if last is not None and last.op_type == "Mul" and source in last.inputs else None
        other = next((value for value in user.inputs if value is not gate), None)
        if other is source:
            last = self._only_user(user.outputs[0])
            return last if self._halves(last, user.outputs[0]) else None
        return user if other is not None and self._halves(other.producer(), source) else None

    def _halves(self, node: ir.Node | None, source: ir.Value) -> bool:
        if node is None:
            return False
        value, number = self._scalar_operand(node)
        return value is source and (
            (node.op_type == "Mul" and _near(number, 0.5)) or (node.op_type == "Div" and _near(number, 2.0))
        )

    def _shifted_clip(self, clip: ir.Node) -> ir.Value | None:
        """Give x of clip(x + 3, 0, 6)."""
        if clip.op_type != "Clip" or clip.inputs[0] is None:
            return None
        bounds = [self._scalar(clip.inputs[index]) if index < len(clip.inputs) else None for index in (1, 2)]
        plus = clip.inputs[0].producer()
        if not (_near(bounds[0], 0.0) and _near(bounds[1], 6.0)) or plus is None or plus.op_type != "Add":
            return None
        source, shift = self._scalar_operand(plus)
        return source if _near(shift, 3.0) and self._only_user(plus.outputs[0]) is clip else None

    # Reading and writing the graph

    def _only_user(self, value: ir.Value) -> ir.Node | None:
        users = {use.node for use in value.uses()}
        if len(users) != 1 or value.is_graph_output() or value in self._captured:
            return None
        user = next(iter(users))
        return user if user.graph is self._graph and user.domain in _STANDARD else None

    def _convolutions_that_read(self, value: ir.Value) -> list[ir.Node]:
        """Give the convolutions that read a value; nothing where anything else does too."""
        if value.is_graph_output() or value in self._captured:
            return []
        users = [(use.node, use.idx) for use in value.uses()]
        fits = all(
            user.op_type == "Conv"
            and user.domain in _STANDARD
            and index == 0
            and self._array(user.inputs[1]) is not None
            and self._bias(user) is not None
            for user, index in users
        )
        return [user for user, _ in users] if fits else []

    def _array(self, value: ir.Value | None) -> Floats | None:
        """Give a constant in float64; None where it is none."""
        tensor = None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT:
            return None
        return tensor.numpy().astype(np.float64)

    def _scalar(self, value: ir.Value | None) -> float | None:
        tensor = None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)
        # A constant of higher rank could add axes to what it meets.
        if tensor is None or tensor.size != 1 or len(tensor.shape) > 1:
            return None
        return float(tensor.numpy().reshape(()))

    def _scalar_operand(self, node: ir.Node) -> tuple[ir.Value | None, float | None]:
        """Give the activation and the number of an operator on both."""
        if len(node.inputs) != 2:
            return None, None
        left, right = node.inputs
        for value, constant in ((left, right), (right, left)):
            number = self._scalar(constant)
            if value is not None and number is not None and self._scalar(value) is None:
                if constant is left and node.op_type in {"Div", "Sub"}:
                    return None, None
                return value, number
        return None, None

    def _by_channel(self, node: ir.Node, source: ir.Value, channels: int, rank: int) -> Floats | None:
        """Give the constant that a node joins with a convolution's output, as one number per channel."""
        if node.op_type not in {"Mul", "Div", "Add", "Sub"} or len(node.inputs) != 2:
            return None
        if node.op_type in {"Div", "Sub"} and node.inputs[0] is not source:
            return None
        other = node.inputs[1] if node.inputs[0] is source else node.inputs[0]
        constant = self._array(other) if other is not source else None
        if constant is None or constant.ndim > rank:
            return None
        full = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
        if any(size != 1 for axis, size in enumerate(full.shape) if axis != 1) or full.shape[1] not in {1, channels}:
            return None
        found = np.broadcast_to(full.reshape(-1), (channels,))
        return None if node.op_type in {"Mul", "Div"} and not found.all() else found

    def _bias(self, node: ir.Node) -> Floats | None:
        """Give a convolution's bias, zeros where it has none; None where it is not constant."""
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            return self._array(node.inputs[2])
        weight = self._array(node.inputs[1])
        if weight is None:
            return None
        return np.zeros(weight.shape[0] if node.op_type == "Conv" else weight.shape[1] * _group(node))

    def _store(self, node: ir.Node, index: int, array: Floats) -> None:
        value = self._constant(np.ascontiguousarray(array, np.float32))
        if index < len(node.inputs):
            node.replace_input_with(index, value)
        else:
            node.resize_inputs(index + 1)
            node.replace_input_with(index, value)

    def _constant(self, array: Any) -> ir.Value:
        name = io.unused_name(self._taken, "fused_")
        tensor = ir.tensor(np.asarray(array), name=name)
        value = ir.Value(
            name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy())
        )
        self._graph.register_initializer(value)
        return value

    def _bypass(self, node: ir.Node, source: ir.Value) -> None:
        """Let whoever reads the node's output read `source`; a network's output keeps its name."""
        output = node.outputs[0]
        ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=True)
        if source.is_graph_output():
            source.name, output.name = output.name, io.unused_name(self._taken, "was_")
            source.type, source.shape = output.type, output.shape
        self._graph.remove(node, safe=True)

    def _bypass_to(self, node: ir.Node, part: ir.Value) -> None:
        """Let a new value take the place, name and type of a node's output."""
        output = node.outputs[0]
        part.type, part.shape = output.type, output.shape
        ir.convenience.replace_all_uses_with(output, part, replace_graph_outputs=True)
        part.name, output.name = output.name, part.name
        self._graph.remove(node, safe=True)

    def _replace(self, node: ir.Node, kind: str, inputs: list[ir.Value], *, domain: str = "", **numbers: float) -> None:
        made = ir.Node(
            domain, kind, inputs, [ir.AttrFloat32(name, value) for name, value in numbers.items()], num_outputs=1,
            name=node.name,
        )  # fmt: skip
        ir.convenience.replace_nodes_and_values(self._graph, node, [node], [made], node.outputs, made.outputs)

    def _drop_unused(self) -> None:
        for node in reversed(list(self._graph)):
            if not any(value.uses() or value.is_graph_output() for value in node.outputs):
                self._graph.remove(node, safe=True)
        for name, value in tuple(self._graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del self._graph.initializers[name]


def _group(node: ir.Node) -> int:
    return node.attributes["group"].as_int() if "group" in node.attributes else 1


def _position(node: ir.Node, value: ir.Value) -> int:
    return 0 if node.inputs[0] is value else 1


def _pads(node: ir.Node) -> bool:
    if "auto_pad" in node.attributes and node.attributes["auto_pad"].as_string() not in {"NOTSET", "VALID"}:
        return True
    return "pads" in node.attributes and any(node.attributes["pads"].as_ints())


def _near(number: float | None, wanted: float) -> bool:
    return number is not None and abs(number - wanted) <= _SAME * max(1.0, abs(wanted))


def _is_sixth(node: ir.Node, number: float | None) -> bool:
    return _near(number, 6.0) if node.op_type == "Div" else number is not None and abs(number - 1 / 6) < _SAME


def _is_a_sixth(node: ir.Node) -> bool:
    alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 0.2
    beta = node.attributes["beta"].as_float() if "beta" in node.attributes else 0.5
    return abs(alpha - 1 / 6) < _SAME and abs(beta - 0.5) < _SAME
