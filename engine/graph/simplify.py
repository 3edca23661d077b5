"""The work of the `simplify` pass: stages that must not change what the network computes, each checked by running both."""

import contextlib
import io as textio
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from engine.contract import Context
from engine.errors import EngineError, VerificationFailedError
from engine.graph import checker, io, verify
from engine.graph.declaration import Declaration, undeclared
from engine.graph.fixed_sizes import use_fixed_sizes
from engine.graph.merging import merged
from engine.graph.self_difference import SelfDifferences
from engine.graph.slimming import slim
from engine.graph.spatial_mean import use_global_average_pool
from engine.graph.tree_ensembles import holds_ensembles, shorten, to_version_5, why_kept
from engine.report.detail_parts import CountChange
from engine.report.graph_details import DroppedStage, SimplifyDetails
from engine.report.values import Change, Refusal
from engine.runtime import heap

# What onnxscript and onnxslim raise on networks that they cannot handle: a stage of theirs is then dropped and named in the
# report. Our own stages fail in no such way.
_LIBRARY_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError,
    onnx.checker.ValidationError, onnx.shape_inference.InferenceError,
)  # fmt: skip
# How a stage's result turns out not to be a network that runs.
_BROKEN_RESULT = (
    EngineError, ir.serde.SerdeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError,
)  # fmt: skip
# Samples that a stage is verified on one by one, beside those of other sizes; the host's lock is held meanwhile.
_SINGLES = 6
_SHORTER_TREES, _NEW_TREES = "shorter tree ensembles", "tree ensembles of ai.onnx.ml 5"
_UNUSED = "unused nodes and weights"
_OF_TREES = frozenset({_SHORTER_TREES, _NEW_TREES})
# Of the file: what only exporters care for is worth a step where it is more.
_WORTHWHILE = 0.01
_CONTROL_FLOW = frozenset({"If", "Loop"})
_CONTROL_FLOW_STAGE, _FOLDING, _FOLDING_ALONE = "control flow", "constant folding and fusion", "constant folding"


def simplify(model: ir.Model, context: Context) -> Change | Refusal:
    """Simplify in place; the best stages in the best order, without those that broke something."""
    before, stored = _counts(model), io.weight_bytes(model)
    reference = io.to_bytes(model)
    with context.working():
        own = SelfDifferences(reference, context.untimed)
        # What the whole is verified on: a stage that fails at another size shall not take all others with it.
        feeds = (
            [] if context.calibration is None else verify.several_sizes(own.reference, context.calibration, _SINGLES)
        )
    helped: list[str] = []
    dropped: list[DroppedStage] = []
    stages, trees = list(_stages(model)), 0
    for position, (name, stage) in enumerate(stages):
        context.progress(position / len(stages), name)
        heap.give_back(stored)
        attempt, reason = _attempt(model, (name, stage), (reference, own), feeds, context)
        if attempt is None:
            dropped.append(DroppedStage(stage=name, reason=reason))
            if name == _FOLDING and stages[0][0] != _CONTROL_FLOW_STAGE:
                # The other library folds less, and may fold right what this one does not.
                stages.insert(position + 1, (_FOLDING_ALONE, _fold_by_sizes))
        elif _has_helped(name, model, attempt):
            trees += _saved(model, attempt) if name in _OF_TREES else 0
            _replace(model, attempt)
            helped.append(name)
    if holds_ensembles(model) and not _OF_TREES & set(helped):
        dropped.append(DroppedStage(stage=_SHORTER_TREES, reason=why_kept(model)))
    io.strip(model)
    after = _counts(model)
    details = SimplifyDetails(
        nodes=CountChange(before=sum(before.values()), after=sum(after.values())),
        ops={
            kind: CountChange(before=before.get(kind, 0), after=after.get(kind, 0))
            for kind in sorted(before.keys() | after.keys())
            if before.get(kind, 0) != after.get(kind, 0)
        },
        stages=tuple(helped),
        dropped_stages=tuple(dropped),
    )
    if helped:
        summary = _summary(before, after, grown=io.weight_bytes(model) - stored, trees=trees)
    elif (gone := len(reference) - len(io.to_bytes(merged(model)))) >= _WORTHWHILE * len(reference):
        summary = f"What no run reads, or was stored more than once, is gone: {gone} bytes. The operators are the same."
    else:
        return Refusal(code="no_gain", reason=_why_nothing(dropped), details=details)
    return Change(summary=summary, details=details, lossless=True)


def _why_nothing(dropped: Sequence[DroppedStage]) -> str:
    failed = "; ".join(f"{each.stage} was dropped, because {each.reason}" for each in dropped)
    return f"Nothing was simplified: {failed}." if failed else "The network is as simple as it gets."


Stage = Callable[[ir.Model], ir.Model]


class _LibraryFailedError(Exception):
    """A library gave up on a network; the cause is what it raised."""


def _stages(model: ir.Model) -> Iterator[tuple[str, Stage]]:
    if any(node.op_type in _CONTROL_FLOW for node in model.graph.all_nodes()) or model.functions:
        yield _CONTROL_FLOW_STAGE, _onnxscript
    yield _FOLDING, _onnxslim
    yield "batch normalisation", _fold_batch_norms
    yield "spatial means", use_global_average_pool
    if holds_ensembles(model):
        yield _SHORTER_TREES, shorten
        yield _NEW_TREES, to_version_5
    yield _UNUSED, _remove_unused


def _attempt(
    model: ir.Model,
    named: tuple[str, Stage],
    reference: tuple[bytes, SelfDifferences],
    feeds: Sequence[verify.Feed],
    context: Context,
) -> tuple[ir.Model | None, str]:
    """Run a stage on a copy; give None and the reason unless the result computes the same, where it is of any use."""
    name, stage = named
    try:
        with context.working(), _silent():
            changed = stage(undeclared(io.copy(model)))
        Declaration.of(model).restore(changed)
        if not _has_helped(name, model, changed):
            return changed, ""
        serialized = io.to_bytes(changed)
        checker.check(serialized, infer=False)
        with context.working():
            found = verify.same_outputs(reference[0], serialized, feeds, context.untimed, reference[1])
    except _LibraryFailedError as error:
        return None, f"the library that does it failed ({type(error.__cause__).__name__})"
    except VerificationFailedError as error:
        return None, f"it broke what the network promises: {error.message.rstrip('.')}"
    except _BROKEN_RESULT as error:
        return None, f"its result does not run ({type(error).__name__})"
    if found.relative > verify.FLOAT_TOLERANCE:
        return None, f"it moved the outputs by {found.relative:.1e} of their largest value"
    return changed, ""


def _has_helped(stage: str, before: ir.Model, after: ir.Model) -> bool:
    """Say whether a stage changed anything for the better; those of trees rewrite lists inside nodes."""
    if stage in _OF_TREES:
        return _saved(before, after) > 0
    if stage == _FOLDING_ALONE:
        # It also writes operators otherwise that are as many as before.
        return sum(_counts(after).values()) < sum(_counts(before).values())
    if stage == _UNUSED and io.weight_bytes(after) < io.weight_bytes(before):
        return True
    return _counts(after) != _counts(before)


def _saved(before: ir.Model, after: ir.Model) -> int:
    return len(io.to_bytes(before)) - len(io.to_bytes(after))


def _onnxscript(model: ir.Model) -> ir.Model:
    with _library():
        import onnxscript.optimizer  # noqa: PLC0415  # few networks have control flow, and all would wait for it
        import onnxscript.rewriter  # noqa: PLC0415

        optimised: ir.Model = onnxscript.optimizer.optimize(model)
        rewritten: ir.Model = onnxscript.rewriter.rewrite(optimised)
    return rewritten


def _fold_by_sizes(model: ir.Model) -> ir.Model:
    """Fold constants, and what is computed from sizes of axes that are fixed where those of others, such as the batch, are not.

    What the file says of tensors inside is not believed.
    """
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    with _library():
        import onnxscript.optimizer  # noqa: PLC0415  # only where the other library has failed

        folded: ir.Model = onnxscript.optimizer.optimize(model)
        if use_fixed_sizes(folded):
            folded = onnxscript.optimizer.optimize(folded)
    # It folds what the other one leaves, such as tensors of one value; what it took shapes for was wrong.
    return _slim(folded, infer_shapes=False)


def _onnxslim(model: ir.Model) -> ir.Model:
    return _slim(model)


def _slim(model: ir.Model, *, infer_shapes: bool = True) -> ir.Model:
    serialized = ir.to_proto(model)
    declared = [each.SerializeToString() for each in serialized.graph.input]
    with _library():
        slimmed = slim(serialized, infer_shapes=infer_shapes)
    _keep_inputs(slimmed, declared)
    return ir.from_proto(slimmed)


def _keep_inputs(model: onnx.ModelProto, declared: Sequence[bytes]) -> None:
    """Put inputs that nothing reads back in their places: whoever runs the network gives them."""
    inputs = [onnx.ValueInfoProto.FromString(each) for each in declared]
    kept = {each.name for each in model.graph.input}
    if any(each.name not in kept for each in inputs):
        stored = {tensor.name for tensor in model.graph.initializer}
        del model.graph.input[:]
        model.graph.input.extend(each for each in inputs if each.name not in stored)


def _fold_batch_norms(model: ir.Model) -> ir.Model:
    """Fold BatchNormalization into the convolution before it: W' = W * g / sqrt(v + e), b' = (b - m) * g / sqrt(v + e) + B."""
    taken = io.value_names(model)
    for graph in model.graphs():
        for node in list(graph):
            if node.op_type == "BatchNormalization" and len(node.outputs) == 1:
                _fold_batch_norm(graph, node, taken)
    return model


def _fold_batch_norm(graph: ir.Graph, norm: ir.Node, taken: set[str]) -> None:
    source = norm.inputs[0]
    conv = source.producer() if source is not None else None
    if source is None or conv is None or conv.op_type != "Conv" or len(source.uses()) != 1 or source.is_graph_output():
        return
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    operands = [_constant(value) for value in (conv.inputs[1], *norm.inputs[1:5])]
    if any(array is None for array in operands) or (bias is not None and _constant(bias) is None):
        return
    weight, gamma, beta, mean, variance = (np.asarray(array, dtype=np.float64) for array in operands)
    epsilon = norm.attributes.get("epsilon")
    factor = gamma / np.sqrt(variance + (epsilon.as_float() if epsilon is not None else 1e-5))
    shift = np.zeros_like(mean) if bias is None else np.asarray(_constant(bias), dtype=np.float64)
    folded = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    for index, array in ((1, folded), (2, (shift - mean) * factor + beta)):
        name = io.unused_name(taken, "fold")
        tensor = ir.tensor(array.astype(np.float32), name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        graph.register_initializer(value)
        if len(conv.inputs) <= index:
            conv.resize_inputs(index + 1)
        conv.replace_input_with(index, value)
    output = norm.outputs[0]
    ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=True)
    inherited, output.name = output.name, io.unused_name(taken, "was")
    graph.remove(norm, safe=True)
    source.name, source.type, source.shape = inherited, output.type, output.shape


def _remove_unused(model: ir.Model) -> ir.Model:
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    return model


def _constant(value: ir.Value | None) -> Any:
    if value is None or not value.is_initializer() or value.is_graph_input() or value.const_value is None:
        return None
    return value.const_value.numpy() if value.const_value.dtype == ir.DataType.FLOAT else None


def _replace(model: ir.Model, other: ir.Model) -> None:
    model.graph = other.graph
    model.ir_version = other.ir_version
    model.functions.clear()
    model.functions.update(other.functions)
    # The imports of opsets live in the graph that was just replaced.


def _counts(model: ir.Model) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in model.graph.all_nodes():
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def _summary(
    before: dict[str, int],
    after: dict[str, int],
    *,
    grown: int,
    trees: int,
) -> str:
    """Say what changed, operators by operators where their number did not; `grown`: bytes of constants, `trees`: saved ones."""
    was, now = sum(before.values()), sum(after.values())
    told = []
    if was != now:
        told.append(f"{was} operators became {now}")
    elif before != after:
        gone, come = (_listed(one, other) for one, other in ((before, after), (after, before)))
        told.append(f"{gone} became {come}, {now} operator{'s' * (now != 1)} as before")
    if trees:
        told.append(f"tree ensembles take {trees} bytes less")
    elif grown < 0 and not told:
        told.append(f"{-grown} bytes of weights that nothing reads are gone")
    elif grown > 0:
        told.append(f"constants that were computed in every run are stored and take {grown} bytes more")
    text = "; ".join(told) or "the operators are the same, their constants are not"
    return f"{text[0].upper()}{text[1:]}."


def _listed(one: dict[str, int], other: dict[str, int]) -> str:
    """List the operators of which one network has more."""
    more = {kind: count - other.get(kind, 0) for kind, count in one.items() if count > other.get(kind, 0)}
    return " and ".join(f"{count} {kind}" for kind, count in sorted(more.items()))


@contextlib.contextmanager
def _library() -> Iterator[None]:
    try:
        yield
    except _LIBRARY_ERRORS as error:
        raise _LibraryFailedError from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the libraries' prints, warnings and log lines away from the job's output."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(textio.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
