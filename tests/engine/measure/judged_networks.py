"""Networks as people have them, small, with data; those that decide something are fitted in closed form."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from engine.data.dataset import Samples
from engine.runtime.sessions import Session, session
from engine.target import Target

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@dataclass
class Built:
    """A network with samples to judge it on."""

    model: onnx.ModelProto
    arrays: dict[str, np.ndarray]
    axes: dict[str, int | None] | None = None

    def session(self) -> Session:
        return session(self.model.SerializeToString(), Target())

    def graph(self) -> ir.Model:
        return ir.from_proto(self.model)

    def samples(self) -> Samples:
        count = len(next(iter(self.arrays.values())))
        dtypes = {name: array.dtype for name, array in self.arrays.items()}
        return Samples(self.arrays, dtypes, np.arange(count), self.axes)

    def broken(self, **weights: Any) -> "Built":
        """Give the same network with some of its weights changed by a function."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        known = {tensor.name: tensor for tensor in copy.graph.initializer}
        for name, change in weights.items():
            array = numpy_helper.to_array(known[name])
            known[name].CopyFrom(numpy_helper.from_array(np.asarray(change(array), array.dtype), name))
        return Built(copy, self.arrays, self.axes)


class Draft:
    """Collects nodes and weights; every method gives the name of what it made."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def op(
        self, kind: str, *inputs: str, out: str | None = None, outs: list[str] | None = None, **attributes: Any
    ) -> str:
        names = outs or [out or f"{kind.lower()}{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, list(inputs), names, f"node{len(self.nodes)}", **attributes))
        return names[0]

    def weight(self, name: str, array: Any, dtype: Any = np.float32) -> str:
        self.weights[name] = np.asarray(array, dtype)
        return name

    def ints(self, *numbers: int) -> str:
        return self.weight(f"ints{len(self.weights)}", numbers, np.int64)

    def normal(self, name: str, *shape: int, scale: float | None = None) -> str:
        return self.weight(name, self.random.normal(size=shape) * (scale or 1 / np.sqrt(shape[0])))

    def built(
        self,
        inputs: dict[str, tuple[Any, int]],
        outputs: dict[str, tuple[Any, int]],
        arrays: dict[str, np.ndarray],
        axes: dict[str, int | None] | None = None,
    ) -> Built:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(name, kind, shape) for name, (shape, kind) in inputs.items()],
            [helper.make_tensor_value_info(name, kind, shape) for name, (shape, kind) in outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
        onnx.checker.check_model(model)
        return Built(model, arrays, axes)


def sentence_embedding(*, normalised: bool, name: str = "out", samples: int = 120) -> Built:
    """Token ids and a mask -> table, two dense layers, mean over what is no padding, divided by its length or not."""
    draft = Draft()
    words, width, length = 200, 48, 12
    random = np.random.default_rng(1)
    # Words of one topic are alike, and so are the sentences made of them.
    topics = random.normal(size=(10, width))
    draft.weight("table", topics[np.arange(words) % 10] + random.normal(size=(words, width)) * 0.5)
    x = draft.op("Gather", "table", "input_ids")
    x = draft.op("Tanh", draft.op("MatMul", x, draft.normal("w1", width, width)))
    x = draft.op("MatMul", x, draft.normal("w2", width, width))
    mask = draft.op("Unsqueeze", draft.op("Cast", "attention_mask", to=FLOAT), draft.ints(-1))
    total = draft.op("ReduceSum", draft.op("Mul", x, mask), draft.ints(1), keepdims=0)
    count = draft.op("ReduceSum", mask, draft.ints(1), keepdims=0)
    last = draft.op("Div", total, count, out=None if normalised else name)
    if normalised:
        length_of = draft.op("ReduceL2", last, draft.ints(-1), keepdims=1)
        draft.op("Div", last, draft.op("Clip", length_of, draft.weight("least", 1e-12)), out=name)
    topic = random.integers(0, 10, samples)
    ids = (random.integers(0, words // 10, (samples, length)) * 10 + topic[:, None]).astype(np.int64)
    marks = (np.arange(length)[None, :] < random.integers(4, length + 1, samples)[:, None]).astype(np.int64)
    return draft.built(
        {"input_ids": (["n", "s"], INT64), "attention_mask": (["n", "s"], INT64)},
        {name: (["n", width], FLOAT)},
        {"input_ids": ids, "attention_mask": marks},
    )


def images_with_squares(samples: int = 40, size: int = 32, seed: int = 3) -> np.ndarray:
    """Dark images with up to three bright squares of eight pixels."""
    random = np.random.default_rng(seed)
    images = random.uniform(0, 0.2, (samples, 1, size, size))
    for image in images:
        for _ in range(random.integers(1, 4)):
            top, left = random.integers(0, size // 8, 2) * 8
            image[0, top : top + 8, left : left + 8] += 0.8
    return images.astype(np.float32)


def _cells(draft: Draft, size: int) -> tuple[str, str]:
    """Give boxes (1 or n, 4, cells) by centre and size, and scores (n, 1, cells) of whether a cell is bright."""
    cells = size // 8
    bright = draft.op("Conv", "image", draft.weight("see", np.full((1, 1, 8, 8), 20 / 64)), draft.weight("less", [-10.0]),
                      strides=[8, 8])  # fmt: skip
    scores = draft.op("Sigmoid", draft.op("Reshape", bright, draft.ints(0, 1, cells * cells)))
    # Width and height follow from how bright the cell is, a little.
    spread = draft.op("Conv", "image", draft.weight("grow", np.full((4, 1, 8, 8), 1 / 64)), strides=[8, 8])
    spread = draft.op("Reshape", spread, draft.ints(0, 4, cells * cells))
    spread = draft.op("Mul", spread, draft.weight("stretch", np.array([0.1, 0.1, 1.0, 1.0]).reshape(4, 1)))
    y, x = np.mgrid[0:cells, 0:cells] * 8 + 4
    fixed = np.stack([x.ravel(), y.ravel(), np.full(cells**2, 8), np.full(cells**2, 8)]).astype(np.float32)
    boxes = draft.op("Add", spread, draft.weight("places", fixed[None]))
    return boxes, scores


def raw_detector(size: int = 64) -> Built:
    """A detector as trainers export it: one output [n, 4 + 2 classes, cells], features first."""
    draft = Draft()
    levels = []
    for stride in (8, 16):
        cells = size // stride
        kernel = np.full((1, 1, stride, stride), 20 / stride**2)
        bright = draft.op("Conv", "image", draft.weight(f"see{stride}", kernel), draft.weight(f"less{stride}", [-8.0]),
                          strides=[stride, stride])  # fmt: skip
        score = draft.op("Sigmoid", draft.op("Reshape", bright, draft.ints(0, 1, cells**2)))
        other = draft.op("Mul", score, draft.weight(f"half{stride}", [0.5]))
        y, x = np.mgrid[0:cells, 0:cells] * stride + stride / 2
        fixed = np.stack([x.ravel(), y.ravel(), np.full(cells**2, stride), np.full(cells**2, stride)])[None]
        grown = draft.op("Mul", score, draft.weight(f"grow{stride}", np.full((1, 4, 1), 0.5)))
        box = draft.op("Add", grown, draft.weight(f"places{stride}", fixed))
        levels.append(draft.op("Concat", box, score, other, axis=1))
    draft.op("Concat", *levels, axis=2, out="output0")
    return draft.built(
        {"image": (["n", 1, size, size], FLOAT)},
        {"output0": (["n", 6, None], FLOAT)},
        {"image": images_with_squares(size=size)},
    )


def detector_with_nms(size: int = 32, *, apart: bool = False, samples: int = 40) -> Built:
    """A detector with NonMaxSuppression inside: [detections, 5], or boxes, scores and labels apart."""
    draft = Draft()
    boxes, scores = _cells(draft, size)
    rows = draft.op("Transpose", boxes, perm=[0, 2, 1])
    chosen = draft.op("NonMaxSuppression", rows, scores, draft.weight("most", [20], np.int64), draft.weight("iou", [0.5]),
                      draft.weight("least", [0.3]), center_point_box=1)  # fmt: skip
    index = draft.op("Squeeze", draft.op("Gather", chosen, draft.ints(2), axis=1), draft.ints(1))
    flat = draft.op("Squeeze", rows, draft.ints(0))
    score = draft.op("Squeeze", scores, draft.ints(0, 1))
    if apart:
        draft.op("Gather", flat, index, out="1201")
        draft.op("Gather", score, index, out="1202")
        draft.op("Gather", draft.weight("kinds", np.arange((size // 8) ** 2) % 3, np.int64), index, out="1203")
        outputs = {"1201": (["d", 4], FLOAT), "1202": (["d"], FLOAT), "1203": (["d"], INT64)}
    else:
        kept = draft.op("Unsqueeze", draft.op("Gather", score, index), draft.ints(1))
        draft.op("Concat", draft.op("Gather", flat, index), kept, axis=1, out="final")
        outputs = {"final": (["d", 5], FLOAT)}
    return draft.built({"image": ([1, 1, size, size], FLOAT)}, outputs, {"image": images_with_squares(samples, size)})


def recurrent(samples: int = 60, *, state_turned: bool = False) -> Built:
    """One step of a CNN-GRU that finds voices: a frame and the state in, a score and the next state out."""
    draft = Draft()
    hidden, channels = 16, 8
    x = draft.op("Relu", draft.op("Conv", "frame", draft.normal("conv", channels, 1, 5, scale=0.5), pads=[2, 2]))
    x = draft.op("Transpose", x, perm=[2, 0, 1])  # (steps, samples, channels)
    draft.op("GRU", x, draft.normal("w", 1, 3 * hidden, channels, scale=0.4), draft.normal("r", 1, 3 * hidden, hidden, scale=0.3),
             "", "", "h0", outs=["all", "last"], hidden_size=hidden)  # fmt: skip
    last = draft.op("Squeeze", draft.op("Gather", "all", draft.ints(-1), axis=0), draft.ints(0, 1))
    score = draft.op("MatMul", last, draft.normal("head", hidden, 1, scale=2.0))
    draft.op("Sigmoid", draft.op("Add", score, draft.weight("bias", [-0.3])), out="speech")
    draft.op("Neg" if state_turned else "Identity", "last", out="hn")
    random = np.random.default_rng(5)
    loud = random.uniform(0.2, 3, (samples, 1, 1))
    arrays = {
        "frame": (random.normal(size=(samples, 1, 40)) * loud).astype(np.float32),
        "h0": random.uniform(-1, 1, (samples, 1, hidden)).astype(np.float32),
    }
    return draft.built(
        {"frame": ([1, 1, 40], FLOAT), "h0": ([1, 1, hidden], FLOAT)},
        {"speech": ([1, 1], FLOAT), "hn": ([1, 1, hidden], FLOAT)},
        arrays,
        {"frame": 0, "h0": 1},
    )


def two_headed_regression(samples: int = 200) -> Built:
    """Two regressions on one trunk: three scores between one and five, and a single number."""
    draft = Draft()
    random = np.random.default_rng(7)
    x = random.normal(size=(samples, 12)).astype(np.float32)
    trunk = random.normal(size=(12, 40)) / 3
    hidden = np.maximum(x @ trunk, 0)
    truth = np.stack([3 + 0.3 * np.tanh(x[:, 0]), 4 + 0.3 * x[:, 1] * (x[:, 1] > 0), 2.5 + 0.2 * np.abs(x[:, 2])], 1)
    fit = np.linalg.lstsq(np.c_[hidden, np.ones(samples)], np.c_[truth, x[:, 3] + x[:, 4] ** 2], rcond=None)[0]
    shared = draft.op("Relu", draft.op("MatMul", "x", draft.weight("trunk", trunk)))
    draft.op("Gemm", shared, draft.weight("w_scores", fit[:-1, :3]), draft.weight("b_scores", fit[-1, :3]), out="y0")
    draft.op("Gemm", shared, draft.weight("w_age", fit[:-1, 3:]), draft.weight("b_age", fit[-1, 3:]), out="y1")
    return draft.built({"x": (["n", 12], FLOAT)}, {"y0": (["n", 3], FLOAT), "y1": (["n", 1], FLOAT)}, {"x": x})


def language_model(samples: int = 24, length: int = 10) -> Built:
    """Token ids -> scores of the next token, with the cache of keys that it would give on."""
    draft = Draft()
    words, width = 300, 32
    draft.normal("table", words, width, scale=1.0)
    x = draft.op("Gather", "table", "input_ids")
    key = draft.op("MatMul", x, draft.normal("wk", width, width))
    draft.op("Concat", "past_key_values.0.key", draft.op("Unsqueeze", key, draft.ints(1)), axis=2, out="present.0.key")
    x = draft.op("Tanh", draft.op("Add", x, key))
    draft.op("MatMul", x, draft.normal("head", width, words), out="logits")
    random = np.random.default_rng(9)
    arrays = {
        "input_ids": random.integers(0, words, (samples, length)).astype(np.int64),
        "past_key_values.0.key": random.normal(size=(samples, 1, 4, width)).astype(np.float32),
    }
    return draft.built(
        {"input_ids": (["n", "s"], INT64), "past_key_values.0.key": (["n", 1, "p", width], FLOAT)},
        {"logits": (["n", "s", words], FLOAT), "present.0.key": (["n", 1, "t", width], FLOAT)},
        arrays,
    )


def segmentation(samples: int = 24, size: int = 32) -> Built:
    """An image -> the probability that a pixel is bright."""
    draft = Draft()
    x = draft.op("Conv", "image", draft.weight("see", np.full((1, 1, 3, 3), 40 / 9)), draft.weight("less", [-20.0]),
                 pads=[1] * 4)  # fmt: skip
    draft.op("Sigmoid", x, out="out")
    return draft.built({"image": (["n", 1, size, size], FLOAT)}, {"out": (["n", 1, size, size], FLOAT)},
                       {"image": images_with_squares(samples, size)})  # fmt: skip


def rescored_rows(samples: int = 40) -> Built:
    """A second stage behind rows that pass a threshold, of which some samples have none: layers inside see what the data count."""
    draft = Draft()
    x = draft.op("Relu", draft.op("Conv", "x", draft.normal("conv", 16, 3, 3, 3, scale=0.25), pads=[1] * 4))
    x = draft.op("Relu", draft.op("Conv", x, draft.normal("conv1", 16, 16, 3, 3, scale=0.12), pads=[1] * 4))
    rows = draft.op("Reshape", draft.op("Transpose", x, perm=[0, 2, 3, 1]), draft.ints(-1, 16))
    best = draft.op("ReduceMax", rows, draft.ints(-1), keepdims=0)
    kept = draft.op("Compress", rows, draft.op("Greater", best, draft.weight("limit", 2.3)), axis=0)
    hidden = draft.op("Relu", draft.op("Gemm", kept, draft.normal("first", 16, 64, scale=0.3)))
    draft.op("Gemm", hidden, draft.normal("second", 64, 6, scale=0.2), out="y")
    x = np.random.default_rng(11).normal(size=(samples, 3, 6, 6)).astype(np.float32)
    return draft.built({"x": ([1, 3, 6, 6], FLOAT)}, {"y": (["d", 6], FLOAT)}, {"x": x})


def kept_rows(samples: int = 30) -> Built:
    """Rows of a feature map that pass a threshold: how many, the data decide."""
    draft = Draft()
    x = draft.op("Relu", draft.op("Conv", "x", draft.normal("conv", 8, 3, 3, 3, scale=0.25), pads=[1] * 4))
    x = draft.op("Conv", x, draft.normal("last", 4, 8, 1, 1, scale=0.5))
    rows = draft.op("Reshape", draft.op("Transpose", x, perm=[0, 2, 3, 1]), draft.ints(-1, 4))
    best = draft.op("ReduceMax", rows, draft.ints(-1), keepdims=0)
    draft.op("Compress", rows, draft.op("Greater", best, draft.weight("limit", 1.0)), axis=0, out="y")
    x = np.random.default_rng(11).normal(size=(samples, 3, 12, 12)).astype(np.float32)
    return draft.built({"x": (["b", 3, 12, 12], FLOAT)}, {"y": (["d", 4], FLOAT)}, {"x": x})
