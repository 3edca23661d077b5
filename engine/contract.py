"""What a pass is: one frozen class that is its parameters, its documentation and its work."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from engine.gate import Gate
    from engine.inspection import Inspection
    from engine.outputs import OutputDeclaration
    from engine.report.values import Change, OutputReport, Quality, Refusal
    from engine.target import Target


# Of activations that are alive at once in one run, where the job's memory does not ask for less. See engine.graph.activations.
RUN_BYTES = 64 << 20
# The longest that a step is timed beside the network before it, and the result beside the original, in seconds.
STEP_TIMED_S, RESULT_TIMED_S = 4.0, 12.0


@dataclass(frozen=True)
class Searchable:
    """Annotation of a field that a search may turn: its range or choices, and whether the scale is logarithmic."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Workload:
    """What a pass has before it: samples of two parts of the data, layers with weights, and elements of weights."""

    calibrate: int
    select: int
    layers: int
    parameters: int


@dataclass(frozen=True)
class Work:
    """What a pass does with it, as far as one can tell before.

    `runs`: samples that are run through a network of the given one's size. `networks`: how many are loaded. `timed_s`: seconds
    of timing networks in turn. `per_weight_s`: of arithmetic for each weight. `most_s`: what the pass bounds its runs by itself.
    """

    runs: float = 0.0
    networks: int = 1
    timed_s: float = 0.0
    per_weight_s: float = 0.0
    most_s: float = float("inf")


@dataclass(frozen=True)
class Observe:
    """A statistic that a pass wants of one tensor over the calibration data."""

    tensor: str
    statistic: Literal["min_max", "moving_average", "histogram", "channel_range", "channel_mean", "second_moment"] = (
        "min_max"
    )
    # The axis that counts channels, for the statistics of channels.
    axis: int = 1


class Samples(Protocol):
    """Some samples of a dataset: knows its length and yields feeds {input name: array with first axis = samples}."""

    def __len__(self) -> int: ...

    def batches(self, size: int) -> Iterator[Mapping[str, "np.ndarray"]]:
        """Yield feeds of at most `size` samples, in a fixed order."""
        ...


@dataclass(frozen=True)
class Labels:
    """The labels of some samples, one row for each in their order, and the task metric that they are for."""

    values: "np.ndarray"
    metric: str


@dataclass(frozen=True)
class Context:
    """What a pass may ask of the job while it works. Everything here is lazy: nothing is measured unless asked.

    The data that the report and the gates are judged on are not here, nor is anything that leads to them.
    """

    # What fits go back to, layer by layer: the job's network, or of a student what it was last taught to be.
    original: "ir.Model"
    target: "Target"
    # For statistics, fits and training; without data made-up samples, see `has_data`.
    calibration: Samples | None
    # For whatever is chosen: candidates, bisections, early stops, trials. None: the job has no data.
    select: Samples | None
    # The quality of a network beside the original's, on `select`.
    evaluate: Callable[["ir.Model"], Sequence["Quality"]]
    observe: Callable[["ir.Model", Sequence[Observe]], Mapping[Observe, Any]]
    progress: Callable[[float, str], None]
    # Run the networks in turn on the target; give each one's time per run as a multiple of the first one's.
    race: Callable[[Sequence["ir.Model"]], Sequence[float]]
    # The host lock's shared side. Take it round each piece of heavy work of a few seconds, so that a measurement of another
    # job on this host gets its turn in between. It may be taken again inside.
    working: Callable[[], AbstractContextManager[None]]
    # The host alone, for whatever a pass times itself; work that is held is let go of until then.
    measuring: Callable[[], AbstractContextManager[None]]
    # A folder of this step alone. What is written there is there again when the job starts anew after a crash.
    checkpoint: Path
    # Seconds of `time.monotonic()` at which the job is ended from outside; None: never.
    deadline: float | None = None
    # False: the job has no data, and `calibration` holds made-up samples, good for comparing networks, not for fitting.
    has_data: bool = True
    # The job's limits, for passes that choose among several networks themselves.
    gates: "Sequence[Gate]" = ()
    # What the owner declared of the network's outputs, by name.
    outputs: "Mapping[str, OutputDeclaration]" = field(default_factory=dict)
    # What is learnt from, where that is another network than `original`, as it lies on the disk.
    teacher: Path | None = None
    # Where networks run when nobody times them; None: as on the target.
    runs_on: "Target | None" = None
    # What the evaluation took each output of the original for.
    recognised: "Sequence[OutputReport]" = ()
    # Of `calibration`; None where not all of its samples have one.
    labels: Labels | None = None
    # Bytes of activations that one run may hold alive: how many samples run at once follows from it.
    run_bytes: int = RUN_BYTES
    # Bytes that the whole process may take; None: nobody set a limit.
    memory_limit: int | None = None

    @property
    def untimed(self) -> "Target":
        """Give the target for runs that nobody times."""
        return self.runs_on or self.target


class Pass(BaseModel):
    """One transformation. Subclasses add `type: Literal[...]`, their parameters, and the methods that do the work."""

    # Strict: a JSON number is no boolean, a string no number. JSON has no tuples, so those take arrays.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    # True: only the form changes; outputs stay within float rounding of the input network's.
    lossless: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False
    # True: takes weights from disk and puts them there one at a time, so networks larger than memory are welcome.
    streams: ClassVar[bool] = False
    # True: the network learns what another one says. A job may then name student and teacher, and steps before it may lose more than
    # is allowed: it has to win that back.
    learns: ClassVar[bool] = False
    # True: goes on from its own checkpoint, so one that died with its process is tried once more before it is left out.
    resumable: ClassVar[bool] = False
    # True: works on 32-bit floats; a 16-bit network is widened for it, and what is left of its weights is stored as before.
    widens: ClassVar[bool] = False

    @property
    def widths_may_change(self) -> bool:
        """Whether inputs and outputs of the network may become floats of another width."""
        return False

    @property
    def trains(self) -> bool:
        """Whether weights are changed, or chosen, by gradients: then the worker needs PyTorch."""
        return False

    @property
    def reads_gates(self) -> bool:
        """Whether what it makes depends on the job's limits on quality, beside whether it is kept: it works towards them."""
        return False

    def work(self, load: Workload) -> Work:
        """Say what the pass will have to do, for an estimate of its time."""
        del load
        return Work()

    def requires(self, inspection: "Inspection") -> "Refusal | None":
        """Refuse at submit, from the stored inspection alone."""
        del inspection
        return None

    def skips(self, samples: int, fixed: int | None) -> str | None:
        """Say what the pass leaves out, and what it would take, where so few samples are there to choose by; None: nothing.

        `samples` is 0 where the job has no data; `fixed` is how many samples the network takes at a time, if that is fixed.
        """
        del samples, fixed
        return None

    def prepare(self, model: "ir.Model") -> None:
        """Bring the model in place into the form that `check`, `observes` and `apply` expect."""
        del model

    def check(self, model: "ir.Model") -> "Refusal | None":
        """Refuse with the graph in hand."""
        del model
        return None

    def observes(self, model: "ir.Model") -> Sequence[Observe]:
        """Name the statistics that `apply` needs; one calibration run feeds all of them."""
        del model
        return ()

    def apply(self, model: "ir.Model", observations: Mapping[Observe, Any], context: Context) -> "Change | Refusal":
        """Transform the model in place and say what changed, or refuse and leave it to be thrown away."""
        raise NotImplementedError

    def ensures(self, model: "ir.Model") -> None:
        """Check what this pass promises of its result; raises VerificationFailedError."""
        del model
