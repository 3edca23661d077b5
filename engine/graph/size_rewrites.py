"""The sizes that nodes hold, rewritten when channels go: target shapes, split sizes, ranges, indices and attributes."""

import numpy as np
import onnx_ir as ir

from engine.errors import SpecInvalidError
from engine.graph import io
from engine.graph.attributes import integer, integers, slices
from engine.graph.coupling import Coupling
from engine.graph.execution import Site
from engine.graph.labels import Array
from engine.graph.losses import first_line, losses_by_axis, new_sizes


def rewrite_sizes(model: ir.Model, coupling: Coupling, gone: Array) -> None:
    """Let the nodes of a network, in place, hold the sizes that are left."""
    nodes = {str(node.name): node for node in model.graph}
    writer = _Writer(model)
    for (node_name, kind, attribute), sites in _by_node(coupling, gone).items():
        _REWRITES[kind](writer, nodes[node_name], sites, gone, attribute)


def _by_node(coupling: Coupling, gone: Array) -> dict[tuple[str, str, str], list[Site]]:
    found: dict[tuple[str, str, str], list[Site]] = {}
    for site in coupling.sites:
        if gone[site.labels.atoms].any():
            found.setdefault((site.node, site.kind, site.name), []).append(site)
    return found


class _Writer:
    """Puts new constants into a network."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._taken = io.value_names(model)
        self._nodes = {str(node.name) for node in model.graph.all_nodes()}

    def constant(self, array: Array, stem: str) -> ir.Value:
        name = io.unused_name(self._taken, f"{stem}_pruned")
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        self.model.graph.register_initializer(value)
        return value

    def add(self, before: ir.Node, op_type: str, inputs: list[ir.Value | None], **attributes: int) -> ir.Value:
        name = io.unused_name(self._nodes, f"{before.name}_{op_type}")
        node = ir.node(op_type, inputs, attributes or None, name=name)
        node.outputs[0].name = io.unused_name(self._taken, f"{name}_output")
        self.model.graph.insert_before(before, node)
        return node.outputs[0]

    def insert_after(self, node: ir.Node, index: int, op_type: str, inputs: list[ir.Value], **attributes: int) -> None:
        """Send an output through one more node before anybody reads it."""
        output = node.outputs[index]
        name = io.unused_name(self._nodes, f"{node.name}_{op_type}")
        added = ir.node(op_type, [output, *inputs], attributes or None, name=name)
        added.outputs[0].name = io.unused_name(self._taken, f"{name}_output")
        output.replace_all_uses_with(added.outputs[0], replace_graph_outputs=True)
        added.replace_input_with(0, output)
        self.model.graph.insert_after(node, added)

    def write(self, node: ir.Node, index: int, changes: dict[int, int]) -> None:
        """Change elements of an integer input, also where the rest of it is computed at run time."""
        value = node.inputs[index]
        assert value is not None
        stem = str(value.name)
        if value.const_value is not None:
            array = value.const_value.numpy().copy()
            for place, number in changes.items():
                array.reshape(-1)[place] = number
            node.replace_input_with(index, self.constant(array, stem))
            return
        length = max(changes) + 1 if value.shape is None else max(int(value.shape.numpy()[0]), max(changes) + 1)
        chosen = np.zeros(length, bool)
        numbers = np.zeros(length, np.int64)
        for place, number in changes.items():
            chosen[place], numbers[place] = True, number
        mixed = self.add(node, "Where", [self.constant(chosen, stem), self.constant(numbers, stem), value])
        node.replace_input_with(index, mixed)


def _reshape(writer: _Writer, node: ir.Node, sites: list[Site], gone: Array, _: str) -> None:
    changes = new_sizes(sites, gone)
    target = node.inputs[1]
    assert target is not None
    dynamic = {site.labels.axis for site in sites if site.dynamic}
    rank = len(sites[0].labels.shape)
    written = None if target.const_value is None else target.const_value.numpy()
    kept_marks = {0, -1} if not integer(node, "allowzero", 0) else {-1}
    wanted = {}
    for axis, size in changes.items():
        if written is not None and int(written[axis]) in kept_marks:
            continue
        wanted[axis] = -1 if axis in dynamic else size
    if not wanted:
        return
    if written is None:
        # The length of the vector is the rank; it must be known to mix constants into it.
        target.shape = ir.Shape([rank])
        wanted = {axis: size for axis, size in wanted.items() if not _is_mark(target, axis)}
    if wanted:
        writer.write(node, 1, wanted)


def _is_mark(target: ir.Value, axis: int) -> bool:
    """Tell whether an element of a computed shape is the constant -1 or 0, which adapts by itself."""
    producer = target.producer()
    if producer is None or producer.op_type != "Concat":
        return False
    place = 0
    for value in producer.inputs:
        if value is None:
            return False
        constant = None if value.const_value is None else value.const_value.numpy().reshape(-1)
        size = 1 if constant is None else len(constant)
        if value.const_value is None and value.shape is not None and value.shape.is_static():
            size = int(value.shape.numpy()[0])
        if place <= axis < place + size:
            return constant is not None and int(constant[axis - place]) in {0, -1}
        place += size
    return False


def _expand(writer: _Writer, node: ir.Node, sites: list[Site], gone: Array, _: str) -> None:
    """The labelled axis is there before Expand, so that a 1 in the target keeps it."""
    target = node.inputs[1]
    assert target is not None
    rank = len(sites[0].labels.shape)
    if target.const_value is None:
        target.shape = ir.Shape([rank]) if target.shape is None else target.shape
        length = int(target.shape.numpy()[0])
    else:
        length = target.const_value.size
    changes = {axis - (rank - length): 1 for axis in new_sizes(sites, gone) if axis >= rank - length}
    if changes:
        writer.write(node, 1, changes)


def _resize(writer: _Writer, node: ir.Node, sites: list[Site], gone: Array, _: str) -> None:
    target = node.inputs[3]
    assert target is not None
    listed = integers(node, "axes")
    rank = len(sites[0].labels.shape)
    places = list(range(rank)) if listed is None else [axis % rank for axis in listed]
    if target.const_value is None:
        target.shape = ir.Shape([len(places)])
    changes = {places.index(axis): size for axis, size in new_sizes(sites, gone).items() if axis in places}
    if changes:
        writer.write(node, 3, changes)


def _split(writer: _Writer, node: ir.Node, sites: list[Site], gone: Array, _: str) -> None:
    axis = sites[0].axis
    size = sites[0].labels.shape[axis]
    loss = losses_by_axis([site.labels for site in sites], gone).get(axis)
    if loss is None:
        return
    given = node.inputs[1] if len(node.inputs) > 1 else None
    pieces = integers(node, "split")
    by_attribute = pieces is not None
    if given is not None and given.const_value is not None:
        pieces = given.const_value.numpy().tolist()
    if pieces is None:
        largest = -(-size // len(node.outputs))
        pieces = [min(largest, size - start) for start in range(0, size, largest)]
    line, start, new = first_line(loss, axis), 0, []
    for piece in pieces:
        new.append(piece - int(line[start : start + piece].sum()))
        start += piece
    if min(new) == 0:
        raise SpecInvalidError(
            "A part would have width 0.", node=str(node.name), hint="Keep at least one unit of each part."
        )
    if by_attribute or writer.model.opset_imports.get("", 0) < 13:
        node.attributes.add(ir.AttrInt64s("split", new))
        return
    node.attributes.pop("num_outputs", None)
    node.resize_inputs(2)
    node.replace_input_with(1, writer.constant(np.array(new, np.int64), f"{node.name}_split"))


def _slice(writer: _Writer, node: ir.Node, sites: list[Site], gone: Array, _: str) -> None:
    labels = [site.labels for site in sites]
    shape = labels[0].shape
    operands = [
        None if value is None or value.const_value is None else value.const_value.numpy() for value in node.inputs[1:]
    ]
    for axis, loss in losses_by_axis(labels, gone).items():
        line = first_line(loss, axis)
        where = _range_on(node, operands, len(shape), axis)
        chosen = np.arange(shape[axis])[where]
        places = (np.cumsum(~line) - 1)[chosen[~line[chosen]]]
        if not len(places):
            raise SpecInvalidError("A part would have width 0.", node=str(node.name))
        steps = np.diff(places)
        forward = where.step in {None, 1}
        if forward or (len(steps) and (steps == steps[0]).all() and steps[0] == (where.step or 1)):
            step = 1 if forward else int(steps[0])
            end = int(places[-1]) + (1 if step > 0 else -1)
            _write_range(writer, node, axis, start=int(places[0]), end=end if end >= 0 else -(1 << 62), rank=len(shape))
        else:
            # What is left does not lie evenly: take everything here, then pick.
            _write_range(writer, node, axis, start=0, end=1 << 62, rank=len(shape), step=1)
            writer.insert_after(
                node, 0, "Gather", [writer.constant(places.astype(np.int64), f"{node.name}_kept")], axis=axis
            )


def _range_on(node: ir.Node, operands: list[Array | None], rank: int, axis: int) -> slice:
    """Read the range on one axis; others may be computed at run time."""
    if "starts" in node.attributes or all(operand is not None for operand in operands[:2]):
        found = slices(node, operands, rank)
        assert found is not None
        return found[axis]
    raise SpecInvalidError("A range that is computed at run time cuts channels.", node=str(node.name))


def _write_range(
    writer: _Writer, node: ir.Node, axis: int, *, start: int, end: int, rank: int, step: int | None = None
) -> None:
    listed = integers(node, "axes")
    if "starts" in node.attributes:
        starts, ends = list(integers(node, "starts") or ()), list(integers(node, "ends") or ())
        place = axis if listed is None else [item % rank for item in listed].index(axis)
        starts[place], ends[place] = start, end
        node.attributes.add(ir.AttrInt64s("starts", starts))
        node.attributes.add(ir.AttrInt64s("ends", ends))
        return
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    place = axis
    if axes is not None and axes.const_value is not None:
        place = (axes.const_value.numpy() % rank).tolist().index(axis)
    for index, number in ((1, start), (2, end)):
        # 32-bit ranges are legal too.
        value = node.inputs[index]
        assert value is not None
        assert value.const_value is not None
        limit = np.iinfo(value.const_value.numpy().dtype)
        writer.write(node, index, {place: max(min(number, limit.max), limit.min)})
    if step is not None:
        writer.write(node, 4, {place: step})


def _gather(writer: _Writer, node: ir.Node, sites: list[Site], gone: Array, _: str) -> None:
    axis = integer(node, "axis", 0) % len(sites[0].labels.shape)
    loss = losses_by_axis([site.labels for site in sites], gone).get(axis)
    indices = node.inputs[1]
    if loss is None or indices is None or indices.const_value is None:
        return
    line = first_line(loss, axis)
    chosen = indices.const_value.numpy() % len(line)
    kept = chosen[~line[chosen]]
    if not len(kept):
        raise SpecInvalidError("A part would have width 0.", node=str(node.name))
    places = (np.cumsum(~line) - 1)[kept].astype(indices.const_value.numpy().dtype)
    node.replace_input_with(1, writer.constant(places, str(indices.name)))


def _attribute(writer: _Writer, node: ir.Node, sites: list[Site], gone: Array, name: str) -> None:
    del writer
    found = new_sizes(sites, gone).get(sites[0].axis)
    if found is not None:
        node.attributes.add(ir.AttrInt64(name, found))


_REWRITES = {
    "attribute": _attribute,
    "expand": _expand,
    "gather": _gather,
    "reshape": _reshape,
    "resize": _resize,
    "slice": _slice,
    "split": _split,
}
