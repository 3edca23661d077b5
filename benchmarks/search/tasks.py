"""The tasks: which network is to reach what, in how long, beside whom, and what has to be reached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import engine
from benchmarks import bars, cases
from benchmarks.bars import INTEGERS_ONLY, Bar
from benchmarks.cases import Case
from benchmarks.contest import HERE, OURS, Entry, recipe
from benchmarks.distillation import entries as distillation
from benchmarks.peers import environments
from benchmarks.quantization import entries as quantization
from benchmarks.search import outcome
from benchmarks.search.samples import wider
from engine.runtime.processor import cpu_profile

Step = Mapping[str, Any]
GOAL = "goal"
AGAIN = "goal, once more"
BY_HAND = "by hand"
"""Settings of recipes that a person would write begin like that; those that only quantize begin as in benchmarks.bars."""
_IMAGES = 5000
_SENTENCES = 2000
_PAGES, _PAGES_TO_CHOOSE_BY = 64, 16
_CHOOSING = 3000
# Of a gate on quality where there are but 1,000 labels to choose by: a bound of 95 % would leave next to nothing of one point.
_FEW_LABELS = 0.8
_JOB_MEMORY_MB = 8192
# A job is ended from outside at twice its budget, so that a search that runs over is seen to do so.
_ROOM = 2.0
# The same network races another copy of itself within so much.
_RACE_NOISE = 0.97
_NEW_KERNELS = cpu_profile().dot not in {"none", "avx2", "avx_vnni"}
_BLOCKS = "first and last of 3 blocks dropped, reconstructed, distilled"


@dataclass(frozen=True)
class Search:
    """One search of ours, under the name of its setting."""

    setting: str
    strategy: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Task:
    """A network of benchmarks.cases with a goal and a budget.

    seconds: of each search, ours and Olive's.
    limits: gates beside that on quality.
    trials: most trials of a search of ours; None: as many as there is time for.
    confidence: of the bound that a limit on quality has to hold.
    named: recipes by name; `recipes`: some of the distillation benchmark's. Both are trained as long as a search may take.
    integers: settings of quantization.entries. rivals: ONNX Runtime, NNCF, onnxsim and Olive take part.
    train: whether searches may distil.
    """

    name: str
    case: str
    title: str
    seconds: float
    bars: tuple[Bar, ...]
    minimise: Literal["latency", "size"] = "latency"
    quality: tuple[Mapping[str, Any], ...] = ({"metric": "top1", "rule": "max_drop", "value": 0.01},)
    confidence: float = 0.95
    limits: tuple[Mapping[str, Any], ...] = ()
    searches: tuple[Search, ...] = (Search(GOAL), Search(f"{GOAL}, {outcome.RANDOM}", "random"))
    trials: int | None = None
    train: bool = True
    flip: bool = True
    recipes: Sequence[tuple[str, str]] = ()
    named: Sequence[str] = ()
    integers: Sequence[str] = ()
    rivals: bool = True
    samples: int = _IMAGES
    selected: int = 0
    choosing: int = _CHOOSING

    @property
    def gates(self) -> tuple[Mapping[str, Any], ...]:
        """Give every limit of the goal."""
        return (*({**gate, "confidence": self.confidence} for gate in self.quality), *self.limits)

    @property
    def max_drop(self) -> float:
        """How much of the case's score may be lost."""
        (gate,) = self.quality
        return float(gate["value"]) if gate["rule"] == "max_drop" else 1.0 - float(gate["value"])

    def contested(self) -> Case:
        """Give the case with this task's samples, title and allowed loss."""
        (case,) = cases.named([self.case])
        wide = wider(case, self.samples, select=self.selected, choosing=self.choosing)
        return replace(wide, title=f"{case.title}: {self.title}", allowed_loss=self.max_drop)


def ours(task: Task, seconds: float | None = None) -> list[Entry]:
    """Give our searches and what they are held against; `seconds` stands for the task's own budget, for a trial run."""
    budget = seconds or task.seconds
    made = [_search(task, search, budget) for search in task.searches]
    made += [
        recipe(f"{INTEGERS_ONLY}: {setting}", *quantization.RECIPES[setting], gates=_free(task))
        for setting in task.integers
    ]
    return [*made, *_by_hand(task, budget)]


def peers(task: Task, seconds: float | None = None) -> list[Entry]:
    """Give the peers' settings; Olive's search gets as long as ours."""
    if not task.rivals:
        return []
    (case,) = cases.named([task.case])
    made = [replace(entry, setting=f"{INTEGERS_ONLY}: {entry.setting}") for entry in quantization.peers(case)]
    settings = {
        "minimise": task.minimise,
        "judge": "top1" if task.quality[0]["metric"] == "top1" else "mask_iou",
        "max_drop": task.max_drop,
        "seconds": seconds or task.seconds,
        "transformer": case.transformer,
        "seed": 0,
    }
    maker = f"olive-ai {environments.version('olive-ai')}"
    return [*made, Entry(maker, "search", HERE / "peers" / "olive_search.py", settings, peer="olive-ai", chooses=True)]


def expected_seconds(entry: Entry) -> float:
    """Give about how long an entry takes, so that the longest can go first."""
    budget = entry.settings.get("budget", {}).get("max_seconds")
    return float(budget) if budget is not None else distillation.expected_seconds(entry)


def _search(task: Task, search: Search, budget: float) -> Entry:
    allowed: dict[str, Any] = {"max_seconds": budget}
    if task.trials is not None:
        allowed["max_trials"] = task.trials
    settings = {
        "kind": "search",
        "goal": {"minimise": task.minimise, "subject_to": list(task.gates)},
        "budget": allowed,
        "strategy": search.strategy,
        "seed": search.seed,
        "space": {"train": task.train, "flip": task.flip},
        "limits": {"max_runtime_s": round(_ROOM * budget), "max_memory_mb": _JOB_MEMORY_MB},
    }
    return Entry(OURS, search.setting, HERE / "engine_job.py", settings)


def _by_hand(task: Task, budget: float) -> list[Entry]:
    """Give what a person would write: named recipes, and those of the distillation benchmark; who trains has the whole budget."""
    chains = {f"{BY_HAND}: recipe {name}": _named(name, flip=task.flip) for name in task.named}
    known = {each.name: each for each in distillation.TASKS}
    chains |= {f"{BY_HAND}: {setting}": known[where].recipes[setting] for where, setting in task.recipes}
    return [
        recipe(setting, *distillation.timed(passes, budget), gates=_free(task)) for setting, passes in chains.items()
    ]


def _named(name: str, *, flip: bool) -> tuple[Step, ...]:
    (described,) = (each for each in engine.list_recipes() if each["name"] == name)
    return tuple(
        {**step, "flip": flip} if step["type"] in distillation.TRAINING else step for step in described["passes"]
    )


def _free(task: Task) -> tuple[Mapping[str, Any], ...]:
    """Let recipes lose what they lose: the table says it, and a step that was taken back would not be the recipe."""
    size = {"metric": "size_bytes", "rule": "max_ratio", "value": 1.0}
    if task.quality[0]["metric"] == "top1":
        return (size, {"metric": "top1", "rule": "max_drop", "value": 1.0})
    return (size, {"metric": "sqnr_db", "rule": "min", "value": -20.0})


def _loses(most: float = 0.01) -> Bar:
    return Bar(GOAL, "loss of top1", bars.loss, most, unit="points", most=True)


def _latency(must: float, aim: float, measured: bars.Measured, words: str) -> tuple[Bar, ...]:
    return (
        Bar(GOAL, words, measured, must, aim),
        Bar(
            GOAL, "speed beside our fastest single pass that loses no more", bars.faster_than_single_passes, _RACE_NOISE
        ),
        Bar(GOAL, "error of predicted latencies", outcome.prediction_error, 0.10, 0.05, unit="%", most=True),
        Bar(GOAL, "seconds beside the budget", outcome.of_budget, 1.1, most=True),
    )


def _peers(must: float, aim: float) -> tuple[Bar, ...]:
    return _latency(must, aim, bars.faster_than_peers, "speed beside the fastest network of any peer")


def _fp32(must: float, aim: float) -> tuple[Bar, ...]:
    return _latency(must, aim, bars.faster, "speed beside fp32")


_NOT_SLOWER = {"metric": "latency_p50", "rule": "max_ratio", "value": 1.0}
_SMALLEST = (
    _loses(),
    Bar(GOAL, "smaller than fp32", bars.smaller, 8.0, 12.0),
    Bar(GOAL, "speed beside fp32", bars.faster, _RACE_NOISE, 1.0),
    Bar(GOAL, "seconds beside the budget", outcome.of_budget, 1.1, most=True),
)
_TEXT = {"flip": False, "samples": _SENTENCES, "choosing": 0, "confidence": _FEW_LABELS}


def _size(name: str, title: str, seconds: float, **more: Any) -> Task:
    settings: dict[str, Any] = {
        "minimise": "size",
        "limits": (_NOT_SLOWER,),
        "integers": ("static", "dynamic", "weights int8", "weights int4"),
        "named": ("small",),
        **more,
    }
    return Task(f"{name}_size", name, f"smallest, {title}", seconds, _SMALLEST, **settings)


def _strategies(name: str, **more: Any) -> Task:
    """Set strategies beside chance at 60 trials without training, which would hide what each proposes."""
    guided = {"tpe": f"{GOAL}, TPE", "nsga2": f"{GOAL}, NSGA-II"}
    return Task(
        f"{name}_strategies", name, "60 candidates of each strategy, none distilled", 900.0,
        bars=tuple(Bar(setting, "hypervolume beside random", outcome.beside_random, 1.0) for setting in guided.values()),
        searches=(
            *(Search(setting, strategy) for strategy, setting in guided.items()),
            Search(f"{GOAL}, {outcome.RANDOM}", "random"),
        ),
        trials=60, train=False, rivals=False, **more,
    )  # fmt: skip


TASKS = (
    Task(
        "residual_cnn", "residual_cnn", "fastest within 1 point", 600.0,
        bars=(_loses(), *(_peers(1.4, 2.0) if _NEW_KERNELS else _peers(1.9, 2.0))),
        integers=("static", "static, all layers", "dynamic", "mixed"),
        named=("fast", "fastest"),
        recipes=(
            ("residual_cnn", "pruned, reconstructed, distilled, integers where they pay"),
            ("residual_cnn_blocks", _BLOCKS),
        ),
    ),
    Task(
        "se_cnn", "se_cnn", "fastest within 1 point", 900.0,
        bars=(_loses(), *_fp32(1.6, 2.0)),
        integers=("static", "dynamic", "mixed"),
        named=("fast", "fastest"),
        recipes=(("se_cnn_50", "pruned, reconstructed, distilled"),),
    ),
    Task(
        "vit", "vit", "fastest within 1 point", 900.0,
        bars=(_loses(), *_peers(1.8, 2.2)),
        integers=("static", "dynamic", "mixed"),
        named=("fast", "fastest"),
        recipes=(("vit_50", "pruned, reconstructed, distilled, integers where they pay"),),
    ),
    Task(
        "minilm", "minilm", "fastest within 1 point", 1200.0,
        bars=(_loses(), *_peers(1.8, 2.5)),
        integers=("static", "dynamic", "mixed"),
        named=("fast",),
        recipes=(("minilm_50", "pruned, reconstructed, distilled, dynamic integers"),),
        **_TEXT,
    ),
    Task(
        "ppocr_det", "ppocr_det", "fastest with 95 % of the original's masks", 1200.0,
        bars=(
            Bar(GOAL, "overlap with the original's masks", bars.value, 0.95, unit="%"),
            *_latency(1.4, 1.8, bars.faster_than_integers, "speed beside the fastest network of integers only"),
        ),
        quality=({"metric": "mask_iou", "rule": "min", "value": 0.95},),
        integers=("static", "dynamic", "mixed"),
        named=("fast",),
        recipes=(("ppocr_det_40", "pruned, reconstructed, distilled"),),
        flip=False, samples=_PAGES, selected=_PAGES_TO_CHOOSE_BY, choosing=0,
    ),
    _size("residual_cnn", "within 1 point", 600.0),
    _size("se_cnn", "within 1 point", 900.0),
    _size("vit", "within 1 point", 900.0),
    _size("minilm", "within 1 point", 1200.0, **_TEXT),
    Task(
        "residual_cnn_unmeetable", "residual_cnn", "at least 40 times as fast within 0.1 points, which nothing reaches", 120.0,
        bars=(
            Bar(GOAL, "points that come near", outcome.nearest, 1.0, unit="named"),
            Bar(GOAL, "limits of which it says what stands against them", outcome.explained, 1.0, unit="%"),
            Bar(GOAL, "seconds beside the budget", outcome.of_budget, 1.1, most=True),
        ),
        quality=({"metric": "top1", "rule": "max_drop", "value": 0.001},),
        limits=({"metric": "latency_p50", "rule": "max_ratio", "value": 0.025},),
        searches=(Search(GOAL),),
        rivals=False,
    ),
    Task(
        "residual_cnn_twice", "residual_cnn", "the same search twice", 300.0,
        bars=(Bar(AGAIN, "candidates in the same order", outcome.same_candidates_as(GOAL), 1.0, unit="%"),),
        searches=(Search(GOAL), Search(AGAIN)),
        trials=12,
        train=False,
        rivals=False,
    ),
    _strategies("residual_cnn"),
    _strategies("se_cnn"),
    _strategies("vit"),
    _strategies("minilm", **_TEXT),
)  # fmt: skip


def named(names: Sequence[str]) -> list[Task]:
    """Give the tasks with these names, or all."""
    return [task for task in TASKS if not names or task.name in names]
