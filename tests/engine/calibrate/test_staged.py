"""Networks run in stages: the tensors are those of the whole network, whatever was changed on the way, and each node runs once."""

from contextlib import nullcontext

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.calibrate import layer_inputs, staged
from engine.calibrate.layer_inputs import LayerInputs, Site
from engine.calibrate.staged import Shelf, plan, segment
from engine.graph import io
from engine.runtime import sessions
from engine.target import Target


class Feeds:
    def __init__(self, **arrays):
        self.arrays = arrays

    def __len__(self):
        return len(next(iter(self.arrays.values())))

    def batches(self, size):
        for start in range(0, len(self), size):
            yield {name: array[start : start + size] for name, array in self.arrays.items()}


def attention(seed=0, *, extra=()):
    """A block of a transformer: three products read one tensor, the mask is used twice, a sum skips over all."""
    rng = np.random.default_rng(seed)
    weights = {name: (rng.standard_normal((8, 8)) / 3).astype(np.float32) for name in ("wq", "wk", "wv", "wo")}
    weights |= {"up": (rng.standard_normal((8, 16)) / 3).astype(np.float32)}
    weights |= {"down": (rng.standard_normal((16, 8)) / 4).astype(np.float32), "one": np.array(1, np.float32)}
    nodes = [
        helper.make_node("Cast", ["mask"], ["seen"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["seen", "axis"], ["columns"]),
        helper.make_node("Mul", ["x", "columns"], ["h"]),
        *(helper.make_node("MatMul", ["h", f"w{part}"], [part], name=part) for part in "qkv"),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["mixed"]),
        helper.make_node("MatMul", ["mixed", "wo"], ["o"], name="o"),
        helper.make_node("Add", ["h", "o"], ["r"]),
        helper.make_node("MatMul", ["r", "up"], ["u"], name="u"),
        helper.make_node("Relu", ["u"], ["a"]),
        helper.make_node("MatMul", ["a", "down"], ["d"], name="d"),
        helper.make_node("Add", ["r", "d"], ["s"]),
        helper.make_node("Mul", ["s", "columns"], ["y"]),
        *extra,
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "t", 8]),
        helper.make_tensor_value_info("mask", TensorProto.INT64, ["n", "t"]),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    tensors.append(numpy_helper.from_array(np.array([2], np.int64), "axis"))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "t", 8])]
    graph = helper.make_graph(nodes, "block", inputs, outputs, tensors)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def sites(model, names="qkvoud"):
    found = []
    for node in model.graph:
        if node.name and node.name in names:
            weights = node.inputs[1].const_value.numpy()
            size = len(weights), weights.shape[1]
            found.append(Site(node.name, node, node.inputs[0].name, *size, None, lambda weights=weights: weights.T))
    return found


def data(count=20, seed=3):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 6, 8)).astype(np.float32)
    mask = (np.arange(6) < rng.integers(2, 7, (count, 1))).astype(np.int64)
    return {"x": x, "mask": mask}


def whole(model, feed, names):
    """Run the network as a whole and give some tensors."""
    copy = io.copy(model)
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.extend(values[name] for name in names)
    return sessions.session(io.to_bytes(copy), Target()).run(feed)


def scale(model, name, factor):
    weight = next(node for node in model.graph if node.name == name).inputs[1]
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(factor), name=weight.name)


def test_layers_that_read_one_tensor_are_one_stage_and_later_ones_start_from_what_they_need():
    model = attention()
    stages, kept = plan(model, sites(model), 1 << 30)
    assert [[site.key for site in stage] for stage in stages] == [["q", "k", "v"], ["o"], ["u"], ["d"]]
    # What only comes after the last layer is not kept, and what was used up is dropped.
    assert [set(names) for names in kept] == [{"h"}, {"h", "mixed"}, {"r"}, {"a"}]


def test_a_stage_takes_no_more_memory_than_it_may():
    model = attention()
    nodes = {node.name: node for node in model.graph}
    nodes["v"].replace_input_with(0, model.graph.inputs[0])
    stages, _ = plan(model, sites(model), sites(model)[0].bytes)
    assert [[site.key for site in stage] for stage in stages][:2] == [["q", "k"], ["v"]]


def test_no_node_is_in_two_stages():
    model = attention()
    _, kept = plan(model, sites(model), 1 << 30)
    starts = data(1)
    ran = []
    for names in kept:
        part = segment(model, starts, names)
        ran += [node.outputs[0].name for node in part.graph]
        given = sessions.session(io.to_bytes(part), Target()).run({v.name: starts[v.name] for v in part.graph.inputs})
        starts = {name: given.get(name, starts.get(name)) for name in names}
    assert len(ran) == len(set(ran))
    np.testing.assert_allclose(starts["a"], whole(model, data(1), ["a"])["a"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("extra", "in_memory", "kept"),
    [((), 1 << 30, 1 << 30), (("SequenceConstruct",), 1 << 30, 1 << 30), ((), 0, 1 << 30), ((), 1 << 30, 1)],
    ids=["tensors", "a sequence", "files", "much in a run"],
)
def test_sums_are_those_of_the_whole_networks_and_leave_padding_out(tmp_path, monkeypatch, extra, in_memory, kept):
    """Each stage sees all earlier layers as they were changed; where something is no tensor, stages start from the inputs."""
    monkeypatch.setattr(staged, "_IN_MEMORY_WEIGHTS", in_memory)
    monkeypatch.setattr(staged, "_MEMORY_BYTES", in_memory)
    monkeypatch.setattr(layer_inputs, "_KEPT_BYTES", kept)
    more = [helper.make_node(kind, ["h"], [f"{kind}0"]) for kind in extra]
    original, model = attention(extra=more), attention(extra=more)
    feed = data()
    judged = data(5, seed=4)
    walk = LayerInputs(
        model, sites(model), Feeds(**feed), Target(), select=Feeds(**judged), working=nullcontext, folder=tmp_path
    )
    seen = []
    for stage, inputs in walk:
        for site in stage:
            now, was, held = (
                whole(each, samples, ["h", "mixed", "r", "a"])[site.source][samples["mask"] == 1]
                for each, samples in ((model, feed), (original, feed), (model, judged))
            )
            (found,) = inputs[site.key]
            assert found.rows == feed["mask"].sum() == len(now)
            np.testing.assert_allclose(found.xtx, now.T @ now, rtol=1e-4, atol=1e-3)
            np.testing.assert_allclose(found.held_out, held[: len(found.held_out)], rtol=1e-4, atol=1e-5)
            pull = now.T @ (was - now) @ site.weights().T
            if found.lack is None:
                np.testing.assert_allclose(pull, 0, atol=1e-4)
            else:
                np.testing.assert_allclose(found.pull(site.weights(), slice(None)), pull, rtol=1e-3, atol=1e-3)
        for site in stage:
            scale(model, site.key, 0.9)
            seen.append(site.key)
    assert seen == list("qkvoud")


def test_a_layer_of_few_rows_looks_at_more_samples(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="h"),
        helper.make_node("ReduceMean", ["h"], ["m"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["y"], name="y"),
    ]
    infos = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", ["n", 40, 4]), ("y", ["n", 4]))]
    tensors = [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], tensors)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    x = np.random.default_rng(0).standard_normal((400, 40, 4)).astype(np.float32)
    walk = LayerInputs(
        model, sites(model, "hy"), Feeds(x=x), Target(), select=None, working=nullcontext, folder=tmp_path
    )
    rows = {key: parts[0].rows + len(parts[0].held_out) for _, inputs in walk for key, parts in inputs.items()}
    # Every fifth run judges. The first layer has enough in 256 runs; the second has one row in each, and takes all.
    assert rows == {"h": 256 * 16, "y": 400}


def test_a_layer_that_reads_a_constant_is_left_out(tmp_path):
    nodes = [helper.make_node("MatMul", ["c", "w"], ["k"], name="k"), helper.make_node("Add", ["x", "k"], ["y"])]
    infos = [helper.make_tensor_value_info(name, 1, ["n", 4]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(np.eye(4, dtype=np.float32), name) for name in ("c", "w")]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], tensors)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    feeds = Feeds(x=np.ones((4, 4), np.float32))
    walk = LayerInputs(model, sites(model, "k"), feeds, Target(), select=None, working=nullcontext, folder=tmp_path)
    assert list(walk) == []


def test_a_shelf_gives_back_what_was_put_on_it_from_memory_and_from_its_file(tmp_path):
    rng = np.random.default_rng(0)
    runs = [
        {"a": rng.standard_normal((3, 50)), "b": rng.integers(0, 9, (2, 2, 2)), "c": np.array(True)} for _ in range(6)
    ]
    shelf = Shelf(tmp_path, limit=3000)
    for run in runs:
        shelf.put(run)
    for number, run in enumerate(runs):
        taken = shelf.take(number)
        assert taken.keys() == run.keys()
        for name, array in run.items():
            np.testing.assert_array_equal(taken[name], array)
            assert taken[name].dtype == array.dtype
    shelf.close()


def test_what_waits_for_the_next_stage_holds_no_memory_of_this_one(tmp_path, lent):
    shelf = Shelf(tmp_path)
    shelf.put(whole(attention(), data(2), ["h", "o"]))
    assert lent() == 0
    assert shelf.take(0).keys() == {"y", "h", "o"}
