"""The stages of `simplify` for tree ensembles: lists without what says nothing, then the operator of ai.onnx.ml version 5.

Until version 4 a node of a tree takes some 35 bytes of a file, the name of its test alone 12. Version 5 (`TreeEnsemble`) keeps
tests and thresholds in tensors and leaves by themselves: a third of that.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from engine.graph import io
from engine.graph.attributes import integer, text
from engine.graph.forests import (
    CLASSIFIER,
    REGRESSOR,
    Branch,
    Forest,
    Leaf,
    Tree,
    base_values,
    class_labels,
    holds_doubles,
    is_ensemble,
    post_transform,
    read_forest,
)
from engine.graph.linear import node_name

_DOMAIN = "ai.onnx.ml"
_VERSION, _TENSORS_VERSION = 5, 3
_MODES = {"BRANCH_LEQ": 0, "BRANCH_LT": 1, "BRANCH_GTE": 2, "BRANCH_GT": 3, "BRANCH_EQ": 4, "BRANCH_NEQ": 5}
_AGGREGATES = {"AVERAGE": 0, "SUM": 1, "MIN": 2, "MAX": 3}
_TRANSFORMS = {"NONE": 0, "SOFTMAX": 1, "LOGISTIC": 2, "SOFTMAX_ZERO": 3, "PROBIT": 4}
_BINARY = 2
# By version of the domain: operators that mean the same in all later ones, though their definition was written anew.
_COMPATIBLE = dict.fromkeys((2, 3, 4), ("LabelEncoder",))


def holds_ensembles(model: ir.Model) -> bool:
    """Say whether there is a tree ensemble that these stages know."""
    return any(is_ensemble(node) for node in model.graph.all_nodes())


def shorten(model: ir.Model) -> ir.Model:
    """Drop branches that no sample takes, and lists that say nothing: hit rates, and that no value may be missing."""
    tensors, used = _may_become(model, _TENSORS_VERSION), False
    for node in model.graph.all_nodes():
        if not is_ensemble(node):
            continue
        for name in ("nodes_hitrates", "nodes_hitrates_as_tensor"):
            node.attributes.pop(name, None)
        missing = node.attributes.get("nodes_missing_value_tracks_true")
        if missing is not None and not any(missing.as_ints()):
            node.attributes.pop("nodes_missing_value_tracks_true")
        forest = read_forest(node)
        if not isinstance(forest, str) and not _in_doubles(node):
            _rewrite_lists(node, forest.simplified(), tensors=tensors)
            used = tensors
    if used:
        # The first version whose thresholds may be tensors.
        model.opset_imports[_DOMAIN] = max(model.opset_imports[_DOMAIN], _TENSORS_VERSION)
    return model


def _may_become(model: ir.Model, version: int) -> bool:
    """Say whether the other operators of the domain mean the same in a later version of it."""
    now = model.opset_imports.get(_DOMAIN, 1)
    others = {node.op_type for node in model.graph.all_nodes() if node.domain == _DOMAIN and not is_ensemble(node)}
    return all(kind in _COMPATIBLE.get(now, ()) or _since(kind, now) == _since(kind, version) for kind in others)


def _since(kind: str, version: int) -> int:
    try:
        return int(onnx.defs.get_schema(kind, version, _DOMAIN).since_version)
    except onnx.defs.SchemaError:
        return 0


def _in_doubles(node: ir.Node) -> bool:
    """Say whether an ensemble compares numbers in double precision, or integers."""
    source = node.inputs[0]
    return holds_doubles(node) or (source is not None and source.dtype not in {None, ir.DataType.FLOAT})


def why_kept(model: ir.Model) -> str:
    """Say why no ensemble of a network can be stored smaller."""
    nodes = [node for node in model.graph.all_nodes() if is_ensemble(node)]
    reasons = [(node, reason) for node in nodes for reason in why_not_version_5(node)]
    if reasons:
        return f"`{node_name(reasons[0][0])}` keeps its form: {reasons[0][1]}"
    return "no branch, list or leaf of its tree ensembles can go"


def to_version_5(model: ir.Model) -> ir.Model:
    """Write all ensembles as `TreeEnsemble`, equal leaves once; the model stays as it is if one cannot be."""
    nodes = [node for node in model.graph.all_nodes() if is_ensemble(node)]
    # Version 5 has no place for the older operators.
    if not nodes or not _may_become(model, _VERSION) or any(next(why_not_version_5(node), None) for node in nodes):
        return model
    writer = _Writer(model)
    for node in nodes:
        writer.replace(node)
    model.opset_imports[_DOMAIN] = _VERSION
    return model


def why_not_version_5(node: ir.Node) -> Iterator[str]:
    """Say what `TreeEnsemble` of version 5 cannot hold of an ensemble."""
    forest = read_forest(node)
    if isinstance(forest, str):
        yield forest
        return
    if any(len(leaf.votes) != 1 for leaf in forest.leaves()):
        yield "its leaves give several numbers each, and version 5 holds one per leaf"
    if _in_doubles(node):
        yield "it compares numbers in double precision, or integers"
    if any(branch.mode not in _MODES for branch in forest.branches()):
        yield "it has a kind of test that version 5 does not name"
    if len(base_values(node)) and post_transform(node) != "NONE" and node.op_type == REGRESSOR:
        yield "numbers are added before its last transformation"
    if node.op_type == CLASSIFIER:
        yield from _classifier_objections(node, forest)


def _classifier_objections(node: ir.Node, forest: Forest) -> Iterator[str]:
    labels = class_labels(node)
    if labels is None:
        yield "it names no classes"
        return
    voted = {target for leaf in forest.leaves() for target, _ in leaf.votes}
    transform = post_transform(node)
    if len(labels) == _BINARY and len(voted) == 1:
        # Only signs decide then; positive weights alone would be probabilities, which are read otherwise.
        # Votes for the second class alone leave the first one's score at a half.
        if (
            voted != {0}
            or transform != "LOGISTIC"
            or all(weight > 0 for leaf in forest.leaves() for _, weight in leaf.votes)
        ):
            yield "its two classes are told apart in a way that depends on the runtime"
    elif not _always_vote(forest, len(labels)):
        yield "some of its classes get no vote from some samples"
    elif transform not in {"NONE", "SOFTMAX"}:
        yield f"its scores are transformed by {transform}"


def _always_vote(forest: Forest, classes: int) -> bool:
    """Say whether each class has a tree that always votes for it: then the largest score decides."""
    sure = set()
    for tree in forest.trees:
        targets = {target for leaf in Forest([tree]).leaves() for target, _ in leaf.votes}
        if len(targets) == 1:
            sure |= targets
    return sure == set(range(classes)) and classes > 1


def _rewrite_lists(node: ir.Node, forest: Forest, *, tensors: bool) -> None:
    """Write a forest back in the form of the earlier versions: every node by itself, numbered by tree."""
    kind = "target" if node.op_type == REGRESSOR else "class"
    rows = list(_listed(forest))
    for name, column in zip(
        ("treeids", "nodeids", "featureids", "truenodeids", "falsenodeids"),
        zip(*(row[:5] for row in rows), strict=True),
        strict=True,
    ):
        node.attributes[f"nodes_{name}"] = ir.AttrInt64s(f"nodes_{name}", list(column))
    trees = [row[5] for row in rows]
    values = [tree.threshold if isinstance(tree, Branch) else 0.0 for tree in trees]
    modes = [tree.mode if isinstance(tree, Branch) else "LEAF" for tree in trees]
    _set_floats(node, "nodes_values", values, tensors=tensors)
    node.attributes["nodes_modes"] = ir.AttrStrings("nodes_modes", modes)
    if "nodes_missing_value_tracks_true" in node.attributes:
        missing = [int(isinstance(tree, Branch) and tree.missing_is_true) for tree in trees]
        node.attributes["nodes_missing_value_tracks_true"] = ir.AttrInt64s("nodes_missing_value_tracks_true", missing)
    votes = [(row[0], row[1], *vote) for row in rows if isinstance(row[5], Leaf) for vote in row[5].votes]
    for place, name in enumerate(("treeids", "nodeids", "ids")):
        node.attributes[f"{kind}_{name}"] = ir.AttrInt64s(f"{kind}_{name}", [int(vote[place]) for vote in votes])
    _set_floats(node, f"{kind}_weights", [vote[3] for vote in votes], tensors=tensors)


def _set_floats(node: ir.Node, name: str, values: Sequence[float], *, tensors: bool) -> None:
    """Set a list of numbers, as one tensor where that may be: it takes four bytes for each, and not five."""
    tensor = f"{name}_as_tensor"
    for each in (name, tensor):
        node.attributes.pop(each, None)
    if tensors:
        node.attributes[tensor] = _tensor(tensor, np.array(values, np.float32))
    else:
        node.attributes[name] = ir.AttrFloat32s(name, values)


def _listed(forest: Forest) -> Iterator[tuple[int, int, int, int, int, Tree]]:
    """Yield (tree, number, feature, true, false, itself) of each node, parents first."""
    for number, root in forest.trees:
        waiting, taken = [(0, root)], 1
        while waiting:
            at, tree = waiting.pop(0)
            if isinstance(tree, Leaf):
                yield number, at, 0, 0, 0, tree
                continue
            true, false = taken, taken + 1
            taken += 2
            waiting += [(true, tree.when_true), (false, tree.when_false)]
            yield number, at, tree.feature, true, false, tree


class _Writer:
    def __init__(self, model: ir.Model) -> None:
        self._model, self._taken = model, io.all_names(model)

    def replace(self, node: ir.Node) -> None:
        forest = cast("Forest", read_forest(node)).simplified()
        labels = class_labels(node) if node.op_type == CLASSIFIER else None
        if labels is None:
            targets = integer(node, "n_targets", 1)
            nodes = self._sums(node, forest, targets, post_transform(node))
            results = [nodes[-1].outputs[0]]
        elif len(labels) == _BINARY and len({vote[0] for leaf in forest.leaves() for vote in leaf.votes}) == 1:
            nodes, results = self._two_classes(node, forest, labels)
        else:
            nodes, results = self._classes(node, forest, labels)
        pairs = [(old, new) for old, new in zip(node.outputs, results, strict=False) if old.name]
        for old, new in pairs:
            new.type, new.shape = old.type, old.shape
        ir.convenience.replace_nodes_and_values(
            cast("ir.Graph", node.graph), node, [node], nodes, [old for old, _ in pairs], [new for _, new in pairs]
        )

    def _sums(self, node: ir.Node, forest: Forest, targets: int, transform: str) -> list[ir.Node]:
        """The trees, and what is added to all of their sums."""
        aggregate = text(node, "aggregate_function", "SUM")
        attributes = [
            *_attributes(forest),
            ir.AttrInt64("n_targets", targets),
            ir.AttrInt64("aggregate_function", _AGGREGATES[aggregate]),
            ir.AttrInt64("post_transform", _TRANSFORMS[transform]),
        ]
        trees = ir.Node(_DOMAIN, "TreeEnsemble", [node.inputs[0]], attributes, num_outputs=1, name=node.name)
        nodes = [self._named(trees, node)]
        base = base_values(node)
        if len(base):
            added = self._constant(f"{node.name}_base_", base.astype(np.float32).reshape(1, -1))
            nodes.append(self._node("Add", [trees.outputs[0], added], node))
        return nodes

    def _classes(
        self, node: ir.Node, forest: Forest, labels: npt.NDArray[np.generic]
    ) -> tuple[list[ir.Node], list[ir.Value]]:
        """The class of the largest sum, and the sums or their softmax."""
        nodes = self._sums(node, forest, len(labels), "NONE")
        sums = nodes[-1].outputs[0]
        largest = self._node("ArgMax", [sums], node, axis=1, keepdims=0)
        picked = self._node("Gather", [self._constant(f"{node.name}_labels_", labels), largest.outputs[0]], node)
        nodes += [largest, picked]
        if post_transform(node) == "SOFTMAX":
            nodes.append(self._node("Softmax", [sums], node, axis=1))
            sums = nodes[-1].outputs[0]
        return nodes, [picked.outputs[0], sums]

    def _two_classes(
        self, node: ir.Node, forest: Forest, labels: npt.NDArray[np.generic]
    ) -> tuple[list[ir.Node], list[ir.Value]]:
        """One sum: its sign tells the class, its logistic and that of its negative are the scores."""
        zero = Forest([(number, _aimed(tree, {})) for number, tree in forest.trees]).simplified()
        nodes = self._sums(node, zero, 1, "NONE")
        total = nodes[-1].outputs[0]
        positive = self._node("Greater", [total, self._constant(f"{node.name}_zero_", np.zeros(1, np.float32))], node)
        index = self._node("Cast", [positive.outputs[0]], node, to=int(ir.DataType.INT64))
        flat = self._node("Reshape", [index.outputs[0], self._constant(f"{node.name}_flat_", np.array([-1]))], node)
        picked = self._node("Gather", [self._constant(f"{node.name}_labels_", labels), flat.outputs[0]], node)
        negative = self._node("Neg", [total], node)
        both = self._node("Concat", [negative.outputs[0], total], node, axis=1)
        scores = self._node("Sigmoid", [both.outputs[0]], node)
        nodes += [positive, index, flat, picked, negative, both, scores]
        return nodes, [picked.outputs[0], scores.outputs[0]]

    def _node(self, kind: str, inputs: Sequence[ir.Value], origin: ir.Node, **attributes: int) -> ir.Node:
        node = ir.Node(
            "", kind, inputs, [ir.AttrInt64(name, value) for name, value in attributes.items()], num_outputs=1
        )
        return self._named(node, origin)

    def _named(self, node: ir.Node, origin: ir.Node) -> ir.Node:
        node.outputs[0].name = io.unused_name(self._taken, f"{origin.name or origin.op_type}_{node.op_type.lower()}_")
        return node

    def _constant(self, stem: str, array: npt.NDArray[np.generic]) -> ir.Value:
        name = io.unused_name(self._taken, stem)
        if array.dtype == object:
            tensor: ir.TensorProtocol = ir.StringTensor(
                [str(each).encode() for each in array], shape=ir.Shape(array.shape), name=name
            )
        else:
            tensor = ir.Tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        self._model.graph.register_initializer(value)
        return value


def _aimed(tree: Tree, done: dict[int, Tree]) -> Tree:
    """Let all leaves vote for the first target."""
    if id(tree) not in done:
        if isinstance(tree, Leaf):
            done[id(tree)] = Leaf(tuple((0, weight) for _, weight in tree.votes))
        else:
            sides = (_aimed(tree.when_true, done), _aimed(tree.when_false, done))
            done[id(tree)] = Branch(tree.feature, tree.mode, tree.threshold, tree.missing_is_true, *sides)
    return done[id(tree)]


def _attributes(forest: Forest) -> list[ir.Attr]:
    """Give the lists of version 5: each branch by itself, because ONNX Runtime takes no shared ones, and equal leaves once."""
    listed = _Listed()
    roots = [listed.enter(_rooted(tree)) for _, tree in forest.trees]
    branches, votes = listed.branches, [leaf.votes[0] for leaf in listed.leaves]
    attributes: list[ir.Attr] = [
        ir.AttrInt64s("tree_roots", roots),
        ir.AttrInt64s("nodes_featureids", [branch.feature for branch in branches]),
        _tensor("nodes_splits", np.array([branch.threshold for branch in branches], np.float32)),
        _tensor("nodes_modes", np.array([_MODES[branch.mode] for branch in branches], np.uint8)),
        ir.AttrInt64s("leaf_targetids", [target for target, _ in votes]),
        _tensor("leaf_weights", np.array([weight for _, weight in votes], np.float32)),
    ]
    for at, name in enumerate(("true", "false")):
        places = [sides[at] for sides in listed.places]
        attributes += [
            ir.AttrInt64s(f"nodes_{name}nodeids", [place for place, _ in places]),
            ir.AttrInt64s(f"nodes_{name}leafs", [int(leaf) for _, leaf in places]),
        ]
    if any(branch.missing_is_true for branch in branches):
        missing = [int(branch.missing_is_true) for branch in branches]
        attributes.append(ir.AttrInt64s("nodes_missing_value_tracks_true", missing))
    return attributes


class _Listed:
    """Branches and leaves in the order of the lists, and for each branch where its two sides are."""

    def __init__(self) -> None:
        self.branches: list[Branch] = []
        self.leaves: list[Leaf] = []
        # For each branch (place, whether it is a leaf's) when true, and when false.
        self.places: list[list[tuple[int, bool]]] = []
        self._known: dict[Leaf, int] = {}

    def enter(self, root: Branch) -> int:
        """List a tree, parents before children; give the root's place."""
        place = self._take(root)
        waiting = [(place, root)]
        while waiting:
            at, branch = waiting.pop()
            for side in (branch.when_true, branch.when_false):
                if isinstance(side, Leaf):
                    self.places[at].append((self._leaf(side), True))
                    continue
                inner = self._take(side)
                self.places[at].append((inner, False))
                waiting.append((inner, side))
        return place

    def _take(self, branch: Branch) -> int:
        self.branches.append(branch)
        self.places.append([])
        return len(self.branches) - 1

    def _leaf(self, leaf: Leaf) -> int:
        if leaf not in self._known:
            self._known[leaf] = len(self.leaves)
            self.leaves.append(leaf)
        return self._known[leaf]


def _rooted(tree: Tree) -> Branch:
    return tree if isinstance(tree, Branch) else Branch(0, "BRANCH_LEQ", 0.0, False, tree, tree)


def _tensor(name: str, array: npt.NDArray[np.generic]) -> ir.Attr:
    return ir.AttrTensor(name, ir.Tensor(array, name=name))
