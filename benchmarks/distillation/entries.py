"""The tasks: which network is made smaller how, who takes part, and what has to be reached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import engine
from benchmarks import bars, cases
from benchmarks.bars import INTEGERS_ONLY, Bar
from benchmarks.cases import Case
from benchmarks.contest import HERE, SCRATCH, Entry, recipe
from benchmarks.distillation import samples, student
from benchmarks.peers import environments
from benchmarks.quantization import entries as quantization
from engine.runtime.processor import cpu_profile

Step = Mapping[str, Any]
TRAINING = frozenset({"distill", "quantize_aware_train"})
# Of steps that take no seconds from the recipe.
_USUAL_S, _SHORT_S = {"mixed_precision": 60.0, "quantize_static": 15.0}, 3.0
_IMAGES = 5000
# Pruning a transformer runs it on all of them, some times.
_SENTENCES = 2000
_PAGES, _PAGES_TO_CHOOSE_BY = 64, 16

_SIMPLIFY: Step = {"type": "simplify"}
_FUSE: Step = {"type": "fuse"}
_DISTILL: Step = {"type": "distill"}
# The image networks were trained on images that are mirrored too; whoever asks for the job knows that of theirs.
_DISTILL_IMAGES: Step = {**_DISTILL, "flip": True}
_TRAIN_INTEGERS: Step = {"type": "quantize_aware_train", "flip": True}
_CHANNELS: Step = {"type": "prune_channels", "sparsity": 0.5}
_NOT_REFITTED: Step = {**_CHANNELS, "reconstruct": False}
_HEADS: Step = {**_CHANNELS, "kinds": ["ffn", "heads"]}
# What is lost beside the original, by pruning too, on the samples to choose by; the bars are held on others.
_WHERE_IT_PAYS: Step = {"type": "mixed_precision", "max_drop": 0.015}
_WEIGHTS_4: Step = {"type": "quantize_weights", "bits": 4}
# Rounded to nearest on coarse grids: what training has something to win back from.
_COARSE_4: Step = {**_WEIGHTS_4, "method": "rtn", "group": 256, "symmetric": True}
_DYNAMIC: Step = {"type": "quantize_dynamic"}


@dataclass(frozen=True)
class Task:
    """A network of benchmarks.cases, what it is trained on, our recipes by setting, and their bars.

    `integers`: settings of quantization.entries that quantize and do nothing else; `rivals`: peers that do the same take part too.
    `finetuned`: peers that prune and fine-tune take part. `trains_student`: recipes start from the network of `student`.
    `beside_s`: about what our recipes take beside training.
    """

    name: str
    case: str
    title: str
    bars: tuple[Bar, ...]
    recipes: Mapping[str, tuple[Step, ...]]
    samples: int = _IMAGES
    selected: int = 0
    integers: tuple[str, ...] = ("static",)
    rivals: bool = False
    finetuned: Sequence[str] = ()
    trains_student: bool = False
    beside_s: float = 30.0
    gates: tuple[Mapping[str, Any], ...] = field(
        # Recipes may lose in the middle what they win back at the end; the loss is what the bars are about.
        default=(
            {"metric": "size_bytes", "rule": "max_ratio", "value": 1.0},
            {"metric": "top1", "rule": "max_drop", "value": 1.0},
        )
    )

    def contested(self) -> Case:
        """Give the case with this task's samples, title and allowed loss."""
        (case,) = cases.named([self.case])
        allowed = next((bar.must for bar in self.bars if bar.measured is bars.loss), case.allowed_loss)
        load = samples.more(case, self.samples, select=self.selected)
        return replace(case, title=f"{case.title}: {self.title}", load=load, allowed_loss=allowed)

    def networks(self) -> Mapping[str, Path]:
        """Make the files that recipes speak of beside the original."""
        return {"student": student.write(SCRATCH / "distillation" / "student.onnx")} if self.trains_student else {}


def _loses(setting: str, must: float, aim: float | None = None) -> Bar:
    return Bar(setting, "loss of top1", bars.loss, must, aim, unit="points", most=True)


def _runs(setting: str, must: float, aim: float | None = None) -> Bar:
    return Bar(setting, "speed beside fp32", bars.faster, must, aim)


def _beats_integers(setting: str, must: float, aim: float | None = None) -> Bar:
    return Bar(setting, "speed beside the fastest network of integers only", bars.faster_than_integers, must, aim)


_NEW_KERNELS = cpu_profile().dot not in {"none", "avx2", "avx_vnni"}
_BEST = "pruned, reconstructed, distilled"
_MIXED = f"{_BEST}, integers where they pay"
_BYTES = f"{_BEST}, weights in 8 bits"
_FIRST_BLOCK, _FIRST_TWO, _FIRST_AND_LAST = (
    f"{said} of 3 blocks dropped, reconstructed, distilled" for said in ("first", "first 2", "first and last")
)
# Half of three, rounded down as the pass does.
_HALF = f"{_FIRST_BLOCK}, integers where they pay"
# Of the residual CNN: the sums of its blocks, at 28 x 28, 14 x 14 and 7 x 7.
_SUMS = ("node_add_40", "node_add_86", "node_add_132")
_TRAINED_4 = "weights in 4 bits, trained"
_STUDENT = "student from random weights"
_SMALL = (_SIMPLIFY, _CHANNELS, _DISTILL_IMAGES)


def _blocks(*sums: str) -> tuple[Step, ...]:
    return (
        _SIMPLIFY,
        {"type": "drop_blocks", "only": sums, "max_kl": None},
        {"type": "reconstruct"},
        _DISTILL_IMAGES,
    )


TASKS = (
    Task(
        "residual_cnn_50", "residual_cnn", "half of the channels, 5,000 images without labels",
        bars=(_loses(_BEST, 0.008, 0.004),),
        recipes={
            _BEST: _SMALL,
            "pruned, distilled": (_SIMPLIFY, _NOT_REFITTED, _DISTILL_IMAGES),
            "pruned, reconstructed": (_SIMPLIFY, _CHANNELS),
        },
        finetuned=("decisions", "distillation"),
    ),
    Task(
        "residual_cnn_50_small", "residual_cnn", "half of the channels, 512 images without labels",
        bars=(_loses(_BEST, 0.015, 0.01),),
        recipes={_BEST: _SMALL, "pruned, reconstructed": (_SIMPLIFY, _CHANNELS)},
        samples=512,
        finetuned=("distillation",),
    ),
    Task(
        "residual_cnn", "residual_cnn", "half of the channels, the better of float and integers per layer",
        bars=(
            _loses(_MIXED, 0.008, 0.004),
            _beats_integers(_MIXED, *((1.15, 1.4) if _NEW_KERNELS else (1.7, 2.0))),
            _loses(_BYTES, 0.008, 0.004),
            Bar(_BYTES, "smaller than fp32", bars.smaller, 8.0, 12.0),
        ),
        recipes={
            _MIXED: (*_SMALL, _WHERE_IT_PAYS),
            _BYTES: (*_SMALL, {"type": "quantize_weights", "bits": 8}),
            f"{_BEST}, quantized, trained again": (*_SMALL, {"type": "quantize_static"}, _TRAIN_INTEGERS),
        },
        integers=("static", "static, all layers", "dynamic", "mixed"),
        rivals=True,
    ),
    Task(
        "residual_cnn_blocks", "residual_cnn", "half of the residual blocks",
        bars=(
            _loses(_FIRST_TWO, 0.012, 0.008),
            _runs(_FIRST_TWO, 2.0),
            _loses(_HALF, 0.012, 0.008),
            _runs(_HALF, 2.0),
        ),
        recipes={
            _HALF: (*_blocks(_SUMS[0]), _WHERE_IT_PAYS),
            _FIRST_BLOCK: _blocks(_SUMS[0]),
            _FIRST_TWO: _blocks(*_SUMS[:2]),
            _FIRST_AND_LAST: _blocks(_SUMS[0], _SUMS[2]),
        },
    ),
    Task(
        "se_cnn_50", "se_cnn", "half of the channels",
        bars=(_loses(_BEST, 0.015), _runs(_BEST, 1.5, 2.0)),
        recipes={_BEST: _SMALL, "pruned, reconstructed": (_SIMPLIFY, _CHANNELS)},
    ),
    Task(
        "vit_50", "vit", "half of heads and hidden neurons, integers where they pay",
        bars=(_loses(_MIXED, 0.015), _runs(_MIXED, 2.0, 2.5)),
        recipes={
            _MIXED: (_SIMPLIFY, _HEADS, _DISTILL_IMAGES, {**_FUSE, "attention": True}, _WHERE_IT_PAYS),
            "pruned, reconstructed": (_SIMPLIFY, _HEADS),
        },
        integers=("static", "mixed"),
    ),
    Task(
        "minilm_50", "minilm", "half of heads and hidden neurons, integers with fresh ranges",
        bars=(
            _loses(f"{_BEST}, dynamic integers", 0.015),
            _beats_integers(f"{_BEST}, dynamic integers", 1.6, 2.0),
        ),
        recipes={
            f"{_BEST}, dynamic integers": (_SIMPLIFY, _HEADS, _DISTILL, _FUSE, _DYNAMIC),
            "pruned, reconstructed, dynamic integers": (_SIMPLIFY, _HEADS, _FUSE, _DYNAMIC),
        },
        samples=_SENTENCES,
        beside_s=150.0,
        integers=("dynamic", "fused, dynamic"),
    ),
    Task(
        "ppocr_det_40", "ppocr_det", "40 % of the channels",
        bars=(Bar(_BEST, "overlap with the original's masks", bars.value, 0.95, 0.97, unit="%"),),
        recipes={
            _BEST: (_SIMPLIFY, {**_CHANNELS, "sparsity": 0.4}, _DISTILL),
            "pruned, reconstructed": (_SIMPLIFY, {**_CHANNELS, "sparsity": 0.4}),
        },
        samples=_PAGES,
        selected=_PAGES_TO_CHOOSE_BY,
        beside_s=150.0,
        gates=(
            {"metric": "size_bytes", "rule": "max_ratio", "value": 1.0},
            {"metric": "sqnr_db", "rule": "min", "value": -20.0},
        ),
    ),
    Task(
        "residual_cnn_4bit_qat", "residual_cnn", "weights in 4 bits",
        bars=(_loses(_TRAINED_4, 0.005, 0.002),),
        recipes={
            _TRAINED_4: (_SIMPLIFY, _WEIGHTS_4, _TRAIN_INTEGERS),
            "weights in 4 bits": (_SIMPLIFY, _WEIGHTS_4),
            "weights in 4 bits on coarse grids, trained": (_SIMPLIFY, _COARSE_4, _TRAIN_INTEGERS),
            "weights in 4 bits on coarse grids": (_SIMPLIFY, _COARSE_4),
        },
    ),
    Task(
        "student", "residual_cnn", "a student of another architecture",
        bars=(Bar(_STUDENT, "top1 as a share of the teacher's", bars.of_original, 0.95, 0.98, unit="%"),),
        recipes={_STUDENT: (_DISTILL_IMAGES,)},
        trains_student=True,
    ),
)  # fmt: skip


def ours(task: Task, seconds: float) -> list[Entry]:
    """Give our recipes, as far as the engine has their passes; steps that train get so many seconds together."""
    known = {description["type"] for description in engine.list_passes()}
    integers = {
        f"{INTEGERS_ONLY}: {setting}": quantization.RECIPES.get(setting, (_SIMPLIFY, _FUSE, _DYNAMIC))
        for setting in task.integers
    }
    networks = task.networks()
    return [
        replace(recipe(setting, *timed(passes, seconds), gates=task.gates), networks=networks)
        for setting, passes in {**task.recipes, **integers}.items()
        if all(step["type"] in known for step in passes)
    ]


def peers(task: Task, seconds: float) -> list[Entry]:
    """Give the peers' settings; those that fine-tune do so for as many seconds as ours train."""
    made = [_torch_pruning(task, goal, seconds) for goal in task.finetuned]
    if task.rivals:
        (case,) = cases.named([task.case])
        made += [replace(entry, setting=f"{INTEGERS_ONLY}: {entry.setting}") for entry in quantization.peers(case)]
    return made


def expected_seconds(entry: Entry) -> float:
    """Give about how long an entry takes, so that the longest can go first: training takes what it is given."""
    steps = entry.settings.get("recipe", {}).get("passes", ())
    return float(
        entry.settings.get("seconds", 0.0)
        + sum(step.get("seconds", _USUAL_S.get(step["type"], _SHORT_S)) for step in steps)
    )


def timed(passes: Sequence[Step], seconds: float) -> list[Step]:
    """Share so many seconds among the steps that train."""
    share = seconds / max(1, sum(step["type"] in TRAINING for step in passes))
    return [{**step, "seconds": share} if step["type"] in TRAINING else step for step in passes]


def _torch_pruning(task: Task, goal: str, seconds: float) -> Entry:
    settings = {"network": task.case, "ratio": 0.5, "importance": "taylor", "finetune": goal, "seconds": seconds}
    words = {"decisions": "fine-tuned on the original's decisions", "distillation": "distilled"}[goal]
    maker = f"torch-pruning {environments.version('torch-pruning')}"
    return Entry(maker, f"by Taylor, {words}", HERE / "peers" / "torch_prune.py", settings, peer="torch-pruning")
