"""Tree ensembles as skl2onnx, onnxmltools and hummingbird write them: smaller files, the same results to the last bit or nearly."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.graph import io
from engine.graph.forests import Branch, Forest, Leaf, read_forest
from engine.graph.simplify import simplify
from engine.graph.tree_ensembles import shorten, to_version_5, why_kept
from engine.runtime import sessions
from engine.target import Target

ML = "ai.onnx.ml"
FEATURES = 6
ANY = (TensorProto.FLOAT, ["n", FEATURES])


class Trees:
    """Random trees as the lists of a node; leaves take their votes from a function of the tree."""

    def __init__(self, count, depth, votes, *, seed=0, missing=0.0):
        self.random = np.random.default_rng(seed)
        self.votes, self.missing = votes, missing
        self.nodes = {
            name: []
            for name in (
                "treeids",
                "nodeids",
                "featureids",
                "values",
                "modes",
                "truenodeids",
                "falsenodeids",
                "hitrates",
                "missing_value_tracks_true",
            )
        }
        self.leaves = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}
        for tree in range(count):
            self._grow(tree, depth)

    def _grow(self, tree, depth):
        waiting, taken = [(0, depth)], 1
        while waiting:
            number, left = waiting.pop(0)
            leaf = left == 0 or (left < 3 and self.random.random() < 0.2)
            # Few thresholds, so that some tests are decided by those before them.
            row = (tree, number, int(self.random.integers(FEATURES)), 0.0 if leaf else float(self.random.integers(-4, 5)) / 4,
                   "LEAF" if leaf else "BRANCH_LEQ", 0 if leaf else taken, 0 if leaf else taken + 1, 1.0,
                   int(not leaf and self.random.random() < self.missing))  # fmt: skip
            for name, value in zip(self.nodes, row, strict=True):
                self.nodes[name].append(value)
            if leaf:
                for target, weight in self.votes(tree, self.random):
                    for name, value in zip(self.leaves, (tree, number, target, weight), strict=True):
                        self.leaves[name].append(value)
            else:
                waiting += [(taken, left - 1), (taken + 1, left - 1)]
                taken += 2

    def node(self, kind, outputs, name="trees", **attributes):
        prefix = "target" if kind.endswith("Regressor") else "class"
        lists = {f"nodes_{key}": value for key, value in self.nodes.items()}
        lists |= {f"{prefix}_{key}": value for key, value in self.leaves.items()}
        return helper.make_node(kind, ["x"], outputs, name, domain=ML, **lists, **attributes)


def network(nodes, outputs, *, version=1, source=ANY, opset=17, extra=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", *source)],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        [numpy_helper.from_array(array, name) for name, array in extra],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(ML, version)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()


SCORES, LABEL = ("scores", TensorProto.FLOAT, ["n", None]), ("label", TensorProto.INT64, ["n"])


def boosted(trees=40, base=(0.5,), **attributes):
    """A gradient-boosted regressor: one number per leaf."""
    grown = Trees(trees, 5, lambda _tree, random: [(0, float(np.float32(random.standard_normal())))])
    given = {"base_values": list(base)} if base else {}
    return network([grown.node("TreeEnsembleRegressor", ["scores"], n_targets=1, **given, **attributes)], [SCORES])


def forest_of_regressors():
    """A random forest with two targets: every leaf gives both."""
    grown = Trees(
        10, 5, lambda _tree, random: [(target, float(np.float32(random.standard_normal()))) for target in range(2)]
    )
    node = grown.node("TreeEnsembleRegressor", ["scores"], n_targets=2, aggregate_function="AVERAGE")
    return network([node], [SCORES])


def boosted_classifier(labels, transform="SOFTMAX"):
    """Trees in turn for each class, as boosting makes them."""
    classes = len(labels)
    grown = Trees(12 * classes, 4, lambda tree, random: [(tree % classes, float(np.float32(random.standard_normal())))])
    named = {"classlabels_strings": labels} if isinstance(labels[0], str) else {"classlabels_int64s": labels}
    node = grown.node("TreeEnsembleClassifier", ["label", "scores"], post_transform=transform, **named)
    kind = TensorProto.STRING if isinstance(labels[0], str) else TensorProto.INT64
    return network([node], [("label", kind, ["n"]), SCORES])


def boosted_binary(base=(-0.2,), missing=0.0):
    """Two classes told apart by the sign of one sum, with missing values."""
    grown = Trees(30, 4, lambda _tree, random: [(0, float(np.float32(random.standard_normal())))], missing=missing)
    given = {"base_values": list(base)} if base else {}
    node = grown.node(
        "TreeEnsembleClassifier", ["label", "scores"], post_transform="LOGISTIC", classlabels_int64s=[3, 7], **given
    )
    return network([node], [LABEL, SCORES])


def random_forest():
    """Every leaf gives the share of each class."""

    def shares(_tree, random):
        found = random.dirichlet([1.0] * 3)
        return [(target, float(np.float32(share))) for target, share in enumerate(found)]

    grown = Trees(15, 5, shares)
    node = grown.node("TreeEnsembleClassifier", ["label", "scores"], classlabels_int64s=[0, 1, 2])
    return network([node], [LABEL, SCORES])


def behind_a_scaler():
    """With other operators of the domain before it, and an encoder of labels after."""
    grown = Trees(30, 5, lambda _tree, random: [(0, float(np.float32(random.standard_normal())))])
    scale = helper.make_node("Scaler", ["raw"], ["x"], domain=ML, offset=[0.1] * FEATURES, scale=[2.0] * FEATURES)
    trees = grown.node("TreeEnsembleRegressor", ["scores"], n_targets=1)
    graph = helper.make_graph(
        [scale, trees], "g", [helper.make_tensor_value_info("raw", *ANY)], [helper.make_tensor_value_info(*SCORES)]
    )
    imports = [helper.make_opsetid("", 15), helper.make_opsetid(ML, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()


NETWORKS = {
    "boosted regressor": (boosted(), 0.45, "TreeEnsemble"),
    "boosted regressor, averaged": (boosted(aggregate_function="AVERAGE", base=()), 0.45, "TreeEnsemble"),
    "trees that are one leaf": (network([Trees(3, 0, lambda *_: [(0, 2.5)]).node("TreeEnsembleRegressor", ["scores"], n_targets=1)], [SCORES]), 1.0, None),
    "forest of two targets": (forest_of_regressors(), 0.8, "TreeEnsembleRegressor"),
    "boosted classes": (boosted_classifier([0, 1, 2]), 0.45, "TreeEnsemble"),
    "boosted classes with names, raw sums": (boosted_classifier(["a", "b", "ß"], "NONE"), 0.45, "TreeEnsemble"),
    "two boosted classes": (boosted_binary(), 0.45, "TreeEnsemble"),
    "two boosted classes, values missing": (boosted_binary(missing=0.5), 0.45, "TreeEnsemble"),
    "random forest": (random_forest(), 0.85, "TreeEnsembleClassifier"),
    "behind a scaler": (behind_a_scaler(), 0.45, "TreeEnsemble"),
}  # fmt: skip


def samples(count=200):
    """Values on thresholds, between them, beyond them, and missing ones."""
    random = np.random.default_rng(5)
    x = random.choice(np.arange(-6, 7) / 4, (count, FEATURES)) + random.choice([0, 1e-3], (count, FEATURES))
    x[random.random(x.shape) < 0.05] = np.nan
    return x.astype(np.float32)


def run(serialized, x):
    opened = sessions.session(serialized, Target())
    return opened.run({opened.inputs[0].name: x})


def read(serialized):
    return ir.from_proto(onnx.load_model_from_string(serialized))


@pytest.mark.parametrize(("serialized", "share", "operator"), NETWORKS.values(), ids=NETWORKS)
def test_simplify_makes_it_smaller_and_keeps_every_result(serialized, share, operator, context, arrays):
    model, x = read(serialized), samples()
    name = model.graph.inputs[0].name
    change = simplify(model, context(model, arrays(**{name: x[:16]})))
    after = io.to_bytes(model)
    onnx.checker.check_model(after)
    assert len(after) <= share * len(serialized)
    if operator is None:
        return
    assert operator in {node.op_type for node in model.graph}
    wanted, found = run(serialized, x), run(after, x)
    assert list(wanted) == list(found)
    for output in wanted:
        assert wanted[output].shape == found[output].shape
        assert wanted[output].dtype == found[output].dtype
        if wanted[output].dtype == np.float32:
            np.testing.assert_allclose(found[output], wanted[output], rtol=0, atol=1e-6)
        else:
            assert (found[output] == wanted[output]).all()
    assert any("tree ensembles" in stage for stage in change.details.stages)
    assert "ree ensembles take" in change.summary
    assert "computed in every run" not in change.summary


def test_twice_is_harmless_and_says_that_nothing_can_go(context, arrays):
    model = read(random_forest())
    given = context(model, arrays(x=samples(8)))
    simplify(model, given)
    once = io.to_bytes(model)
    change = simplify(model, given)
    assert io.to_bytes(model) == once
    (dropped,) = [each for each in change.details.dropped_stages if "tree" in each.stage]
    assert "its leaves give several numbers each" in dropped.reason


def _tree(*branches, votes):
    """Branches as (feature, threshold, true, false), numbers below zero are leaves."""
    leaf = [Leaf(((0, weight),)) for weight in votes]

    def build(at):
        if at < 0:
            return leaf[-at - 1]
        feature, threshold, true, false = branches[at]
        return Branch(feature, "BRANCH_LEQ", threshold, False, build(true), build(false))

    return build(0)


@pytest.mark.parametrize(
    ("tree", "left"),
    [
        (_tree((0, 1.0, 1, -1), (0, 2.0, -2, -3), votes=[1, 2, 3]), 1),  # x <= 1, so x <= 2
        (_tree((0, 1.0, -1, 1), (0, 0.5, -2, -3), votes=[1, 2, 3]), 1),  # not x <= 1, so not x <= 0.5
        (_tree((0, 1.0, -1, 1), (1, 0.5, -2, -2), votes=[1, 2]), 1),  # both sides give the same
        (_tree((0, 1.0, 1, -1), (1, 2.0, -2, -3), votes=[1, 2, 3]), 2),  # another feature
        (_tree((0, 1.0, 1, -1), (0, 0.0, -2, -3), votes=[1, 2, 3]), 2),  # both may be
    ],
)
def test_branches_whose_outcome_is_known_go(tree, left):
    assert len(Forest([(0, tree)]).simplified().branches()) == left


def test_missing_values_keep_tests_that_numbers_would_decide():
    inner = Branch(0, "BRANCH_LEQ", 2.0, True, Leaf(((0, 1.0),)), Leaf(((0, 2.0),)))
    outer = Branch(0, "BRANCH_LEQ", 1.0, True, inner, Leaf(((0, 3.0),)))
    assert len(Forest([(0, outer)]).simplified().branches()) == 2


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"nodes_truenodeids": [1, 0, 0, 9]}, "different lengths"),
        ({"nodes_nodeids": [0, 1, 1]}, "same number"),
        ({"nodes_truenodeids": [9, 0, 0]}, "single root|leads nowhere"),
        ({"nodes_truenodeids": [0, 0, 0]}, "belong to no tree"),
    ],
)
def test_lists_that_are_no_trees_are_left_alone(broken, reason):
    lists = {
        "nodes_treeids": [0] * 3, "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0] * 3, "nodes_values": [0.5, 0.0, 0.0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0],
        "target_treeids": [0, 0], "target_nodeids": [1, 2], "target_ids": [0, 0], "target_weights": [1.0, 2.0],
    }  # fmt: skip
    node = helper.make_node("TreeEnsembleRegressor", ["x"], ["scores"], domain=ML, n_targets=1, **lists | broken)
    model = read(network([node], [SCORES]))
    found = read_forest(next(iter(model.graph)))
    assert isinstance(found, str)
    assert any(part in found for part in reason.split("|"))
    before = io.to_bytes(model)
    assert io.to_bytes(to_version_5(shorten(model))) == before
    assert found in why_kept(model)


def test_double_precision_and_old_encoders_keep_their_form():
    grown = Trees(4, 3, lambda *_: [(0, 1.5)])
    node = grown.node("TreeEnsembleRegressor", ["scores"], n_targets=1)
    double = read(
        network([node], [("scores", TensorProto.FLOAT, ["n", None])], source=(TensorProto.DOUBLE, ["n", FEATURES]))
    )
    to_version_5(shorten(double))
    assert {each.op_type for each in double.graph} == {"TreeEnsembleRegressor"}
    assert "nodes_values" in next(iter(double.graph)).attributes
    assert "double precision" in why_kept(double)
    encoder = helper.make_node("LabelEncoder", ["name"], ["number"], domain=ML, classes_strings=["a", "b"])
    graph = helper.make_graph(
        [node, encoder],
        "g",
        [helper.make_tensor_value_info("x", *ANY), helper.make_tensor_value_info("name", TensorProto.STRING, ["n"])],
        [helper.make_tensor_value_info(*SCORES), helper.make_tensor_value_info("number", TensorProto.INT64, ["n"])],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(ML, 1)]
    old = ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8))
    to_version_5(shorten(old))
    assert old.opset_imports[ML] == 1, "its LabelEncoder means something else later"


@pytest.mark.parametrize(
    "kind", ["quantize_static", "quantize_dynamic", "quantize_weights", "factorise", "prune_weights"]
)
def test_passes_of_layers_say_where_trees_get_smaller(kind, tmp_path):
    from pydantic import TypeAdapter

    from engine.graph.validate import inspect_model
    from engine.passes import AnyPass

    (tmp_path / "m.onnx").write_bytes(random_forest())
    step = TypeAdapter(AnyPass).validate_python({"type": kind})
    refusal = step.requires(inspect_model(tmp_path / "m.onnx")) or step.check(read(random_forest()))
    assert "simplify" in refusal.hint
