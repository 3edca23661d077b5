"""How fast networks of a job run beside each other: steps and the result, reading and writing of decoders, tuned or not."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.contract import RESULT_TIMED_S, STEP_TIMED_S
from engine.inspection import TensorInfo
from engine.job.frame import Frame
from engine.measure.acceptance import DECIDES, in_doubt
from engine.measure.decoding import generation
from engine.measure.latency import compare
from engine.measure.tune import find_options
from engine.report.run_facts import SessionOptions
from engine.report.values import Generation, LatencyComparison, Tuning
from engine.runtime.sessions import Feed
from engine.spec import Compress, Search


@dataclass(frozen=True)
class Speeds:
    """The result beside the original: a run, and of a decoder the writing of one token and what both come to.

    Nothing of it is there where networks do not fit into memory.
    """

    latency: LatencyComparison | None = None
    decode: LatencyComparison | None = None
    generation: Generation | None = None


@dataclass(frozen=True)
class Timing:
    """Times networks that fit into memory.

    Args:
        feeds: of the network, each of the target's batch.
        decoding: of a decoder, for each of the feeds that of the token after it; empty for other networks.
        inputs: the network's.
    """

    frame: Frame
    spec: Compress | Search
    feeds: Sequence[Feed]
    decoding: Sequence[Feed]
    inputs: Sequence[TensorInfo]
    # By the network's file.
    _tuned: dict[Path, Tuning] = field(default_factory=dict)

    @property
    def racing(self) -> Sequence[Feed]:
        """What candidates race on: a decoder spends its time on writing, token by token."""
        return self.decoding or self.feeds

    def of_step(self, before: Path, candidate: Path, *, tuned: bool) -> LatencyComparison:
        """Measure a candidate beside the network before the step, until it is clear whether it pays.

        Where the machine was too noisy for that it is measured once more, as long as a result. `tuned`: each with the options
        that it runs best with, where the job asks for them.
        """
        found = self._compare(before, candidate, STEP_TIMED_S, self.racing, against=DECIDES, tuned=tuned)
        if not in_doubt(found):
            return found
        return self._compare(before, candidate, RESULT_TIMED_S, self.racing, against=DECIDES, tuned=tuned)

    def of_result(self, result: Path) -> Speeds:
        """Measure the result beside the original."""
        original = self.frame.model
        latency = self._compare(original, result, RESULT_TIMED_S, self.feeds)
        if not self.decoding:
            return Speeds(latency)
        decode = self._compare(original, result, RESULT_TIMED_S, self.decoding)
        return Speeds(latency, decode, generation(self.feeds, self.inputs, latency, decode))

    def tuning(self, network: Path) -> Tuning | None:
        """Give the options that a network runs best with; None where the job does not ask for them."""
        if self.spec.tune is None:
            return None
        if network not in self._tuned:
            self.frame.measuring("session options")
            self._tuned[network] = find_options(
                network,
                self.feeds,
                self.spec.target,
                max_seconds=self.spec.tune.max_seconds,
                max_threads=self.spec.tune.max_threads,
                lock=self.frame.lock,
            )
        return self._tuned[network]

    def same_network(self, known: Path, other: Path) -> None:
        """Say that another file holds a network whose options may be known, so that they are not looked for again."""
        if known in self._tuned:
            self._tuned[other] = self._tuned[known]

    def forget(self, network: Path) -> None:
        """Say that the file will hold another network."""
        self._tuned.pop(network, None)

    def _compare(
        self,
        original: Path,
        compressed: Path,
        seconds: float,
        feeds: Sequence[Feed],
        against: Sequence[float] = (),
        *,
        tuned: bool = True,
    ) -> LatencyComparison:
        options = (self._options(original), self._options(compressed)) if tuned else (None, None)
        return compare(
            original,
            compressed,
            feeds,
            self.spec.target,
            lock=self.frame.lock,
            seconds=seconds,
            against=against,
            options=options,
        )

    def _options(self, network: Path) -> SessionOptions | None:
        tuning = self.tuning(network)
        return None if tuning is None else tuning.chosen
