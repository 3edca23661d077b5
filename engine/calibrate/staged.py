"""Two networks side by side, a stage of layers at a time: what a stage starts from is kept, so that each node runs once."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.calibrate.observe import network_inputs
from engine.graph import io
from engine.graph.dtypes import bodies
from engine.report.run_facts import SessionOptions
from engine.runtime import sessions
from engine.target import Target

# Of tensors that are kept between two stages in memory, for each network; more go to a file.
_MEMORY_BYTES = 64 << 20
# A part of a network with more weights than that goes through a file.
_IN_MEMORY_WEIGHTS = 512 << 20
_NOT_TENSORS = ("Sequence", "Optional")

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]


class Placed(Protocol):
    """A layer that stands at a node of the main graph and reads one tensor that is not constant."""

    @property
    def node(self) -> ir.Node:
        """Give its node."""
        ...

    @property
    def source(self) -> str:
        """Give the name of the tensor that it reads."""
        ...

    @property
    def bytes(self) -> int:
        """Give the memory that it takes while its stage is worked on."""
        ...


PlacedT = TypeVar("PlacedT", bound=Placed)


def plan(model: ir.Model, layers: Sequence[PlacedT], most_bytes: int) -> tuple[list[list[PlacedT]], list[list[str]]]:
    """Order layers in stages, and say for each which tensors it and all later nodes start from when it begins.

    No layer of a stage comes before another one of it, and one stage takes at most so many bytes, unless layers that read
    the same tensor take more. Layers whose input does not depend on the network's inputs are left out.
    """
    depths = _levels(model, {layer.node: None for layer in layers})
    by_depth: dict[int, list[PlacedT]] = {}
    for layer in layers:
        if layer.node in depths:
            by_depth.setdefault(depths[layer.node], []).append(layer)
    stages = [stage for depth in sorted(by_depth) for stage in _within(by_depth[depth], most_bytes)]
    return stages, _kept(model, stages)


def _within(layers: Sequence[PlacedT], most_bytes: int) -> Iterator[list[PlacedT]]:
    by_source: dict[str, list[PlacedT]] = {}
    for layer in layers:
        by_source.setdefault(layer.source, []).append(layer)
    stage: list[PlacedT] = []
    for together in by_source.values():
        if stage and sum(layer.bytes for layer in (*stage, *together)) > most_bytes:
            yield stage
            stage = []
        stage.extend(together)
    yield stage


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node reads, inside of its bodies too."""
    yield from (value for value in node.inputs if value is not None)
    for graph in bodies(node):
        yield from (value for inner in graph.all_nodes() for value in inner.inputs if value is not None)
        yield from graph.outputs


def _levels(model: ir.Model, stages: Mapping[ir.Node, int | None]) -> dict[ir.Node, int]:
    """Give for every node that depends on an input the number of stages that have to be done before it runs.

    `stages`: that of each layer, which itself runs only after it; None: the stage after that of all layers before it.
    """
    of_value = dict.fromkeys(network_inputs(model), 0)
    found: dict[ir.Node, int] = {}
    for node in model.graph:
        before = [of_value[value] for value in _reads(node) if value in of_value]
        if not before:
            continue
        level = max(before)
        found[node] = level
        if node in stages:
            stage = stages[node]
            level = (level if stage is None else stage) + 1
        of_value.update((value, level) for value in node.outputs)
    return found


def _kept(model: ir.Model, stages: Sequence[Sequence[Placed]]) -> list[list[str]]:
    numbers: dict[ir.Node, int | None] = {layer.node: at for at, stage in enumerate(stages) for layer in stage}
    levels = _levels(model, numbers)
    inputs = [str(value.name) for value in network_inputs(model)]
    if any(word in node.op_type for node in model.graph for word in _NOT_TENSORS):
        # What is no tensor cannot be kept: every stage starts from the network's inputs.
        sources = [[layer.source for layer in stage] for stage in stages]
        return [list(dict.fromkeys((*inputs, *each))) for each in sources]
    # The stage after which a node runs, and the last one that needs it.
    runs = {node: level if numbers.get(node) is None else int(numbers[node] or 0) + 1 for node, level in levels.items()}
    last: dict[ir.Value, int] = {}
    needed: dict[ir.Node, int] = {}
    for node in reversed(list(model.graph)):
        own = numbers.get(node)
        needed[node] = max([last.get(value, -1) for value in node.outputs] + [-1 if own is None else own])
        for value in _reads(node):
            last[value] = max(last.get(value, -1), needed[node])
    made = {
        value: levels[node] if numbers.get(node) is None else runs[node] for node in levels for value in node.outputs
    }
    made |= dict.fromkeys(network_inputs(model), 0)
    kept: list[dict[str, None]] = [{} for _ in stages]
    for node, run in runs.items():
        for value in _reads(node):
            if value in made:
                for stage in range(made[value], min(run, needed[node] + 1, len(stages))):
                    kept[stage][str(value.name)] = None
    return [list(names) for names in kept]


def segment(model: ir.Model, starts: Tensors, ends: Sequence[str]) -> ir.Model | None:
    """Copy what makes the tensors `ends` out of `starts`; None where nothing has to run."""
    values = {str(value.name): value for value in model.graph.inputs}
    values |= {str(value.name): value for node in model.graph for value in node.outputs}
    wanted = [values[name] for name in ends if name not in starts]
    if not wanted:
        return None
    given = {values[name] for name in starts if name in values}
    reached: set[ir.Value] = set(wanted)
    nodes: list[ir.Node] = []
    for node in reversed(list(model.graph)):
        if not reached.isdisjoint(node.outputs):
            nodes.append(node)
            reached.update(value for value in _reads(node) if value not in given)
    read = {value for node in nodes for value in _reads(node)}
    graph = ir.GraphView(
        [value for value in given if value in read],
        wanted,
        nodes=nodes[::-1],
        initializers=[value for value in model.graph.initializers.values() if value in read],
        opset_imports=model.graph.opset_imports,
        name=model.graph.name,
    ).clone()
    for value in graph.inputs:
        array = starts[str(value.name)]
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        if value.shape is None or len(value.shape) != array.ndim:
            value.shape = ir.Shape([None] * array.ndim)
    return ir.Model(graph, ir_version=model.ir_version, functions=tuple(_functions(model)))


def _functions(model: ir.Model) -> Iterator[ir.Function]:
    yield from model.clone().functions.values() if model.functions else ()


class Shelf:
    """Tensors of run after run: put on in order and taken off in the same order, the first ones in memory."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self._folder = folder
        self._limit = _MEMORY_BYTES if limit is None else limit
        self._bytes = 0
        self._runs: list[dict[str, Array | tuple[int, np.dtype[Any], tuple[int, ...]]]] = []
        self._file: IO[bytes] | None = None

    def put(self, tensors: Tensors) -> None:
        """Keep the tensors of the next run."""
        run: dict[str, Array | tuple[int, np.dtype[Any], tuple[int, ...]]] = {}
        for name, array in tensors.items():
            self._bytes += array.nbytes
            held = self._bytes <= self._limit or array.dtype == object
            run[name] = sessions.owned(array) if held else self._stored(array)
        self._runs.append(run)

    def take(self, run: int) -> dict[str, Array]:
        """Give the tensors of a run and forget them."""
        taken, self._runs[run] = self._runs[run], {}
        return {name: self._read(*found) if isinstance(found, tuple) else found for name, found in taken.items()}

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()

    def _stored(self, array: Array) -> tuple[int, np.dtype[Any], tuple[int, ...]]:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed with the shelf
        place = self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(array).data)
        return place, array.dtype, array.shape

    def _read(self, place: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        assert self._file is not None
        self._file.seek(place)
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._file.read(count * dtype.itemsize), dtype, count).reshape(shape)


class Side:
    """One of the networks. Layers of a stage may be changed in it once the stage has run."""

    def __init__(
        self, model: ir.Model, kept: Sequence[Sequence[str]], target: Target, *, threads: int, folder: Path
    ) -> None:
        self._model = model
        self._kept = kept
        self._target = target
        self._threads = threads
        # Of its own: a session may still read its part's file when the other network writes one.
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._next: Shelf | None = None
        self._shelf: Shelf | None = None
        self._session: Any = None
        self._stage = -1

    def begin(self, stage: int) -> None:
        """Turn to the next stage; its first run opens the part of the network that belongs to it."""
        if self._shelf is not None:
            self._shelf.close()
        self._shelf, self._next = self._next, Shelf(self._folder)
        self._session, self._stage = None, stage

    def rest(self) -> None:
        """Let go of the stage's part of the network, all runs of which are done."""
        self._session = None

    def end(self) -> None:
        """Let go of everything."""
        for shelf in (self._shelf, self._next):
            if shelf is not None:
                shelf.close()
        self._session = None

    def run(self, number: int, feed: Tensors) -> dict[str, Array]:
        """Give what the stage keeps of a run; `feed` is what the network itself gets."""
        assert self._next is not None
        starts = dict(feed) if self._shelf is None else self._shelf.take(number)
        wanted = self._kept[self._stage]
        if self._session is None:
            self._session = self._open(starts, wanted)
        given = self._session.run(starts)
        found = {name: given[name] if name in given else starts[name] for name in wanted}
        self._next.put(found)
        return found

    def _open(self, starts: Tensors, wanted: Sequence[str]) -> Any:
        part = segment(self._model, starts, wanted)
        if part is None:
            return _Nothing()
        options = SessionOptions(threads=self._threads)
        if io.weight_bytes(part) <= _IN_MEMORY_WEIGHTS:
            return _Reading(sessions.session(io.to_bytes(part), self._target, options=options))
        path = self._folder / "part.onnx"
        io.save(part, path)
        return _Reading(sessions.session(path, self._target, options=options))


class _Reading:
    """A session that is given no more than it reads."""

    def __init__(self, session: sessions.Session) -> None:
        self._session = session
        self._names = [port.name for port in session.inputs]

    def run(self, starts: Tensors) -> dict[str, Array]:
        return self._session.run({name: starts[name] for name in self._names})


class _Nothing:
    """Stands for a part of which all tensors are known."""

    def run(self, starts: Tensors) -> dict[str, Array]:
        del starts
        return {}


class Pair:
    """Teacher and student, stage by stage over the same runs."""

    def __init__(
        self,
        teacher: Side,
        student: Side,
        feeds: Callable[[], Iterator[Tensors]],
        working: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._teacher = teacher
        self._student = student
        self._feeds = feeds
        self._working = working

    def stage(self, number: int, use: Callable[[int, Tensors, Tensors, Tensors], None]) -> None:
        """Run a stage: `use` gets each run's number and feed, and the tensors that the teacher and the student keep of it."""
        self._teacher.begin(number)
        self._student.begin(number)
        for run, feed in enumerate(self._feeds()):
            with self._working():
                was = self._teacher.run(run, feed)
                use(run, feed, was, self._student.run(run, feed))
        self._teacher.rest()
        self._student.rest()

    def end(self) -> None:
        """Let go of everything."""
        self._teacher.end()
        self._student.end()
