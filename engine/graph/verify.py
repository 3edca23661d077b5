"""The ladder that every network climbs before a user may see it: valid, loads, runs at several sizes, computes the same.

Two networks are compared output by output, by the largest difference as a share of that output's largest value. Integer kernels
round differently from the float operators that they replace, so there the signal-to-noise ratio counts instead. Where a network
decides by the data how many rows an output has, rows are compared as sets. What the original itself differs by is no fault of a
change.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from engine.contract import Samples
from engine.data.batches import Alone, padded, run_size
from engine.errors import EngineError, VerificationFailedError
from engine.graph import checker, io, quantized
from engine.graph.agreement import Agreement, Remembered, agreement, family
from engine.graph.pieces import Pieces
from engine.graph.self_difference import SelfDifferences
from engine.runtime import sessions
from engine.runtime.sessions import ModelSource, Port, Session
from engine.target import Target

# Of float networks: fused kernels sum in another order.
FLOAT_TOLERANCE = 1e-4
# Of networks that compute in 16-bit floats: fused kernels round less often.
HALF_TOLERANCE = 2e-2
# Of quantized networks with and without ONNX Runtime's optimisation: one rounding step in places, never a saturated sum.
INTEGER_SQNR_DB = 15.0
# Integers that may change where near ties are rounded otherwise, as a share.
_INTEGERS_CHANGED = 0.25
_SAMPLES = 8
# Of these, so many seconds of one network's runs, but at least so many samples.
_SECONDS, _FEWEST = 1.0, 2
# Each run in pieces reads all weights anew.
_PIECEWISE_SAMPLES = 2
_STANDARD = frozenset({"", "ai.onnx"})

Feed = Mapping[str, npt.NDArray[Any]]
# A whole network in memory, or one that runs in pieces.
Runnable = Session | Pieces


@dataclass(frozen=True)
class _Boundary:
    """What goes into a network and comes out."""

    inputs: Sequence[Port]
    outputs: Sequence[Port]

    @classmethod
    def of(cls, network: Runnable) -> "_Boundary":
        return cls(network.inputs, network.outputs)


def verify(
    candidate: Path,
    original: Path,
    samples: Samples,
    target: Target,
    *,
    lossless: bool,
    in_pieces: bool = False,
    own: SelfDifferences | None = None,
) -> Agreement:
    """Climb the ladder; raises VerificationFailedError at the first broken rung, gives the agreement with the original.

    `in_pieces`: on fewer samples, without ever loading a whole network. `own`: what is known of the original's differences
    from itself. Products of float32 numbers are computed as such, also where the target rounds them to fewer bits: that is none
    of a change.
    """
    valid(candidate, original)
    own = own or SelfDifferences(original, target, in_pieces=in_pieces)
    target = sessions.exact_target(target)
    load: Callable[..., Runnable] = Pieces if in_pieces else sessions.session
    # One network is loaded at a time; what each says is kept.
    original_says, candidate_says = own.reference, Remembered(lambda: load(candidate, target))
    boundary = _Boundary.of(original_says.network)
    feeds = several_sizes(original_says, samples, _PIECEWISE_SAMPLES if in_pieces else _SAMPLES)
    original_says.hear(feeds)
    _same_boundary(_Boundary.of(candidate_says.network), boundary)
    try:
        candidate_says.hear(feeds)
        with_and_without = agreement(load(candidate, target, optimise=False), candidate_says, feeds, own.rows_may_swap)
        to_original = agreement(original_says, candidate_says, feeds, own.rows_may_swap)
    except EngineError as error:
        if isinstance(error, VerificationFailedError):
            raise
        raise VerificationFailedError(
            f"The network does not run where the original does: {error.message}", node=error.node
        ) from error
    if is_quantized(candidate):
        _refuse_wrong_kernels(with_and_without, own, feeds)
    else:
        allowed = HALF_TOLERANCE if computes_in_half(candidate) else FLOAT_TOLERANCE
        _refuse_unstable(own.excuse(with_and_without, allowed, feeds), allowed)
    if lossless:
        _refuse_moved(own.excuse(to_original, FLOAT_TOLERANCE, feeds))
    own.forget()
    return to_original


def _refuse_wrong_kernels(found: Agreement, own: SelfDifferences, feeds: Sequence[Feed]) -> None:
    # What draws random numbers says nothing twice, in floats neither.
    if found.sqnr_db < INTEGER_SQNR_DB and own.excuse(found, FLOAT_TOLERANCE, feeds).outputs[found.noisiest].moved:
        raise VerificationFailedError(
            "ONNX Runtime's integer kernels give something else than the network says: output"
            f" `{found.noisiest}` has {found.sqnr_db:.1f} dB, at least {INTEGER_SQNR_DB:.0f} dB are required."
        )
    for name, each in found.outputs.items():
        if not each.is_float and each.relative > _INTEGERS_CHANGED:
            raise VerificationFailedError(
                f"ONNX Runtime's integer kernels give something else than the network says: {each.relative:.0%} of the"
                f" integers in output `{name}` differ."
            )


def _refuse_unstable(found: Agreement, allowed: float) -> None:
    if found.relative > allowed:
        raise VerificationFailedError(
            f"Output `{found.worst}` is {found.relative:.2e} of its largest value different when ONNX Runtime optimises the"
            f" network; {found.allowed(allowed):.0e} are allowed."
        )


def _refuse_moved(found: Agreement) -> None:
    if found.relative > FLOAT_TOLERANCE:
        raise VerificationFailedError(
            f"Output `{found.worst}` moved by {found.relative:.2e} of its largest value; a lossless step may move it by"
            f" {found.allowed(FLOAT_TOLERANCE):.0e}."
        )


def valid(path: Path, original: Path | None = None) -> None:
    """Raise VerificationFailedError unless onnx's checker, and shape inference where it knows all operators, accept a file.

    `original`: where shapes that it declares itself are wrong, the file's may be too.
    """
    try:
        complaint = checker.check(path, infer=_known(path))
        if complaint is None:
            return
        if original is not None and checker.blames_original(path, original, infer=_known(original)):
            return
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        complaint = str(error)
    raise VerificationFailedError(f"The network is not valid ONNX any more: {complaint.splitlines()[0]}")


def _known(path: Path) -> bool:
    structure = onnx.load(path, load_external_data=False)
    return all(entry.domain in _STANDARD for entry in structure.opset_import)


def same_outputs(
    before: ModelSource,
    after: ModelSource,
    feeds: Sequence[Feed],
    target: Target,
    own: SelfDifferences | None = None,
) -> Agreement:
    """Compare two stored or serialized networks, and where they differ, beside what the first differs by from itself.

    `own`: what is known of that. It keeps what the first network said of these feeds for the next comparison.
    """
    own = own or SelfDifferences(before, target)
    own.reference.hear(feeds)
    candidate = sessions.session(after, sessions.exact_target(target))
    return own.excuse(agreement(own.reference, candidate, feeds, own.rows_may_swap), FLOAT_TOLERANCE, feeds)


def some_feeds(model_inputs: Runnable | _Boundary, samples: Samples, count: int = _SAMPLES) -> list[Feed]:
    """Give a few samples one by one, or in batches of the network's fixed size."""
    size = run_size([port.shape for port in model_inputs.inputs], samples) or 1
    return [padded(feed, size) for feed in islice(samples.batches(size), count)]


def is_quantized(path: Path) -> bool:
    """Say whether a stored network holds quantized tensors."""
    return quantized.first_quantized(io.load(path)) is not None


def computes_in_half(path: Path) -> bool:
    """Say whether a stored network computes in 16-bit floats, and does not only store weights in them."""
    halves = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    model = io.load(path)
    stored = (
        use.node.op_type not in {"Cast", "Gather"}
        for _, value in io.initializers(model)
        if value.dtype in halves
        for use in value.uses()
    )
    casts = (node.attributes["to"].as_int() in halves for node in model.graph.all_nodes() if node.op_type == "Cast")
    return any(stored) or any(casts)


def _same_boundary(candidate: _Boundary, original: _Boundary) -> None:
    for role, left, right in (
        ("inputs", original.inputs, candidate.inputs),
        ("outputs", original.outputs, candidate.outputs),
    ):
        # A network that computes in 16 bits may be asked to take and give them.
        before, after = ([(port.name, family(port.dtype)) for port in ports] for ports in (left, right))
        if before != after:
            was, now = (", ".join(f"`{name}` ({kind})" for name, kind in each) for each in (before, after))
            raise VerificationFailedError(f"The network's {role} changed: {was} became {now}.")


def affordable(network: Remembered[Any], feeds: Sequence[Feed]) -> Sequence[Feed]:
    """Give the first of some feeds: as many as the network runs in about a second, and two in any case.

    The time of a run is rounded to a power of two, so that the same job is looked at on as many again.
    """
    if len(feeds) <= _FEWEST:
        return feeds
    started = time.perf_counter()
    network.run(feeds[0])
    seconds = 2.0 ** round(log2(max(time.perf_counter() - started, 1e-6)))
    return feeds[: max(_FEWEST, int(_SECONDS / seconds))]


def several_sizes(says: Remembered[Any], samples: Samples, count: int = _SAMPLES) -> list[Feed]:
    """Give what a network is verified on: single samples, then where it leaves that open a batch of two, and another spatial size."""
    return list(_sizes(_Boundary.of(says.network), says, samples, count))


def _sizes(boundary: _Boundary, says: Remembered[Any], samples: Samples, count: int) -> Iterator[Feed]:
    singles = affordable(says, some_feeds(boundary, samples, count))
    yield from singles
    open_batch = run_size([port.shape for port in boundary.inputs], samples) is None
    if open_batch and len(samples) > 1:
        yield next(iter(samples.batches(2)))
    larger = _resized(boundary, singles[0])
    if larger is not None:
        try:
            says.run(larger)
        except EngineError:
            return  # The original cannot do it either: its open axes are tied to something inside.
        yield larger


def _resized(boundary: _Boundary, feed: Feed) -> Feed | None:
    """Make one sample half as large again along every open axis behind the batch; None where there is none."""
    grown: dict[str, npt.NDArray[Any]] = dict(feed)
    changed = False
    batch = -1 if isinstance(feed, Alone) else 0
    for port in boundary.inputs:
        array = grown[port.name]
        for axis, size in enumerate(port.shape):
            if axis > batch and not isinstance(size, int) and array.shape[axis] > 1:
                extra = (array.shape[axis] + 1) // 2
                # Repeating from the start keeps values such as token ids within what the network knows.
                array = np.concatenate([array, np.take(array, np.arange(extra), axis=axis)], axis=axis)
                changed = True
        grown[port.name] = array
    return grown if changed else None
