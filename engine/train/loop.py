"""The training loop: AdamW, warm-up and cosine, a moving average of the weights, judged as it goes, and resumable."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from engine.train import checkpoint
from engine.train.batches import Place, Places
from engine.train.framework import Tensor, torch
from engine.train.schedule import Pace, rate

Stopped = Literal["seconds", "steps", "no_improvement", "deadline", "diverged"]

# Highest rates that are tried where none is asked for, and the share of the budget that each of them gets.
RATES = (3e-3, 1e-2, 3e-2)
# Biases of smaller numbers, zeros above all, change as if theirs were so large.
_LEAST_SIZE = 1e-2
_TRIAL = 0.04
_LEAST_TRIAL, _MOST_TRIAL = 10, 200
# Work between two looks at the clock of others: a measurement of another job waits no longer.
_CHUNK_S = 3.0
_CHECKPOINT_S = 20.0
# A checkpoint may take no more than this share of the time.
_CHECKPOINT_SHARE = 0.05
_JUDGEMENTS = 20
_JUDGING_SHARE, _QUALITY_SHARE = 0.2, 0.1
# The moving average reaches back over this share of all steps.
_AVERAGED = 0.02
_LEAST_AVERAGED, _MOST_AVERAGED = 5.0, 1000.0
_MOST_FAILED = 20
# Better by less than that is not better.
_MARGIN, _TINY = 1e-4, 1e-7


@dataclass(frozen=True)
class Settings:
    """How a training is done.

    Args:
        seconds: most time that training itself takes.
        steps: most steps; None: as many as there is time for.
        learning_rate: the highest, as a share of the root mean square that a tensor's numbers have at the start: after
            normalisations are folded into layers, these differ by orders of magnitude (as in Shazeer and Stern 2018,
            https://arxiv.org/abs/1804.04235). None: the best of `candidates` in a short trial.
        candidates: rates that are tried.
        weight_decay: of weights with more than one axis.
        clip: largest norm of a step's gradients.
        patience: share of all steps without a better network after which it ends.
        seed: what the order of the samples and all that is drawn follow from.
        rates: by parameter, a factor on the learning rate.
    """

    seconds: float = 120.0
    steps: int | None = None
    learning_rate: float | None = None
    candidates: tuple[float, ...] = RATES
    weight_decay: float = 0.01
    clip: float = 1.0
    patience: float = 0.4
    seed: int = 0
    rates: Mapping[str, float] = field(default_factory=dict)


class Lesson(Protocol):
    """What is learnt, and how well it is."""

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """What is trained."""
        ...

    def batches(self, place: Place) -> Iterator[tuple[Place, Places]]:
        """Yield batches without end, from a place on."""
        ...

    def losses(self, place: Place, samples: Places) -> Iterator[Tensor]:
        """Yield the loss of a batch in parts that add up to it."""
        ...

    def rest(self) -> None:
        """Return when nothing runs beside the training that was begun for it."""
        ...

    def loss(self) -> float:
        """Give the loss on the samples that things are chosen on."""
        ...

    def quality(self) -> tuple[str, float] | None:
        """Give the metric that speaks for the network there, and its name."""
        ...


@dataclass(frozen=True)
class Point:
    """Where a training stood. `train_loss` is the mean since the point before; `quality` is in the metric of the record."""

    step: int
    seconds: float
    train_loss: float | None
    select_loss: float
    quality: float | None = None
    rate: float | None = None


@dataclass(frozen=True)
class Record:
    """How a training went; the parameters hold the best moving average that there was."""

    points: Sequence[Point]
    best: Point
    steps: int
    seconds: float
    stopped: Stopped
    learning_rate: float
    # By learning rate: the loss on `select` after the short trial.
    tried: Mapping[float, float]
    metric: str | None
    resumed_from: int | None = None

    @property
    def improved(self) -> bool:
        """Whether what came out is closer to the teacher than what came in."""
        return self.best.step > self.points[0].step


@dataclass(frozen=True)
class Surroundings:
    """What the job gives a training. See engine.contract.Context."""

    folder: Path
    working: Callable[[], AbstractContextManager[None]] = nullcontext
    tell: Callable[[float, str], None] = lambda _share, _message: None
    # Seconds of `clock` by which it is over; None: never.
    deadline: float | None = None
    clock: Callable[[], float] = time.monotonic


def train(lesson: Lesson, settings: Settings, around: Surroundings) -> Record:
    """Train the lesson's parameters in place, and leave them at the best that the samples to choose on showed.

    It goes on from a checkpoint in the folder. With a number of steps the result follows from the seed, however often it was
    interrupted; on as many threads of the same processor.
    """
    return _Training(lesson, settings, around).run()


class _Training:
    def __init__(self, lesson: Lesson, settings: Settings, around: Surroundings) -> None:
        self._lesson, self._settings, self._around = lesson, settings, around
        self._parameters = dict(lesson.parameters)
        self._pace = Pace(settings.seconds, settings.steps)
        self._place = Place()
        self._points: list[Point] = []
        self._tried: dict[float, float] = {}
        self._metric: str | None = None
        self._best: Point | None = None
        self._summed, self._counted, self._failed = 0.0, 0, 0
        self._judging_s = self._quality_s = 0.0
        self._resumed: int | None = None
        self._peak = settings.learning_rate or 0.0

    def run(self) -> Record:
        state = checkpoint.load(self._state_path)
        self._average: dict[str, Tensor] = {}
        if state is not None and state.get("key") == self._key():
            self._resume(state)
        else:
            self._begin()
        stopped = self._go()
        assert self._best is not None
        self._take_best()
        if self._best.quality is None and self._metric is not None:
            with self._around.working():
                known = replace(self._best, quality=self._quality())
            self._points = [known if point == self._best else point for point in self._points]
            self._best = known
        return Record(
            points=tuple(self._points),
            best=self._best,
            steps=self._pace.step,
            seconds=self._pace.spent,
            stopped=stopped,
            learning_rate=self._peak,
            tried=self._tried,
            metric=self._metric,
            resumed_from=self._resumed,
        )

    # Beginning

    def _begin(self) -> None:
        self._average = self._copied()
        self._sizes = {name: _size(value) for name, value in self._parameters.items()}
        self._judge(None)
        if self._settings.learning_rate is None:
            self._peak = self._choose_rate()
        self._optimizer = self._new_optimizer()

    def _choose_rate(self) -> float:
        """Train for a short while with each rate from the same weights on; give the one that leaves the least loss."""
        start = self._copied()
        steps = self._trial_steps(start)
        candidates = self._settings.candidates
        for number, peak in enumerate(candidates):
            self._around.tell(0.0, f"trying learning rate {peak:g} ({number + 1} of {len(candidates)}, {steps} steps)")
            self._peak = peak
            self._restore(start)
            self._optimizer = self._new_optimizer()
            self._try(steps)
            with self._around.working():
                loss = self._lesson.loss()
            self._tried[peak] = loss if math.isfinite(loss) else math.inf
        self._restore(start)
        self._forget_losses()
        return min(self._tried, key=lambda peak: self._tried[peak])

    def _trial_steps(self, start: Mapping[str, Tensor]) -> int:
        total = self._settings.steps
        if total is None:
            self._peak, self._optimizer = self._settings.candidates[0], self._new_optimizer()
            taken = self._try(3)
            self._restore(start)
            total = math.floor(self._settings.seconds / max(taken / 3, 1e-6))
        return min(max(round(_TRIAL * total), _LEAST_TRIAL), _MOST_TRIAL)

    def _try(self, steps: int) -> float:
        """Do some steps from the beginning; give the seconds that they took, which count."""
        spent = self._pace.spent
        batches = self._lesson.batches(Place())
        most = self._settings.seconds * _TRIAL * 2
        done = 0
        while done < steps and self._pace.spent - spent < most:
            with self._around.working():
                until = self._around.clock() + _CHUNK_S
                while done < steps:
                    started = self._around.clock()
                    place, samples = next(batches)
                    self._descend(place, samples, self._peak * rate(done, steps))
                    self._pace.spent += self._around.clock() - started
                    done += 1
                    if started > until:
                        break
                self._lesson.rest()
        return self._pace.spent - spent

    # Training

    def _go(self) -> Stopped:
        batches = self._lesson.batches(self._place)
        saved = self._around.clock()
        saving_s = 0.0
        while True:
            over = self._over()
            if over is not None:
                if self._points[-1].step != self._pace.step:
                    self._judge(self._peak * self._pace.rate)
                return over
            self._chunk(batches)
            self._around.tell(self._pace.share, self._told())
            if self._due():
                self._judge(self._peak * self._pace.rate)
            now = self._around.clock()
            if now - saved > max(_CHECKPOINT_S, saving_s / _CHECKPOINT_SHARE):
                self._save()
                saved = self._around.clock()
                saving_s = saved - now

    def _chunk(self, batches: Iterator[tuple[Place, Places]]) -> None:
        """Train for some seconds, or until the network is to be judged."""
        first = self._pace.step
        with self._around.working():
            until = self._around.clock() + _CHUNK_S
            while True:
                started = self._around.clock()
                place, samples = next(batches)
                self._descend(place, samples, self._peak * self._pace.rate)
                self._pace.step += 1
                self._follow()
                self._place = Place(place.epoch, place.number + 1)
                self._pace.spent += self._around.clock() - started
                if first == 0 and self._pace.step == _LEAST_TRIAL:
                    self._pace.replan()
                if self._due() or self._pace.over is not None or self._failed > _MOST_FAILED or started > until:
                    break
            self._lesson.rest()
        self._pace.replan()
        if self._around.deadline is not None:
            self._pace.shorten(self._around.deadline - self._around.clock())
            self._pace.replan()

    def _descend(self, place: Place, samples: Places, learning_rate: float) -> None:
        """Do one step of the optimizer; one whose gradients are no numbers is left out."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in self._lesson.losses(place, samples):
            part.backward()
            total += float(part.detach())
        norm = torch.nn.utils.clip_grad_norm_(list(self._parameters.values()), self._settings.clip)
        if math.isfinite(total) and bool(torch.isfinite(norm)):
            self._optimizer.step()
            self._failed = 0
            self._summed += total
            self._counted += 1
        else:
            self._failed += 1

    def _follow(self) -> None:
        """Move the average of the weights towards what they are now."""
        reach = min(max(_AVERAGED * self._pace.total, _LEAST_AVERAGED), _MOST_AVERAGED)
        kept = min(1 - 1 / reach, (1 + self._pace.step) / (10 + self._pace.step))
        with torch.no_grad():
            own = [self._parameters[name] for name in self._average]
            torch._foreach_lerp_(list(self._average.values()), own, 1 - kept)

    def _over(self) -> Stopped | None:
        if self._failed > _MOST_FAILED:
            return "diverged"
        if self._around.deadline is not None and self._around.clock() >= self._around.deadline:
            return "deadline"
        # What came in is often lost at first, and found again when the rate comes down: only trained networks count.
        lowest = min(self._points[1:], key=lambda point: point.select_loss, default=None)
        if lowest is not None and self._pace.step - lowest.step > self._settings.patience * self._pace.total:
            return "no_improvement"
        over = self._pace.over
        if over == "seconds" and self._around.deadline is not None and self._pace.seconds < self._settings.seconds:
            return "deadline"
        return over

    # Judging

    def _every(self) -> int:
        every = max(1, self._pace.total // _JUDGEMENTS)
        cost, budget = self._judging_s * _JUDGEMENTS, _JUDGING_SHARE * self._settings.seconds
        return math.ceil(every * max(1.0, cost / budget))

    def _due(self) -> bool:
        return self._pace.step - self._points[-1].step >= self._every()

    def _judge(self, learning_rate: float | None) -> None:
        """See what the averaged weights are worth, and keep them where they are the best so far."""
        started = self._around.clock()
        with self._around.working(), swapped(self._parameters, self._average):
            loss = self._lesson.loss()
            point = Point(
                step=self._pace.step,
                seconds=self._pace.spent,
                train_loss=self._summed / self._counted if self._counted else None,
                select_loss=loss if math.isfinite(loss) else math.inf,
                quality=self._quality() if math.isfinite(loss) and self._quality_pays else None,
                rate=learning_rate,
            )
            self._points.append(point)
            if self._best is None or point.select_loss < (1 - _MARGIN) * self._best.select_loss - _TINY:
                self._best = point
                checkpoint.save(self._best_path, {"key": self._key(), "values": self._copied()})
        self._forget_losses()
        self._judging_s = self._around.clock() - started
        if point.step == 0 and not self._quality_pays:
            self._judging_s -= self._quality_s
        self._around.tell(self._pace.share, self._told())

    @property
    def _quality_pays(self) -> bool:
        """Whether the metric is computed at every judgement, and not only of the first and the best network."""
        return self._quality_s * _JUDGEMENTS <= _QUALITY_SHARE * self._settings.seconds

    def _quality(self) -> float | None:
        started = self._around.clock()
        found = self._lesson.quality()
        self._quality_s = self._around.clock() - started
        if found is None:
            return None
        self._metric = found[0]
        return found[1]

    def _told(self) -> str:
        last = self._points[-1]
        loss = self._summed / self._counted if self._counted else last.train_loss
        said = [f"step {self._pace.step} of {self._pace.total}"]
        said += [] if loss is None else [f"loss {loss:.4g}"]
        said.append(f"on select {last.select_loss:.4g}")
        said += [] if last.quality is None else [f"{self._metric} {last.quality:.4g}"]
        return ", ".join(said)

    def _forget_losses(self) -> None:
        self._summed, self._counted = 0.0, 0

    # Keeping

    @property
    def _state_path(self) -> Path:
        return self._around.folder / "training.pt"

    @property
    def _best_path(self) -> Path:
        return self._around.folder / "best.pt"

    def _key(self) -> str:
        """Tell this training from another one whose checkpoint may lie there."""
        shapes = {name: tuple(value.shape) for name, value in sorted(self._parameters.items())}
        return repr((self._settings, shapes))

    def _save(self) -> None:
        checkpoint.save(
            self._state_path,
            {
                "key": self._key(),
                "parameters": {name: value.detach() for name, value in self._parameters.items()},
                "average": self._average,
                "optimizer": self._optimizer.state_dict(),
                "step": self._pace.step,
                "spent": self._pace.spent,
                "total": self._pace.total,
                "place": (self._place.epoch, self._place.number),
                "peak": self._peak,
                "sizes": self._sizes,
                "tried": dict(self._tried),
                "metric": self._metric,
                "points": [vars(point) for point in self._points],
                "best": self._best and vars(self._best),
                "losses": (self._summed, self._counted, self._failed),
                "judging_s": (self._judging_s, self._quality_s),
            },
        )

    def _resume(self, state: Mapping[str, Any]) -> None:
        self._restore(state["parameters"])
        self._average = {name: value.to(self._parameters[name].device) for name, value in state["average"].items()}
        self._peak, self._sizes = state["peak"], dict(state["sizes"])
        self._optimizer = self._new_optimizer()
        self._optimizer.load_state_dict(state["optimizer"])
        self._pace.step, self._pace.spent, self._pace.total = state["step"], state["spent"], state["total"]
        self._place = Place(*state["place"])
        self._tried, self._metric = dict(state["tried"]), state["metric"]
        self._points = [Point(**point) for point in state["points"]]
        self._best = Point(**state["best"])
        self._summed, self._counted, self._failed = state["losses"]
        self._judging_s, self._quality_s = state["judging_s"]
        self._resumed = self._pace.step
        self._around.tell(self._pace.share, f"going on from step {self._pace.step}")

    def _take_best(self) -> None:
        best = checkpoint.load(self._best_path)
        assert best is not None
        self._restore(best["values"])

    def _copied(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._parameters.items()}

    def _restore(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._parameters.items():
                value.copy_(values[name])

    def _new_optimizer(self) -> Any:
        """Give AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101); biases and scales do not decay."""
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, value in self._parameters.items():
            decay = self._settings.weight_decay if value.dim() > 1 else 0.0
            factor = self._sizes[name] * self._settings.rates.get(name, 1.0)
            groups.setdefault((decay, factor), []).append(value)
        return torch.optim.AdamW(
            [{"params": values, "weight_decay": decay, "factor": factor} for (decay, factor), values in groups.items()],
            lr=self._peak,
        )


def _size(value: Tensor) -> float:
    """Give the root mean square of a tensor's numbers, rounded to a half power of two: groups of one rate are updated at once.

    A layer's weights may be as small as they like, if its inputs are pixels above all; small biases say nothing of their layer.
    """
    found = float(value.detach().float().square().mean().sqrt())
    if value.dim() <= 1 or not found > 0:
        found = max(found, _LEAST_SIZE)
    return math.pow(2.0, round(2 * math.log2(found)) / 2)


@contextmanager
def swapped(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Give parameters other values for a while."""
    own = {name: value.detach().clone() for name, value in parameters.items()}
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(values[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(own[name])
