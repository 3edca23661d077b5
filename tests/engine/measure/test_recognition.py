"""What outputs are taken for, one by one, and what they are not taken for."""

import numpy as np
import pytest

from engine.graph.endings import Ending
from engine.measure.observed import Observed
from engine.measure.recognition import Labels, main_output, recognise, split_name
from engine.outputs import OutputDeclaration

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def softmax(scores, axis=-1):
    powers = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def sigmoid(scores):
    return 1 / (1 + np.exp(-np.clip(scores, -60, 60)))


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def corners(*shape):
    low = RANDOM.uniform(0, 50, (*shape, 2))
    return np.concatenate([low, low + RANDOM.uniform(1, 40, (*shape, 2))], axis=-1).astype(np.float32)


def rows_of_detector(count, rows):
    numbers = [corners(count, rows), RANDOM.uniform(0, 1, (count, rows, 1)), RANDOM.integers(0, 9, (count, rows, 1))]
    return np.concatenate(numbers, axis=-1).astype(np.float32)


def found(outputs, *, inputs=None, ops=None, endings=None, **options):
    """Recognise outputs from their values; `ops` names the operators that make them."""
    seen = {}
    for name, values in outputs.items():
        seen[name] = Observed()
        seen[name].add(values)
    known = endings or {name: Ending(op, upstream=frozenset({op})) for name, op in (ops or {}).items()}
    return recognise(
        seen,
        inputs=inputs or {"x": normal(64, 3, 64, 64)},
        shapes={name: values.shape for name, values in outputs.items()},
        endings=known,
        **options,
    )


def kind_of(values, name="y", op=None, **options):
    return found({name: values}, ops={name: op} if op else None, **options)[name].kind


IDS = {"input_ids": np.zeros((64, 10), np.int64)}
TABLE = Ending("MatMul", upstream=frozenset({"Gather", "MatMul"}), vocabulary=frozenset({500}))

CASES = [
    # Nothing says what they are: the numbers count.
    ("opinion scores, three of one to five", normal(64, 3) + 3, "y", "Gemm", "values"),
    ("a regression of two columns", normal(64, 2), "y", "Gemm", "values"),
    ("an unnamed head of ten", normal(64, 10), "y", "Gemm", "values"),
    ("heat maps of key points", sigmoid(normal(64, 17, 16, 16) * 6), "heatmaps", "Sigmoid", "values"),
    ("an image made by Sigmoid", sigmoid(normal(64, 3, 16, 16)), "y", "Sigmoid", "values"),
    ("a depth map", sigmoid(normal(64, 1, 16, 16)), "disparity", "Sigmoid", "values"),
    ("key points between 0 and 1", sigmoid(normal(64, 34)), "keypoints", "Sigmoid", "values"),
    ("attention over positions", softmax(normal(64, 4, 8, 8)), "attentions", "Softmax", "values"),
    ("a feature map of few places", normal(64, 1, 12, 12), "y", "Conv", "values"),
    ("a probability of a frame that is never passed", sigmoid(normal(64, 1) - 12), "output", "Sigmoid", "values"),
    ("one box for each sample", sigmoid(normal(64, 4)), "box", "Sigmoid", "values"),
    # Decisions.
    ("scores behind a softmax", softmax(normal(64, 3)), "y", "Softmax", "classes"),
    ("log probabilities", np.log(softmax(normal(64, 3))), "y", "LogSoftmax", "classes"),
    ("probabilities whose graph nobody knows", softmax(normal(64, 5)), "y", None, "classes"),
    ("logits of two classes", normal(64, 2), "logits", "Gemm", "classes"),
    ("as many numbers as ImageNet has classes", normal(64, 1000), "495", "Gemm", "classes"),
    ("letters at each step", softmax(normal(64, 20, 40)), "y", "Softmax", "classes"),
    ("a probability of a frame", sigmoid(normal(64, 1) * 3), "output", "Sigmoid", "classes"),
    ("several labels at once", sigmoid(normal(64, 6) * 3), "y", "Sigmoid", "classes"),
    ("what ArgMax chose", RANDOM.integers(0, 9, 64), "y", "ArgMax", "classes"),
    ("a binary logit", normal(64, 1), "logit", "Gemm", "classes"),
    # Vectors.
    ("a vector of length one", unit(normal(64, 384)), "y", None, "embedding"),
    ("a vector by name", normal(64, 384), "sentence_embedding", "Gemm", "embedding"),
    ("hidden vectors", normal(64, 10, 256), "last_hidden_state", "LayerNormalization", "embedding"),
    ("normalised vectors", normal(64, 10, 256), "y", "LayerNormalization", "embedding"),
    ("face features", normal(64, 512), "feat", "BatchNormalization", "embedding"),
    # Areas.
    ("a mask by name", normal(64, 1, 16, 16), "masks", "Conv", "mask"),
    ("a mask of two values", sigmoid(normal(64, 1, 16, 16) * 30), "y", "Sigmoid", "mask"),
    ("classes of places", softmax(normal(64, 4, 16, 16), axis=1), "y", "Softmax", "mask"),
    ("a class for each place", RANDOM.integers(0, 4, (64, 16, 16)), "y", "ArgMax", "mask"),
    # Detections.
    ("rows of box, score and class", rows_of_detector(64, 30), "y", None, "boxes"),
    ("rows by name", rows_of_detector(64, 30)[..., :5], "dets", None, "boxes"),
    ("numbers called boxes that are none", normal(64, 30, 4), "boxes", "Conv", "values"),
    # Tokens.
    ("tokens that were chosen", RANDOM.integers(0, 500, (64, 12)), "sequences", None, "tokens"),
]


@pytest.mark.parametrize(
    ("values", "name", "op", "kind"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_each_is_taken_for_what_it_is(values, name, op, kind):
    taken = found({name: values}, ops={name: op} if op else None)[name]
    assert (taken.kind, taken.reason) == (kind, taken.reason)
    assert len(taken.reason) > 10


@pytest.mark.parametrize("features", [5, 84])
def test_a_raw_head_of_one_stage_has_a_row_for_each_cell(features):
    """At 640 pixels three grids have 8400 cells."""
    rows = np.concatenate([RANDOM.uniform(1, 600, (2, 4, 8400)), RANDOM.uniform(0, 1, (2, features - 4, 8400))], axis=1)
    image = {"images": np.zeros((2, 3, 640, 640), np.float32)}
    taken = found({"output0": rows.astype(np.float32)}, inputs=image)["output0"]
    assert taken.kind == "boxes"
    assert "8400" in taken.reason
    other = found({"output0": rows[..., :8399].astype(np.float32)}, inputs=image)["output0"]
    assert other.kind == "values"


def test_scores_at_each_position_are_known_by_their_winners():
    """A reader of text (CTC) without a softmax at its end; hidden vectors and spectra have no winners."""
    draw = np.random.default_rng(5)
    scores = draw.standard_normal((8, 20, 600)).astype(np.float32)
    read = scores.copy()
    np.put_along_axis(read, draw.integers(0, 40, (8, 20, 1)), 18.0, axis=-1)
    taken = found({"387": read}, ops={"387": "Gemm"})["387"]
    assert taken.kind == "tokens"
    assert "600 classes at each position" in taken.reason
    others = {
        "no winners": (scores, "Gemm"),
        "behind a convolution": (read, "Conv"),
        "few classes": (read[..., :80], "Gemm"),
        "always the same one": (np.concatenate([np.full((8, 20, 1), 18.0, np.float32), scores], axis=-1), "Gemm"),
    }
    for name, (values, op) in others.items():
        assert found({"y": values}, ops={"y": op})["y"].kind == "values", name
    # A name says it before any number does.
    assert found({"features": read}, ops={"features": "Gemm"})["features"].kind == "embedding"


def test_scores_of_tokens_are_known_by_the_table_that_inputs_are_looked_up_in():
    scores = normal(64, 10, 500)
    assert found({"y": scores}, inputs=IDS, endings={"y": TABLE})["y"].kind == "tokens"
    assert found({"y": scores[..., :499]}, inputs=IDS, endings={"y": TABLE})["y"].kind == "values"
    assert found({"logits": scores}, inputs=IDS)["logits"].kind == "tokens"
    assert found({"logits": scores[..., :9]}, inputs=IDS)["logits"].kind == "classes"


@pytest.mark.parametrize(
    ("inward", "outward"),
    [("h0", "hn"), ("state", "stateN"), ("h_in", "h_out"), ("past_key_values.3.value", "present.3.value"), ("cache_1", "cache_out_1"),
     ("prevState", "newState"), ("input_states", "output_states")],
)  # fmt: skip
def test_a_state_comes_back_as_an_input(inward, outward):
    state = normal(2, 1, 32)
    taken = found({outward: state}, inputs={"x": normal(1, 9), inward: state})[outward]
    assert (taken.kind, taken.weight) == ("state", 0.1)
    assert f"`{inward}`" in taken.reason
    # Another shape: a name alone is no state.
    assert found({outward: state}, inputs={"x": normal(1, 9), inward: normal(4, 6)})[outward].kind != "state" or (
        outward.startswith("present")
    )


def test_an_image_that_becomes_an_image_is_no_state():
    image = normal(8, 3, 16, 16)
    assert kind_of(image, "output", inputs={"input": image}) == "values"
    hidden = normal(8, 10, 64)
    assert kind_of(hidden, "last_hidden_state", inputs={"encoder_hidden_states": hidden}) == "embedding"


def test_labels_and_declarations_go_before_all_else():
    scores = normal(64, 3)
    assert kind_of(scores, labelled=Labels("y", "top1")) == "classes"
    assert kind_of(softmax(scores), op="Softmax", labelled=Labels("y", "mse")) == "values"
    assert (
        kind_of(scores, labelled=Labels("y", "top1"), declared={"y": OutputDeclaration(kind="embedding")})
        == "embedding"
    )
    assert kind_of(scores, like={"y": ("classes", "so it was")}) == "classes"
    ignored = found({"y": scores}, declared={"y": OutputDeclaration(ignore=True)})["y"]
    assert ignored.ignored
    assert not ignored.judged


def test_boxes_take_their_scores_and_labels_along():
    parts = {
        "pred_boxes": corners(16, 30),
        "scores": RANDOM.uniform(0, 1, (16, 30)).astype(np.float32),
        "labels": RANDOM.integers(0, 5, (16, 30)),
        "embedding": normal(16, 64),
    }
    taken = found(parts)
    assert {name: each.kind for name, each in taken.items()} == {
        "pred_boxes": "boxes", "scores": "boxes", "labels": "boxes", "embedding": "embedding"
    }  # fmt: skip
    assert taken["pred_boxes"].companions == {"scores": "scores", "labels": "labels"}
    assert taken["scores"].judged_with == taken["labels"].judged_with == "pred_boxes"
    assert [each.name for each in taken.values() if each.judged] == ["pred_boxes", "embedding"]
    assert main_output(taken.values()) == "pred_boxes"


def test_the_output_that_decides_speaks_for_the_network():
    taken = found(
        {"hn": normal(64, 8), "features": normal(64, 64), "logits": normal(64, 5)}, inputs={"h0": normal(64, 8)}
    )
    assert [each.kind for each in taken.values()] == ["state", "embedding", "classes"]
    assert main_output(taken.values()) == "logits"
    assert main_output([taken["hn"], taken["features"]]) == "features"
    assert main_output([taken["hn"]]) == "hn"


def test_an_input_that_is_passed_on_speaks_only_where_there_is_no_other():
    passed, pooled = Ending(None, passed_on=True), Ending("Div", pooled=True)
    taken = found(
        {"ids": RANDOM.integers(0, 9, (64, 12)), "vector": normal(64, 96)}, endings={"ids": passed, "vector": pooled}
    )
    assert [each.kind for each in taken.values()] == ["classes", "embedding"]
    assert taken["ids"].weight < taken["vector"].weight
    assert "passed on" in taken["ids"].reason
    assert main_output(taken.values()) == "vector"
    assert main_output([taken["ids"]]) == "ids"
    # A table that an input is looked up in is the network's own.
    assert not found({"y": normal(64, 96)}, endings={"y": Ending(None)})["y"].passed_on


def test_a_mean_of_scores_is_a_score():
    ending = Ending("ReduceMean", pooled=True, mean_of_sigmoid=True, upstream=frozenset({"Sigmoid", "ReduceMean"}))
    spread = sigmoid(np.linspace(-4, 4, 64, dtype=np.float32)[:, None])
    assert found({"output": spread}, endings={"output": ending})["output"].kind == "classes"
    assert found({"output": spread * 0.4}, endings={"output": ending})["output"].kind == "values"


@pytest.mark.parametrize(
    ("name", "words"),
    [("present.0.key", ["present", "0", "key"]), ("stateN", ["state", "n"]), ("h0", ["h", "0"]),
     ("last_hidden_state", ["last", "hidden", "state"]), ("Identity:0", ["identity", "0"])],
)  # fmt: skip
def test_names_are_read_word_by_word(name, words):
    assert split_name(name) == words
