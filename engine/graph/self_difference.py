"""How far a network differs from itself: what no change can be blamed for.

The same numbers are added up in another order at another level of ONNX Runtime's optimisation and with another number of
threads; graphics processors may round them to TF32; an input that differs in its last bit is the same input. Where a network
magnifies that (the logarithm of what nearly cancels out, a share of one in a million), so much and no less is its precision.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from engine.errors import VerificationFailedError
from engine.graph import io
from engine.graph.agreement import OWN_SLACK, Agreement, Feed, Remembered, agreement
from engine.graph.endings import Ending, endings
from engine.graph.pieces import Pieces
from engine.report.values import SelfDifference
from engine.runtime import sessions
from engine.runtime.loading import ModelSource
from engine.runtime.providers import PROVIDERS
from engine.target import Target

# Of outputs that can be no larger than one, whatever their size on the samples; of others, unless they are tiny themselves.
_FLOOR_OF_BOUNDED, _FLOOR, _MOST_OF_SCALE = 1e-6, 1e-7, 1e-2
_BOUNDED = frozenset({"Sigmoid", "Softmax", "HardSigmoid", "Tanh", "Softsign", "Erf", "Sin", "Cos"})
_UNOPTIMISED, _LAST_BIT, _ROUNDED = (
    "without optimisation",
    "with inputs moved by their last bit",
    "as the target rounds products",
)
_LEVELS = {_UNOPTIMISED: "disabled", "with basic optimisation": "basic", "with extended optimisation": "extended"}


class SelfDifferences:
    """Of one network, over the feeds that are asked about first. Everything is run when it is needed, and once.

    Args:
        network: stored, or serialized.
        target: where it runs. Products of 32-bit floats are computed as such there, unless their rounding is what is looked at.
        in_pieces: it is too large to be loaded; only optimised and not optimised it is compared then.
    """

    def __init__(self, network: ModelSource, target: Target, *, in_pieces: bool = False) -> None:
        self._network, self._in_pieces = network, in_pieces
        self._measured, self._target = target, sessions.exact_target(target)
        self._found: dict[str, Agreement] = {}
        # The network itself, where it runs; what it has said of a feed it knows until `forget`.
        self.reference: Remembered[_Opened] = self._silent()

    def forget(self) -> None:
        """Let go of the network and of what it has said; what it differs by stays known."""
        self.reference = self._silent()

    def _silent(self) -> "Remembered[_Opened]":
        return Remembered(lambda: self._open(""))

    def rows_may_swap(self) -> Mapping[str, bool]:
        """Say for each output whether the data decide how many rows it has, or in which order."""
        return {name: ending.rows_may_swap for name, ending in self._endings.items()}

    def excuse(self, found: Agreement, allowed: float, feeds: Sequence[Feed]) -> Agreement:
        """Give a disagreement beside the network's own, of which no more is looked at than it takes to excuse it.

        An absolute floor comes first: what is less means nothing in 32-bit floats, however small the output is.
        """
        if found.relative > allowed:
            found = found.above(self._floor)
        for name in self._variations():
            if found.relative <= allowed:
                break
            found = found.beside(self._look(name, feeds))
        return found

    def told(self, feeds: Sequence[Feed], tolerance: float) -> SelfDifference:
        """Say in words how far the network differs from itself: without optimisation, and in whatever else was looked at."""
        for name in (_UNOPTIMISED, _ROUNDED):
            if name in self._variations():
                self._look(name, feeds)
        worst = max(self._found, key=lambda name: self._found[name].relative)
        found, looked = self._found[worst], ", ".join(sorted(self._found))
        if found.relative == 0:
            words = f"The original gives the same numbers {looked}."
        else:
            words = (
                f"The original differs from itself by up to {found.relative:.1e} of the largest value of output"
                f" `{found.worst}`, {worst}"
                + (f" (looked at {looked})" if len(self._found) > 1 else "")
                + f"; a lossless step may move an output by {OWN_SLACK:.0f} times as much, and by {tolerance:.0e} in any case."
            )
        if self._measured != self._target:
            words += " Steps were verified with products of 32-bit floats as such, not as the target rounds them."
        outputs = {name for each in self._found.values() for name in each.outputs}
        return SelfDifference(outputs={name: self._largest(name) for name in sorted(outputs)}, words=words)

    @cached_property
    def _endings(self) -> Mapping[str, Ending]:
        if isinstance(self._network, Path):
            return endings(io.load(self._network))
        return endings(ir.from_proto(onnx.load_model_from_string(self._network)))

    def _largest(self, output: str) -> float:
        return max(each.outputs[output].relative for each in self._found.values() if output in each.outputs)

    def _floor(self, output: str, scale: float) -> float:
        """Give the difference that means nothing, as a share of the output's largest value."""
        ending = self._endings.get(output)
        if ending is not None and ending.op in _BOUNDED:
            return _FLOOR_OF_BOUNDED / scale
        return min(_FLOOR / scale, _MOST_OF_SCALE)

    def _variations(self) -> list[str]:
        """List what makes no difference by the network's definition, what is cheap and telling first."""
        if self._in_pieces:
            return [_UNOPTIMISED]
        provider = PROVIDERS[self._target.provider]
        threads = (
            [f"on {self._other_threads} thread{'s' * (self._other_threads > 1)}"]
            if "threads" in provider.tunable
            else []
        )
        rounded = [] if self._measured == self._target else [_ROUNDED]
        return [_UNOPTIMISED, _LAST_BIT, *list(_LEVELS)[1:], *threads, *rounded]

    @property
    def _other_threads(self) -> int:
        return 1 if self._target.threads > 1 else 2

    def _look(self, name: str, feeds: Sequence[Feed]) -> Agreement:
        if name not in self._found:
            try:
                # One network is loaded at a time.
                self.reference.hear(feeds)
                other = _Moved(self._open("")) if name == _LAST_BIT else self._open(name)
                self._found[name] = agreement(self.reference, other, feeds, self.rows_may_swap)
            except VerificationFailedError:
                # Not even of one shape, or not a number once: that excuses nothing.
                self._found[name] = Agreement()
        return self._found[name]

    def _open(self, variation: str) -> "_Opened":
        if self._in_pieces:
            assert isinstance(self._network, Path)
            return Pieces(self._network, self._target, optimise=variation != _UNOPTIMISED)
        options: dict[str, Any] = {}
        if variation in _LEVELS:
            options["graph_optimization"] = _LEVELS[variation]
        elif variation.startswith("on "):
            options["threads"] = self._other_threads
        target = self._measured if variation == _ROUNDED else self._target
        chosen = sessions.default_options(target).model_copy(update=options)
        return sessions.session(self._network, target, options=chosen)


_Opened = sessions.Session | Pieces


class _Moved:
    """A network whose inputs of 32-bit floats are moved to a neighbouring number, up or down by chance.

    Whole numbers stay: they may be counts, or names of something, and are not measured.
    """

    def __init__(self, inner: _Opened) -> None:
        self._run: Callable[[Feed], dict[str, Any]] = inner.run

    def run(self, feed: Feed) -> dict[str, Any]:
        """Give every output by name."""
        random = np.random.default_rng(0)
        moved = dict(feed)
        for name, array in feed.items():
            if array.dtype == np.float32:
                ends = np.where(random.random(array.shape) < 0.5, np.float32(-np.inf), np.float32(np.inf))
                moved[name] = np.where(array == np.round(array), array, np.nextafter(array, ends))
        return self._run(moved)
