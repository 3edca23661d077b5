"""What the parts of a search work with: the prepared network, its architecture, samples to fit and to choose by, the evaluation.

Nothing here leads to the samples that judge: a search sees those once, in its final report.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Self

import onnx_ir as ir

from engine.contract import Context, Labels
from engine.data.batches import padded, run_size
from engine.data.subsets import First
from engine.errors import BaselineFailedError, EngineError, ModelInvalidError, ModelUnsupportedError
from engine.graph import io, macs, verify
from engine.graph.pieces import memory_to_load
from engine.graph.self_difference import SelfDifferences
from engine.graph.validate import inspect_model
from engine.inspection import Inspection
from engine.job.data import JobData, Parts
from engine.job.feeding import settle_feeding
from engine.job.frame import Frame
from engine.job.workbench import Workbench, open_network, run_bytes
from engine.job.workspace import declared_outputs, open_dataset
from engine.measure.decoding import decoding_feeds
from engine.measure.gates import labelled_output
from engine.measure.quality import Evaluator
from engine.report.values import Change
from engine.runtime.sessions import Feed, Session, untimed_target
from engine.search import candidate
from engine.search.architecture import Architecture
from engine.spec import Search

# A candidate is evaluated on as many samples as this many multiply-accumulates run, within bounds. By arithmetic and not by time:
# all workers have to choose by the same samples.
_MACS = 100_000_000_000
_FEWEST, _MOST = 256, 4096
# The same of the samples that candidates are fitted to while many are looked at.
_FIT_MACS, _FEWEST_FIT, _MOST_FIT = 60_000_000_000, 64, 512
# How long kinds of kernels race that a pass chooses from, for one candidate of many.
_BRIEF_RACE_S = 0.5
_FEEDS = 8


@dataclass(frozen=True)
class SearchBench:
    """Opened once for any number of candidates of one network; `close()` (or `with`) when they are done.

    `original` and `prepared` are files: the network as it was given, and simplified and fused as all recipes begin with it.
    """

    spec: Search
    frame: Frame
    architecture: Architecture
    original: Path
    prepared: Path
    workbench: Workbench
    # The same with as many samples to fit to, and races as long, as a candidate of many is worth.
    brief: Workbench
    # On some of the samples to choose by, and on all of them; one and the same where there are few.
    evaluator: Evaluator
    careful: Evaluator
    # One for each run, of the target's batch; of a decoder the writing of a token.
    feeds: tuple[Feed, ...]
    own: SelfDifferences

    @classmethod
    def open(cls, spec: Search, frame: Frame) -> Self:
        """Open a workspace: `model/model.onnx`, and where there are data `data`; what judges is not looked at.

        Raises:
            EngineError: the network cannot be searched, or its data do not fit.
        """
        limit = spec.limits.max_memory_mb
        if memory_to_load(frame.model) > limit << 20:
            raise ModelUnsupportedError(
                f"The network does not fit into max_memory_mb ({limit}), and a search holds several at a time.",
                hint="Raise `limits.max_memory_mb`, or name a recipe: weights are quantized one tensor at a time.",
            )
        inspection = inspect_model(frame.model, mend=True)
        data = _without_judge(frame)
        parts = data.parted(inspection.inputs, frame.scratch, shapes=spec.target.shapes)
        untimed = untimed_target(spec.target)
        try:
            original = open_network(frame.model, untimed, in_pieces=False)
            assert isinstance(original, Session)
            parts, alone = settle_feeding(original, parts, inspection.inputs)
            if alone is not None:
                frame.warn(alone)
            few, every = _evaluators(spec, frame, data, parts, original)
        except (ModelInvalidError, ModelUnsupportedError) as error:
            said = f"The original network does not run: {error.message}"
            raise BaselineFailedError(said, node=error.node, hint=error.hint) from error
        feeds = _feeds(spec, parts, inspection)
        own = SelfDifferences(frame.model, untimed)
        workbench = _workbench(spec, frame, data, parts, evaluator=every, feeds=_racing(original, feeds, inspection))
        brief = _brief(workbench, _affordable(io.load(frame.model), _FIT_MACS, _FEWEST_FIT, _MOST_FIT))
        del original
        prepared = _prepared(frame, workbench, own)
        architecture = Architecture.of(io.load(prepared), spec.space, spec.target, has_data=parts.calibrate is not None)
        return cls(
            spec=spec,
            frame=frame,
            architecture=architecture,
            original=frame.model,
            prepared=prepared,
            workbench=workbench,
            brief=brief,
            evaluator=few,
            careful=every,
            feeds=tuple(workbench.feeds),
            own=own,
        )

    def context(self, name: str, tell: Callable[[float, str], None] | None = None, *, brief: bool = False) -> Context:
        """Give what passes may ask for while they make the candidate of this name; `brief`: it is one of many."""
        folder = self.frame.steps / f"{name}.checkpoint"
        folder.mkdir(exist_ok=True)
        workbench = self.brief if brief else self.workbench
        return workbench.context(self.original, folder, tell or self._progress)

    def _progress(self, fraction: float, message: str) -> None:
        self.frame.tell({"type": "progress", "step": 0, "fraction": round(fraction, 3), "message": message})

    def close(self) -> None:
        """Remove what the evaluation has kept on the disk."""
        self.evaluator.close()
        self.careful.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _without_judge(frame: Frame) -> JobData:
    folder = frame.workspace / "data"
    return JobData(*open_dataset(folder, frame.scratch), None, None, declared_outputs(folder))


def _evaluators(
    spec: Search, frame: Frame, data: JobData, parts: Parts, original: Session
) -> tuple[Evaluator, Evaluator]:
    graph = io.load(frame.model)
    most = _affordable(io.copy(graph), _MACS, _FEWEST, _MOST)
    part = parts.select

    def on(count: int) -> Evaluator:
        whole = count == len(part.samples)
        return Evaluator(
            original,
            part.samples if whole else First(part.samples, count),
            labels=None if part.labels is None else part.labels[:count],
            label_facts=part.facts,
            metric=part.metric,
            output=labelled_output(spec.gates),
            declared={**data.declared, **spec.outputs},
            graph=graph,
            run_bytes=run_bytes(spec.limits.max_memory_mb),
            scratch=frame.scratch,
            lock=frame.lock,
        )

    every = on(len(part.samples))
    return (on(most) if most < len(part.samples) else every), every


def _affordable(model: ir.Model, most_macs: int, fewest: int, most: int) -> int:
    """Say how many samples run with so many multiply-accumulates."""
    return max(fewest, min(most, most_macs // max(1, macs.total(model))))


def _brief(workbench: Workbench, count: int) -> Workbench:
    samples, labels = workbench.calibrate, workbench.labels
    short = replace(workbench, race_s=_BRIEF_RACE_S)
    if samples is None or count >= len(samples):
        return short
    fewer = None if labels is None else replace(labels, values=labels.values[:count])
    return replace(short, calibrate=First(samples, count), labels=fewer)


def _feeds(spec: Search, parts: Parts, inspection: Inspection) -> list[Feed]:
    samples = (parts.calibrate or parts.select).samples
    size = run_size([tensor.shape for tensor in inspection.inputs], samples) or spec.target.batch
    return [padded(feed, size) for feed in islice(samples.batches(size), _FEEDS)]


def _racing(original: Session, feeds: list[Feed], inspection: Inspection) -> list[Feed]:
    """Give what candidates race on: a decoder spends its time on writing, token by token."""
    try:
        return list(decoding_feeds(original, feeds, inspection.inputs)) or feeds
    except ModelUnsupportedError:
        return feeds


def _workbench(
    spec: Search, frame: Frame, data: JobData, parts: Parts, *, evaluator: Evaluator, feeds: list[Feed]
) -> Workbench:
    part = parts.calibrate
    labels = None
    if part is not None and part.labels is not None and part.metric is not None:
        labels = Labels(part.labels, part.metric)
    return Workbench(
        target=spec.target,
        scratch=frame.scratch,
        lock=frame.lock,
        calibrate=None if part is None else part.samples,
        select=parts.select.samples,
        has_data=part is not None,
        evaluator=evaluator,
        feeds=feeds,
        gates=spec.gates,
        declared={**data.declared, **spec.outputs},
        in_pieces=False,
        deadline=frame.deadline,
        run_bytes=run_bytes(spec.limits.max_memory_mb),
        memory_limit=spec.limits.max_memory_mb << 20,
        labels=labels,
    )


def _prepared(frame: Frame, workbench: Workbench, own: SelfDifferences) -> Path:
    """Give the file of the network as all recipes begin with it; it is made once for a network."""
    folder = frame.workspace / "cache"
    folder.mkdir(exist_ok=True)
    with frame.model.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    path = folder / f"{digest[:32]}.onnx"
    if path.exists():
        return path
    current = frame.model
    context = workbench.context(frame.model, frame.scratch, lambda _fraction, _message: None)
    for name in ("simplify", "fuse"):
        made, outcome = candidate.work(candidate.read_pass({"type": name}), io.load(current), context)
        file = frame.scratch / f"{name}.onnx"
        if isinstance(outcome, Change):
            io.save(made, file)
            if _is_the_same(file, current, workbench, own if current == frame.model else None):
                current = file
    io.save(io.load(current), path)
    return path


def _is_the_same(file: Path, before: Path, workbench: Workbench, own: SelfDifferences | None) -> bool:
    """Say whether a lossless step's result stands, as it would in a job."""
    try:
        verify.verify(file, before, workbench.select, workbench.untimed, lossless=True, own=own)
    except EngineError:
        return False
    return True
