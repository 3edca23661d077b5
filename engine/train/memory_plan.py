"""How many samples a training may hold at once, planned from the graph and the job's memory limit, before it begins."""

from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from engine.data.batches import sample_bytes
from engine.errors import ModelUnsupportedError
from engine.graph import io, sizes
from engine.graph.activations import live_bytes
from engine.report.values import Refusal
from engine.train.batches import Feed

# Of each weight: itself, its gradient, two moments, its moving average, and the copy that a short trial begins with.
_COPIES = 6
# Judging writes a network, and loads it: the bytes of a model some times over.
_JUDGED_COPIES = 3
# The teacher's weights in a session.
_TEACHER_COPIES = 2
# What is computed forward is kept for the way back, where each tensor has a gradient beside it for a while, and kernels lay
# out copies of what they read.
_KEPT = 2.0
# A runtime's arena, of what is alive in it at once.
_ARENA = 3
# Of what the limit leaves.
_USED = 0.9
# What the runtime and the framework take when they begin to work.
_WORKSPACE = 64 << 20


@dataclass(frozen=True)
class MemoryPlan:
    """How a batch is cut. Bytes are what is expected of the training beside what the process takes already.

    `micro`: samples that run at once; the gradients of a batch are added up over its parts.
    """

    batch: int
    micro: int
    fixed_bytes: int
    sample_bytes: int

    @property
    def parts(self) -> int:
        """Give how many parts a batch has."""
        return -(-self.batch // self.micro)


def plan(
    student: ir.Model,
    teacher: ir.Model,
    *,
    trained_bytes: int,
    feed: Feed,
    batch: int,
    limit: int | None,
    fixed: int | None = None,
) -> MemoryPlan | Refusal:
    """Plan a training, or refuse it where one sample (or the network's fixed batch) is too many.

    Args:
        student: the network that is trained.
        teacher: the network that is asked.
        trained_bytes: bytes of the weights that are trained, as 32-bit floats.
        feed: one of its feeds with one sample (or the fixed batch).
        batch: samples in a step.
        limit: bytes that the process may take; None: any.
        fixed: how many samples the network takes at a time and no other number.
    """
    at_least = fixed or 1
    weights = _COPIES * trained_bytes + _JUDGED_COPIES * io.weight_bytes(student)
    constant = weights + _TEACHER_COPIES * io.weight_bytes(teacher) + _WORKSPACE
    each = -(-(_training_bytes(student, feed) + _ARENA * (live_bytes(teacher, feed) or 0)) // at_least)
    if limit is None:
        return MemoryPlan(batch, fixed or batch, constant, each)
    left = int(_USED * (limit - resident_bytes())) - constant
    if left < each * at_least:
        return _refusal(constant, each * at_least, limit, at_least)
    affordable = left // max(each, 1)
    return MemoryPlan(batch, fixed or max(1, min(batch, affordable)), constant, each)


def within_device(found: MemoryPlan, room: int) -> MemoryPlan | Refusal:
    """Cut a plan down to what is free on the GPU that holds weights and activations."""
    affordable = (int(_USED * room) - found.fixed_bytes) // max(found.sample_bytes, 1)
    if affordable < min(found.micro, 1):
        needed = round((found.fixed_bytes + found.sample_bytes) / _USED)
        return Refusal(
            code="too_large",
            reason=(
                f"Training takes about {_mebibytes(needed)} MiB of the GPU's memory even with one sample at a time;"
                f" {_mebibytes(room)} are free."
            ),
            hint="Prune more before, train an uploaded smaller student, or use a worker whose GPU has more memory.",
        )
    return replace(found, micro=min(found.micro, affordable))


def resident_bytes() -> int:
    """Give what the process takes now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    return 0


def _training_bytes(model: ir.Model, feed: Feed) -> int:
    """Give the bytes of all that one run computes and the way back needs."""
    try:
        found = sizes.of_feed(model, {name: array.shape for name, array in feed.items()})
    except ModelUnsupportedError:
        return 0
    total = sample_bytes(feed)
    for node in model.graph:
        for value in node.outputs:
            port = found.port(value)
            if port is not None:
                total += round(sizes.elements(port[1]) * ir.DataType(port[0]).itemsize)
    return round(_KEPT * total)


def _refusal(constant: int, each: int, limit: int, samples: int) -> Refusal:
    taken = resident_bytes()
    needed = round(taken + (constant + each) / _USED)
    noun = "one sample" if samples == 1 else f"{samples} samples"
    return Refusal(
        code="too_large",
        reason=(
            f"Training takes about {_mebibytes(needed)} MiB even with {noun} at a time: {_mebibytes(constant)} for weights,"
            f" gradients and the optimizer's moments, {_mebibytes(each)} for activations, beside {_mebibytes(taken)} that the job"
            f" holds already; its max_memory_mb is {_mebibytes(limit)}."
        ),
        hint=f"Set max_memory_mb to {_mebibytes(needed)} or more, prune more before, or train an uploaded smaller student.",
    )


def _mebibytes(size: int) -> int:
    return -(-size >> 20)
