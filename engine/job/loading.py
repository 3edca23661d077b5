"""How to load the network that a job has made."""

from pathlib import Path

import onnx
from onnx import defs

from engine.graph.validate import boundary
from engine.report.runtime_releases import first_release
from engine.report.usage import provider_name, usage
from engine.report.values import Loading, Tuning
from engine.runtime.environment import environment
from engine.runtime.network_files import load_structure
from engine.runtime.sessions import default_options
from engine.target import Target

_STANDARD = ("", "ai.onnx", "ai.onnx.ml")


def loading(path: Path, target: Target, tuning: Tuning | None) -> Loading:
    """Say what loads a stored network as it was measured: with the options that `tuning` has found, else the target's own."""
    model = load_structure(path)
    chosen = tuning.chosen if tuning is not None else None
    options = chosen or default_options(target)
    inputs, outputs = boundary(model.graph)
    opset = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    used = _operators(model)
    opset = {domain: version for domain, version in opset.items() if domain == "" or domain in used}
    return Loading(
        provider=provider_name(target),
        options=options,
        tuned=chosen is not None,
        opset=opset,
        ir_version=model.ir_version,
        onnxruntime=first_release(opset, model.ir_version),
        measured_with=environment(target).onnxruntime,
        beyond_onnx=tuple(sorted(set().union(*(kinds for domain, kinds in used.items() if domain not in _STANDARD)))),
        inputs=inputs,
        outputs=outputs,
        usage=usage(target, options),
    )


def _operators(model: onnx.ModelProto) -> dict[str, set[str]]:
    """Give the operators of each domain, those of subgraphs and functions included."""
    found: dict[str, set[str]] = {}
    stack = [model.graph.node, *(function.node for function in model.functions)]
    while stack:
        for node in stack.pop():
            found.setdefault("" if node.domain == "ai.onnx" else node.domain, set()).add(node.op_type)
            for attribute in node.attribute:
                stack += [graph.node for graph in (attribute.g, *attribute.graphs) if graph.node]
    for function in model.functions:
        found.pop(function.domain, None)
    # Operators that only ONNX Runtime knows may stand in the standard domain too.
    for kind in [kind for kind in found.get("", ()) if not defs.has(kind)]:
        found[""].discard(kind)
        found.setdefault("com.microsoft", set()).add(kind)
    return found
