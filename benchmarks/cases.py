"""The networks that are measured: where each lies, its data, how it is run and how its answers are judged."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import scores
from benchmarks.scores import Array, Score
from engine.data.parts import CALIBRATE, SELECT
from engine.runtime.sessions import Session

NETWORKS = Path(__file__).resolve().parents[1] / "var" / "networks"
UNLABELLED = -1
TEXT_MASK = 0.3
"""PP-OCR takes a pixel for text above this probability."""
SPEECH = 0.5
QUICK_SAMPLES = 200
SELECT_SAMPLES = 1000
"""So many labelled samples, the first ones, the engine chooses its own steps on; they take no part in the score."""

Feed = dict[str, Array]


class NetworkMissingError(Exception):
    """A network has not been built yet; the message says how."""


@dataclass(frozen=True)
class Data:
    """Samples on the first axis of each array, in the types that the network takes.

    Nobody who compresses sees `test`. `select` are samples for ours to choose on, with `chosen_by` their labels where they have
    any; where there are none, ours keeps some of `calibration` for that.
    """

    calibration: Feed
    test: Feed
    truth: Array | None = None
    select: Feed = field(default_factory=dict)
    chosen_by: Array | None = None
    constants: Feed = field(default_factory=dict)
    sample_axis: Mapping[str, int] = field(default_factory=dict)

    def feeds(self, batch: int, most: int | None = None) -> Iterator[Feed]:
        """Yield feeds of the test samples in order."""
        count = min(len(self), most or len(self))
        for start in range(0, count, batch):
            chosen = {name: array[start : min(start + batch, count)] for name, array in self.test.items()}
            moved = {name: np.moveaxis(array, 0, self.sample_axis.get(name, 0)) for name, array in chosen.items()}
            yield {**{name: np.ascontiguousarray(array) for name, array in moved.items()}, **self.constants}

    def first(self, count: int) -> "Data":
        """Keep only the first samples, for a trial run."""
        test = {name: array[:count] for name, array in self.test.items()}
        calibration = {name: array[: max(count // 4, 8)] for name, array in self.calibration.items()}
        truth = None if self.truth is None else self.truth[:count]
        select = {name: array[:count] for name, array in self.select.items()}
        chosen_by = None if self.chosen_by is None else self.chosen_by[:count]
        return replace(self, calibration=calibration, test=test, truth=truth, select=select, chosen_by=chosen_by)

    @property
    def selecting(self) -> int:
        """Number of samples that are chosen on."""
        return len(next(iter(self.select.values()), ()))

    def __len__(self) -> int:
        """Number of test samples."""
        return len(next(iter(self.test.values())))


Answer = Callable[[Session, Data], Array]
Judge = Callable[[Array, Array, Array | None], Score]


@dataclass(frozen=True)
class Case:
    """One network. `allowed_loss` is what its bars allow, in the score's unit; `build` is the command that makes it."""

    name: str
    title: str
    load: Callable[[Path], Data]
    answer: Answer
    judge: Judge
    allowed_loss: float
    build: str
    model: str = "model.onnx"
    folder: str = ""
    transformer: bool = False
    gates: tuple[Mapping[str, Any], ...] = ()

    @property
    def path(self) -> Path:
        """The original network; raises NetworkMissingError."""
        path = NETWORKS / (self.folder or self.name) / self.model
        if not path.exists():
            raise NetworkMissingError(f"{self.name} is not built yet: {self.build}")
        return path

    def data(self) -> Data:
        """Load its samples; raises NetworkMissingError."""
        return self.load(self.path.parent)


def write_calibration(data: Data, path: Path) -> dict[str, Any]:
    """Store the calibration samples for the scripts of the peers, and give the layout that belongs to them."""
    np.savez(path, allow_pickle=False, **data.calibration, **data.constants)
    return {"constants": sorted(data.constants), "sample_axis": dict(data.sample_axis)}


def write_choosing(data: Data, path: Path) -> None:
    """Store the samples that ours chooses by, with their labels where there are any, for a peer that chooses too."""
    labels = {} if data.chosen_by is None else {"label": data.chosen_by}
    np.savez(path, allow_pickle=False, **data.select, **data.constants, **labels)


def write_dataset(data: Data, path: Path) -> None:
    """Store a dataset for the engine: what calibrates, and what it may choose on, if nothing is given every other one."""
    arrays, count = dict(data.calibration), len(next(iter(data.calibration.values())))
    part = np.arange(count) % 2
    if data.select:
        arrays = {name: np.concatenate([array, data.select[name]]) for name, array in arrays.items()}
        part = np.repeat([CALIBRATE, SELECT], [count, data.selecting])
    if data.chosen_by is not None:
        arrays["label"] = np.concatenate([np.full(count, UNLABELLED, np.int64), data.chosen_by.astype(np.int64)])
    # The engine finds the samples' axis itself where it is not the first; a constant is the same in every sample.
    arrays |= {name: np.broadcast_to(array, (len(part), *array.shape)) for name, array in data.constants.items()}
    np.savez(path, allow_pickle=False, part=part, **arrays)


# Loading


def _labelled(folder: Path) -> Data:
    """A dataset of onnxpress whose unlabelled samples calibrate; of the labelled ones at most half are chosen on."""
    arrays = _read(folder / "data.npz")
    label = arrays.pop("label")
    typed = _typed(arrays, folder / "model.onnx")
    chosen = label == UNLABELLED
    labelled = {name: array[~chosen] for name, array in typed.items()}
    first = min(SELECT_SAMPLES, int((~chosen).sum()) // 2)
    return Data(
        calibration={name: array[chosen] for name, array in typed.items()},
        test={name: array[first:] for name, array in labelled.items()},
        truth=label[~chosen][first:],
        select={name: array[:first] for name, array in labelled.items()},
        chosen_by=label[~chosen][:first],
    )


def _pages(folder: Path) -> Data:
    calibration, test = _counted(folder)
    masks = _read(folder / "truth.npz")["mask"].astype(bool)
    return Data(calibration, test, masks[-len(next(iter(test.values()))) :])


def _text_lines(folder: Path) -> Data:
    calibration, test = _counted(folder)
    texts = np.array(json.loads((folder / "truth.json").read_text()))
    return Data(calibration, test, texts[-len(next(iter(test.values()))) :])


def _speech(folder: Path) -> Data:
    """Frames with the states that the published network was in; of the first half every fourth calibrates, the second judges."""
    frames = _read(folder / "frames.npz")
    arrays = {name: frames[name] for name in ("input", "state")}
    half = len(frames["input"]) // 2
    return Data(
        calibration={name: array[:half:4] for name, array in arrays.items()},
        test={name: array[half:] for name, array in arrays.items()},
        constants={"sr": np.array(16000, np.int64)},
        sample_axis={"state": 1},
    )


def _counted(folder: Path) -> tuple[Feed, Feed]:
    """Split by network.json, which says how many of the first samples are for calibration."""
    count = json.loads((folder / "network.json").read_text())["calibration"]
    arrays = _typed(_read(folder / "data.npz"), folder / "model.onnx")
    first = {name: array[:count] for name, array in arrays.items()}
    return first, {name: array[count:] for name, array in arrays.items()}


def _read(path: Path) -> Feed:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _typed(arrays: Feed, model: Path) -> Feed:
    """Cast by value to the types of the network's inputs."""
    inputs = onnx.load(model, load_external_data=False).graph.input
    types = {entry.name: onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type) for entry in inputs}
    return {name: array.astype(types[name], copy=False) for name, array in arrays.items()}


# Running


def _classes(session: Session, data: Data) -> Array:
    """The class of each sample."""
    return np.concatenate([_first(session.run(feed)).argmax(axis=1) for feed in data.feeds(32)])


def _masks(session: Session, data: Data) -> Array:
    return np.concatenate([_first(session.run(feed)) > TEXT_MASK for feed in data.feeds(2)])


def _texts(session: Session, data: Data) -> Array:
    """What each line reads: best class per step, repeats merged, blanks dropped; classes stand for characters."""
    steps = np.concatenate([_first(session.run(feed)).argmax(axis=2) for feed in data.feeds(16)])
    changed = np.diff(steps, axis=1, prepend=0) != 0
    characters = _alphabet()
    return np.array(["".join(characters[at] for at in row[new]) for row, new in zip(steps, changed, strict=True)])


def _alphabet() -> list[str]:
    """The character of each class; class 0 is the blank, the last one the space."""
    model = onnx.load(NETWORKS / "ppocr_rec" / "model.onnx")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    return ["", *properties["character"].splitlines(), " "]


def _voice(session: Session, data: Data) -> Array:
    """Whether each frame is speech, with the network's own state carried from frame to frame."""
    state = np.zeros((2, 1, 128), np.float32)
    decided = []
    for frame in data.test["input"]:
        outputs = session.run({"input": frame[None], "state": state, **data.constants})
        decided.append(float(outputs["output"].item()) > SPEECH)
        state = outputs["stateN"]
    return np.array(decided)


def _first(outputs: Mapping[str, Any]) -> Array:
    return np.asarray(next(iter(outputs.values())))


# Judging


def _by_label(answers: Array, original: Array, truth: Array | None) -> Score:
    assert truth is not None
    return scores.top1(answers, original, truth)


def _by_mask(answers: Array, original: Array, truth: Array | None) -> Score:
    assert truth is not None
    return scores.mask_iou(answers, original, truth)


def _by_text(answers: Array, original: Array, truth: Array | None) -> Score:
    assert truth is not None
    return scores.lines(answers, original, truth)


def _by_agreement(answers: Array, original: Array, truth: Array | None) -> Score:
    also = {} if truth is None else {"top1": float((answers == truth).mean())}
    return scores.agreement(answers, original, "agreement", also)


def _most_drop(value: float) -> tuple[Mapping[str, Any], ...]:
    return ({"metric": "top1", "rule": "max_drop", "value": value},)


def _train(name: str) -> str:
    return f"python benchmarks/networks/train.py {name}"


_OCR = "python benchmarks/networks/ppocr.py"
_SPEECH = "python benchmarks/networks/silero.py"

CASES: tuple[Case, ...] = (
    Case(
        "residual_cnn", "Residual CNN, Fashion-MNIST", _labelled, _classes, _by_label, 0.003, _train("residual_cnn"),
        gates=_most_drop(0.003),
    ),
    Case(
        "se_cnn", "Depthwise + squeeze-excite CNN, Fashion-MNIST", _labelled, _classes, _by_label, 0.003,
        _train("se_cnn"), gates=_most_drop(0.003),
    ),
    Case(
        "vit", "Small vision transformer, Fashion-MNIST", _labelled, _classes, _by_label, 0.003, _train("vit"),
        transformer=True, gates=_most_drop(0.003),
    ),
    Case(
        "minilm", "MiniLM sentiment classifier, 48 tokens", _labelled, _classes, _by_label, 0.005,
        "python benchmarks/networks/minilm.py", transformer=True, gates=_most_drop(0.005),
    ),
    Case("ppocr_det", "PP-OCRv4 text detection, 480 x 480", _pages, _masks, _by_mask, 0.05, _OCR),
    Case("ppocr_rec", "PP-OCRv4 text recognition, 48 x 320", _text_lines, _texts, _by_text, 0.02, _OCR),
    Case("ppocr_cls", "PP-OCR text direction, 48 x 192", _labelled, _classes, _by_agreement, 0.02, _OCR),
    Case(
        "silero", "Silero voice activity detector as published", _speech, _voice, _by_agreement, 0.02, _SPEECH,
        folder="silero_vad",
    ),
    Case(
        "silero_16k", "Silero voice activity detector, 16 kHz only", _speech, _voice, _by_agreement, 0.02, _SPEECH,
        folder="silero_vad", model="model_16k.onnx",
    ),
)  # fmt: skip


def named(names: list[str]) -> list[Case]:
    """Give the cases with these names, or all."""
    return [case for case in CASES if not names or case.name in names]
