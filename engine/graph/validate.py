"""What a network in an untrusted file is, or a refusal in words for its owner. Nothing here runs the network.

Cheap checks come first: each one protects the next, more trusting one (onnx's checker, then shape inference).
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path, PurePosixPath
from typing import Literal

import onnx
from google.protobuf.message import DecodeError
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TensorShapeProto,
    ValueInfoProto,
)

from engine.errors import ModelInvalidError, ModelUnsupportedError
from engine.graph import checker, runtime_operators
from engine.graph.cache_sizes import with_cache_sizes
from engine.graph.dense import make_dense
from engine.graph.foreign_formats import recognise, recognise_broken
from engine.graph.names import tell_apart
from engine.graph.network_cost import network_cost
from engine.graph.order import settle
from engine.graph.quantized import is_quantized
from engine.graph.sizes import OPEN_SIZE
from engine.graph.table_rows import table_rows
from engine.graph.text import check_text
from engine.inspection import INSPECTION_BYTES, NAME_LETTERS, Inspection, TensorInfo

FILE_BYTES = (1 << 31) - 1
NODES = 100_000
DEPTH = 16
TENSOR_BYTES = 16 << 30
OLDEST_OPSET = 7
OLDEST_IR = 3
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_STANDARD = frozenset({"", "ai.onnx"})

_FLOATS: Mapping[int, Literal["float32", "float16", "bfloat16", "float64"]] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
}
_INPUT_TYPES: Mapping[int, str] = {
    **_FLOATS,
    TensorProto.BOOL: "bool",
    TensorProto.INT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.UINT8: "uint8",
    TensorProto.UINT16: "uint16",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64",
}
# Bits of an element; types narrower than a byte are packed.
_BITS: Mapping[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.UINT8: 8, TensorProto.INT8: 8, TensorProto.UINT16: 16, TensorProto.INT16: 16,
    TensorProto.INT32: 32, TensorProto.INT64: 64, TensorProto.BOOL: 8, TensorProto.FLOAT16: 16, TensorProto.DOUBLE: 64,
    TensorProto.UINT32: 32, TensorProto.UINT64: 64, TensorProto.COMPLEX64: 64, TensorProto.COMPLEX128: 128,
    TensorProto.BFLOAT16: 16, TensorProto.UINT4: 4, TensorProto.INT4: 4,
}  # fmt: skip
_WEIGHTED = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}


def inspect_model(path: Path, *, alone: bool = False, mend: bool = False) -> Inspection:
    """Check an untrusted file and say what network it holds; `alone`: the files beside it must be its own.

    `mend`: put a file in its place in which operators of one name, with which ONNX Runtime does not load it, are told apart,
    and in which what only ONNX Runtime takes is written as ONNX asks: the order of nodes, the name of the standard domain.
    Sparse tensors are dense in it.

    Raises ModelInvalidError where the bytes are not an ONNX network, ModelUnsupportedError where it is one, but is over a
    limit or uses what is not taken here. Call it in a sandbox: parsers have bugs.
    """
    foreign = recognise(path)
    if foreign is not None:
        raise ModelInvalidError(foreign.sentence, hint=foreign.way_out)
    size = path.stat().st_size
    if size > FILE_BYTES:
        raise ModelUnsupportedError(
            f"The file has {size} bytes; an ONNX file must stay below 2 GiB.",
            hint="Store the weights as external data.",
        )
    runtime_operators.register()
    model = _parse(path)
    _check_versions(model)
    made_dense = make_dense(model)
    nodes = _Counted(model)
    _check_domains(model, nodes)
    for graph in nodes.graphs:
        _check_tensors(graph)
    external = _check_external(nodes, path.parent)
    strays = sorted(file.name for file in path.parent.iterdir() if file not in {path, *external}) if alone else []
    if strays:
        raise ModelInvalidError(f"The archive holds `{strays[0]}`, which the network does not name as external data.")
    settled = (*made_dense, *settle(model))
    if settled:
        nodes = _Counted(model)
    _check_required_inputs(model, nodes)
    _check_names(model.graph, nodes)
    inputs, outputs = boundary(model.graph)
    checked: Path | bytes = path
    if settled and mend:
        _replace(path, model)
    elif settled and not external:
        checked = model.SerializeToString()
    wrongly_declared = _check_with_onnx(checked, nodes)
    ops = Counter(node.op_type for node in nodes.nodes)
    found = Inspection(
        inputs=inputs,
        outputs=outputs,
        opset={"" if entry.domain in _STANDARD else entry.domain: entry.version for entry in model.opset_import},
        ir_version=model.ir_version,
        producer=" ".join(part for part in (model.producer_name, model.producer_version) if part)[:100],
        parameters=sum(prod(tensor.dims) for tensor in nodes.tensors),
        size_bytes=size + sum(file.stat().st_size for file in external),
        nodes=len(nodes.nodes),
        ops=dict(sorted(ops.items())),
        quantized=_quantized(nodes),
        float_type=_float_type(nodes.tensors),
        external_data=bool(external),
        tables=dict(table_rows(model.graph)),
        cost=network_cost(path),
        warnings=(
            *_warnings(model, nodes),
            *wrongly_declared,
            *settled,
            *_shared_names(model, nodes, path if mend else None),
        ),
    )
    size = len(found.model_dump_json())
    if size > INSPECTION_BYTES:
        raise ModelUnsupportedError(
            f"What this service keeps of a network, such as its inputs, outputs and kinds of operators, takes {size} bytes here;"
            f" {INSPECTION_BYTES} are the limit.",
            hint="Give it fewer inputs and outputs, or shorter names.",
        )
    return found


def _parse(path: Path) -> ModelProto:
    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise _foreign(path) or ModelInvalidError("The file is not an ONNX network, or it is truncated.") from error
    if not model.ir_version or not model.HasField("graph") or not model.opset_import:
        raise _foreign(path) or ModelInvalidError(
            "The file is not an ONNX network: it has no graph, or does not say its versions."
        )
    check_text(model)
    if not model.graph.node:
        raise ModelInvalidError("The network has no operators.")
    if not model.graph.output:
        raise ModelInvalidError("The network has no outputs.")
    return model


def _foreign(path: Path) -> ModelInvalidError | None:
    foreign = recognise_broken(path)
    return None if foreign is None else ModelInvalidError(foreign.sentence, hint=foreign.way_out)


def _check_versions(model: ModelProto) -> None:
    if not OLDEST_IR <= model.ir_version <= onnx.IR_VERSION:
        raise ModelUnsupportedError(
            f"The network has IR version {model.ir_version}; {OLDEST_IR} to {onnx.IR_VERSION} are taken."
        )
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain in _STANDARD else entry.domain
        # Some converters write one twice; that says nothing new.
        if versions.setdefault(domain, entry.version) != entry.version:
            raise ModelInvalidError(
                f"The network imports the operator set `{domain or 'ai.onnx'}` twice, as version {versions[domain]} and as"
                f" version {entry.version}.",
                hint="Keep the version that its operators were written for.",
            )
    version = next((entry.version for entry in model.opset_import if entry.domain in _STANDARD), None)
    newest = onnx.defs.onnx_opset_version()
    if version is not None and not OLDEST_OPSET <= version <= newest:
        raise ModelUnsupportedError(
            f"The network uses operator set {version}; {OLDEST_OPSET} to {newest} are taken.",
            hint="Export it again with a newer opset." if version < OLDEST_OPSET else "Export it with an older opset.",
        )


class _Counted:
    """All graphs, nodes and tensors of a network, gathered under the limits; functions are expanded only in numbers."""

    def __init__(self, model: ModelProto) -> None:
        self.graphs: list[GraphProto] = []
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        self.local = {(function.domain, function.name, function.overload): function for function in model.functions}
        if len(self.local) != len(model.functions):
            raise ModelInvalidError("The network defines a function twice.")
        self._expanded: dict[tuple[str, str, str], int] = {}
        self._enter(model.graph, 0)
        for function in model.functions:
            self._collect(function.node, 1)
        main = (node for body in _bodies(model.graph.node) for node in body)
        total = sum(self._cost(node, ()) for node in main)
        if total > NODES:
            raise ModelUnsupportedError(f"The network has more than {NODES} operators once its functions are expanded.")

    def _enter(self, graph: GraphProto, depth: int) -> None:
        if depth > DEPTH:
            raise ModelUnsupportedError(f"The network nests subgraphs more than {DEPTH} deep.")
        self.graphs.append(graph)
        self.tensors.extend(graph.initializer)
        self._collect(graph.node, depth)

    def _collect(self, nodes: Iterable[NodeProto], depth: int) -> None:
        for node in nodes:
            self.nodes.append(node)
            if len(self.nodes) > NODES:
                raise ModelUnsupportedError(f"The network has more than {NODES} operators.")
            for attribute in node.attribute:
                self._collect_attribute(attribute, depth)

    def _collect_attribute(self, attribute: AttributeProto, depth: int) -> None:
        if attribute.HasField("t"):
            self.tensors.append(attribute.t)
        self.tensors.extend(attribute.tensors)
        if attribute.HasField("g"):
            self._enter(attribute.g, depth + 1)
        for graph in attribute.graphs:
            self._enter(graph, depth + 1)

    def _cost(self, node: NodeProto, calls: tuple[tuple[str, str, str], ...]) -> int:
        """Count a node as what it becomes when every function is written out; Python's integers do not overflow."""
        key = (node.domain, node.op_type, node.overload)
        function = self.local.get(key)
        if function is None:
            return 1
        if key in calls:
            raise ModelInvalidError(f"The function `{node.op_type}` calls itself.")
        if len(calls) > DEPTH:
            raise ModelUnsupportedError(f"The network nests functions more than {DEPTH} deep.")
        if key not in self._expanded:
            self._expanded[key] = self._function_cost(function, (*calls, key))
        return self._expanded[key]

    def _function_cost(self, function: FunctionProto, calls: tuple[tuple[str, str, str], ...]) -> int:
        inner = (node for body in _bodies(function.node) for node in body)
        return sum(self._cost(node, calls) for node in inner)


def _bodies(nodes: Iterable[NodeProto]) -> Iterator[list[NodeProto]]:
    """Yield the nodes and those of all subgraphs below them; their depth is limited before."""
    found = list(nodes)
    yield found
    for node in found:
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _bodies(graph.node)


def _check_domains(model: ModelProto, nodes: _Counted) -> None:
    local = {(function.domain, function.name) for function in model.functions}
    imported = {"" if entry.domain in _STANDARD else entry.domain for entry in model.opset_import}
    for node in nodes.nodes:
        if (node.domain, node.op_type) in local:
            continue
        if node.domain not in DOMAINS:
            raise ModelUnsupportedError(
                f"Operator `{node.op_type}` is of the domain `{node.domain}`, which this service does not run.",
                node=node.name or None,
                hint="Only standard ONNX operators and those of com.microsoft are taken.",
            )
        if ("" if node.domain in _STANDARD else node.domain) not in imported:
            raise ModelInvalidError(
                f"Operator `{node.op_type}` is used, but its operator set is not imported.", node=node.name or None
            )


def _check_tensors(graph: GraphProto) -> None:
    for tensor in graph.initializer:
        _check_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            for tensor in (*([attribute.t] if attribute.HasField("t") else ()), *attribute.tensors):
                _check_tensor(tensor, node.name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        _check_static_size(value)


def _check_tensor(tensor: TensorProto, node: str | None = None) -> None:
    name = tensor.name or "of a node"
    if any(size < 0 for size in tensor.dims):
        raise ModelInvalidError(f"The tensor `{name}` has a negative size.", node=node)
    bits = _BITS.get(tensor.data_type)
    wanted = -(-prod(tensor.dims) * (bits or 8) // 8)
    if wanted > TENSOR_BYTES:
        raise ModelUnsupportedError(
            f"The tensor `{name}` takes {wanted} bytes; {TENSOR_BYTES} are the limit.", node=node
        )
    stored_raw = tensor.HasField("raw_data") and tensor.data_location != TensorProto.EXTERNAL
    if stored_raw and bits is not None and len(tensor.raw_data) != wanted:
        raise ModelInvalidError(
            f"The tensor `{name}` holds {len(tensor.raw_data)} bytes, but its shape needs {wanted}.", node=node
        )


def _check_static_size(value: ValueInfoProto) -> None:
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return
    known = [size for size in map(_size, value.type.tensor_type.shape.dim) if isinstance(size, int)]
    if any(size < 0 for size in known):
        raise ModelInvalidError(f"`{value.name}` is declared with a negative size.")
    if prod(known) > TENSOR_BYTES:
        raise ModelUnsupportedError(
            f"`{value.name}` is declared with {prod(known)} elements, more than any host can hold."
        )


def _check_external(nodes: _Counted, folder: Path) -> set[Path]:
    """Give the files of external data; each must lie in the network's own folder and be long enough."""
    files: set[Path] = set()
    for tensor in nodes.tensors:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = PurePosixPath(entries.get("location", ""))
        unsafe = location.is_absolute() or ".." in location.parts or "\\" in str(location) or not location.name
        if unsafe:
            raise ModelInvalidError(f"The tensor `{tensor.name}` names external data outside the network's folder.")
        file = folder / location
        if any(part.is_symlink() for part in (file, *file.parents) if part.is_relative_to(folder) and part != folder):
            raise ModelInvalidError(
                f"The tensor `{tensor.name}` has its data in `{location}`, which is a symbolic link and may lead outside the"
                " network's folder.",
                hint="Copy the network with what the links lead to: `cp -L`.",
            )
        if not file.is_file():
            raise ModelInvalidError(
                f"The tensor `{tensor.name}` has its data in `{location}`, which was not uploaded.",
                hint="Upload a zip with the .onnx file and its external data.",
            )
        _check_extent(tensor, entries, file.stat().st_size)
        files.add(file)
    return files


def _check_extent(tensor: TensorProto, entries: Mapping[str, str], size: int) -> None:
    needed = -(-prod(tensor.dims) * _BITS.get(tensor.data_type, 8) // 8)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(needed)))
    except ValueError as error:
        raise ModelInvalidError(f"The tensor `{tensor.name}` names external data without numbers.") from error
    if offset < 0 or length != needed or offset + length > size:
        raise ModelInvalidError(
            f"The external data of the tensor `{tensor.name}` are too short or not where they should be."
        )


def _check_required_inputs(model: ModelProto, nodes: _Counted) -> None:
    """Refuse nodes that leave out what their operator cannot do without: onnxruntime crashes on some of them."""
    versions = {"" if entry.domain in _STANDARD else entry.domain: entry.version for entry in model.opset_import}
    for node in nodes.nodes:
        domain = "" if node.domain in _STANDARD else node.domain
        if (node.domain, node.op_type, node.overload) in nodes.local or not onnx.defs.has(node.op_type, domain):
            continue
        try:
            schema = onnx.defs.get_schema(node.op_type, versions[domain], domain)
        except onnx.defs.SchemaError as error:
            raise ModelInvalidError(
                f"The operator `{node.op_type}` does not exist in operator set {versions[domain]}.",
                node=node.name or None,
                hint="Export the network again; its operators are of another version than it says.",
            ) from error
        required = onnx.defs.OpSchema.FormalParameterOption.Optional
        for position, parameter in enumerate(schema.inputs):
            if parameter.option == required:
                continue
            given = node.input[position:] if position == len(schema.inputs) - 1 else node.input[position : position + 1]
            variadic = parameter.option == onnx.defs.OpSchema.FormalParameterOption.Variadic
            short = len(given) < (parameter.min_arity if variadic else 1)
            if short or any(not name for name in (given if variadic else given[:1])):
                raise ModelInvalidError(
                    f"A node of type {node.op_type} leaves out its required input `{parameter.name}`.",
                    node=node.name or None,
                )


def _check_names(graph: GraphProto, nodes: _Counted) -> None:
    """Refuse names that nobody can read: each would stand in every list, error and report of the network."""
    for role, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            _check_name(f"An {role}", value.name)
            for axis in value.type.tensor_type.shape.dim:
                _check_name(f"An axis of the {role} `{value.name}`", axis.dim_param)
    for node in nodes.nodes:
        _check_name("An operator", node.name)
        _check_name("A kind of operator", node.op_type)


def _check_name(whose: str, name: str) -> None:
    if len(name) > NAME_LETTERS:
        raise ModelUnsupportedError(
            f"{whose} has a name of {len(name)} letters, `{name[:40]}...`; {NAME_LETTERS} are the limit."
        )


def boundary(graph: GraphProto) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Give the inputs and the outputs that a network declares; raises ModelUnsupportedError for what is not fed or read."""
    stored = {tensor.name for tensor in graph.initializer}
    inputs = tuple(_tensor_info(value, "input") for value in graph.input if value.name not in stored)
    if not inputs:
        raise ModelUnsupportedError("The network has no inputs: it always gives the same.")
    if any(value.name == "label" for value in inputs):
        raise ModelUnsupportedError(
            "An input is called `label`, which datasets keep for labels.", hint="Rename the input of the network."
        )
    return with_cache_sizes(graph, inputs), tuple(_tensor_info(value, "output") for value in graph.output)


def _size(axis: TensorShapeProto.Dimension) -> int | str | None:
    """Give an axis' size, or its name or None where it is open; some exporters write -1 for open."""
    if axis.HasField("dim_value"):
        return None if axis.dim_value == OPEN_SIZE else axis.dim_value
    return axis.dim_param or None


def _tensor_info(value: ValueInfoProto, role: str) -> TensorInfo:
    kind = value.type.tensor_type.elem_type if value.type.HasField("tensor_type") else None
    if kind is None or kind not in _INPUT_TYPES:
        raise ModelUnsupportedError(
            f"The {role} `{value.name}` is {_named_type(value)}, not a tensor of numbers.",
            hint=_numbers_hint(value, role),
        )
    shape: tuple[int | str | None, ...] | None = None
    if value.type.tensor_type.HasField("shape"):
        shape = tuple(map(_size, value.type.tensor_type.shape.dim))
    return TensorInfo(name=value.name, dtype=_INPUT_TYPES[kind], shape=shape)


def _named_type(value: ValueInfoProto) -> str:
    kind = value.type.WhichOneof("value")
    if kind == "tensor_type":
        if value.type.tensor_type.elem_type == TensorProto.STRING:
            return "a tensor of strings"
        return "a tensor of a type that is not taken"
    if kind == "sequence_type":
        inner = value.type.sequence_type.elem_type.WhichOneof("value")
        return "a sequence of maps" if inner == "map_type" else "a sequence"
    return {"map_type": "a map", "optional_type": "an optional value", "sparse_tensor_type": "a sparse tensor"}.get(
        kind or "", "of no declared type"
    )


def _numbers_hint(value: ValueInfoProto, role: str) -> str:
    named = _named_type(value)
    if role == "output" and "map" in named:
        return (
            "Export the classifier so that it gives its probabilities as a tensor: `zipmap: False`, as in"
            " `skl2onnx.to_onnx(model, X[:1], options={'zipmap': False})`."
        )
    if named == "a tensor of strings" and role == "output":
        return (
            "Train the classifier on class numbers instead of names (scikit-learn's LabelEncoder), and export it again."
        )
    if named == "a tensor of strings":
        return "Turn the words into numbers before the network, and export it with numbers as its input."
    return "Sequences, maps and strings are not taken."


def _check_with_onnx(network: Path | bytes, nodes: _Counted) -> tuple[str, ...]:
    """Refuse what onnx's checker does; what is only declared wrongly is a warning."""
    foreign = any(node.domain not in _STANDARD for node in nodes.nodes)
    try:
        # Shape inference stops at operators that onnx has no schema for, and calls that an error in strict mode.
        complaint = checker.check(network, infer=not foreign)
    except onnx.checker.ValidationError as error:
        raise ModelInvalidError(f"The network is not valid ONNX: {_first_line(error)}") from error
    except onnx.shape_inference.InferenceError as error:
        raise ModelInvalidError(f"The network's shapes contradict each other: {_first_line(error)}") from error
    if complaint is None:
        return ()
    return (
        (
            "A shape that the network declares contradicts its operators, which ONNX Runtime goes by; other runtimes may refuse"
            f" the network: {_first_line(complaint)}"
        ),
    )


def _first_line(error: Exception | str) -> str:
    """Give onnx's own sentence: it names operators and tensors of the network, never files of the host."""
    line = next((part for part in str(error).splitlines() if part.strip()), "")
    line = re.sub(r"\[\w+Error\]\s*|Inference error\(s\):\s*", "", line).strip().rstrip(".")
    return f"{line[:300]}." if "/" not in line or "Bad node spec" in line else "onnx's checker refuses it."


def _quantized(nodes: _Counted) -> Literal["none", "partly", "fully"]:
    if not any(is_quantized(kind) for kind in {node.op_type for node in nodes.nodes}):
        return "none"
    floats = {tensor.name for tensor in nodes.tensors if tensor.data_type in _FLOATS}
    in_float = any(
        len(node.input) > _WEIGHTED[node.op_type] and node.input[_WEIGHTED[node.op_type]] in floats
        for node in nodes.nodes
        if node.op_type in _WEIGHTED
    )
    return "partly" if in_float else "fully"


def _float_type(tensors: list[TensorProto]) -> Literal["float32", "float16", "bfloat16", "float64", "none"]:
    counted: Counter[int] = Counter()
    for tensor in tensors:
        if tensor.data_type in _FLOATS:
            counted[tensor.data_type] += prod(tensor.dims)
    return _FLOATS[counted.most_common(1)[0][0]] if counted else "none"


def _warnings(model: ModelProto, nodes: _Counted) -> Iterator[str]:
    stored = {tensor.name for tensor in model.graph.initializer}
    shadowed = [value.name for value in model.graph.input if value.name in stored]
    if shadowed:
        yield f"{len(shadowed)} weights are also inputs, as old exporters write them; every pass takes them for constants."
    if model.training_info:
        yield "The network carries training information, which is dropped."
    control = sorted({node.op_type for node in nodes.nodes} & {"If", "Loop", "Scan"})
    if control:
        yield f"The network holds {', '.join(control)}: passes leave the inside of their bodies alone."


def _shared_names(model: ModelProto, nodes: _Counted, path: Path | None) -> Iterator[str]:
    """Warn of operators that share a name; with a path, write the network anew in which they do not."""
    renamed = tell_apart(nodes.nodes)
    if not renamed:
        return
    if path is not None:
        _replace(path, model)
    yield (
        f"{renamed} operators share their name with an earlier one; they are told apart by a number behind it, as in `conv`,"
        " `conv_2`."
    )


def _replace(path: Path, model: ModelProto) -> None:
    """Put a network in a file's place: that may be shared with whoever stored it, so it is never written into."""
    mended = path.with_name(f"{path.name}.mended")
    mended.write_bytes(model.SerializeToString())
    mended.rename(path)
