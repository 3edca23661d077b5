"""Tree ensembles of ai.onnx.ml as trees: read from a node's lists, freed of what no sample reaches and of what is there twice."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.graph.attributes import text

REGRESSOR, CLASSIFIER = "TreeEnsembleRegressor", "TreeEnsembleClassifier"
_DOMAIN = "ai.onnx.ml"
_LEAF = "LEAF"
_LEQ = "BRANCH_LEQ"
# Two entries for each level of a tree that is being read.
_DEEPEST = 1000

# (target, weight) of a leaf, in the order of the file.
Votes = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Leaf:
    """The end of a path: what it adds to which targets."""

    votes: Votes


@dataclass(frozen=True)
class Branch:
    """A test of one feature; equal ones are one object, so that identity is equality."""

    feature: int
    mode: str
    threshold: float
    # Whether a missing value (NaN) goes where a true test goes.
    missing_is_true: bool
    when_true: "Tree"
    when_false: "Tree"

    def __hash__(self) -> int:
        """Hash by the children's identities: a tree is not walked again."""
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        """Compare by the children's identities."""
        return isinstance(other, Branch) and self.key == other.key

    @property
    def key(self) -> tuple[int, str, float, bool, int, int]:
        """What equal branches have in common."""
        return (
            self.feature,
            self.mode,
            self.threshold,
            self.missing_is_true,
            id(self.when_true),
            id(self.when_false),
        )


Tree = Leaf | Branch


@dataclass
class Forest:
    """Trees in order, each with its id in the file."""

    trees: list[tuple[int, Tree]]
    _known: dict[Tree, Tree] = field(default_factory=dict)

    def branches(self) -> list[Branch]:
        """List distinct branches, parents before children."""
        return [tree for tree in _walk(self) if isinstance(tree, Branch)]

    def leaves(self) -> list[Leaf]:
        """List distinct leaves."""
        return [tree for tree in _walk(self) if isinstance(tree, Leaf)]

    def simplified(self) -> "Forest":
        """Give the trees without branches whose outcome is known or whose two sides are the same; results stay to the bit."""
        known: dict[Tree, Tree] = {}
        return Forest([(number, _simplified(tree, {}, known)) for number, tree in self.trees], known)


def read_forest(node: ir.Node) -> Forest | str:
    """Give the trees of a TreeEnsembleRegressor or TreeEnsembleClassifier, or say why they cannot be followed."""
    votes: dict[tuple[int, int], list[tuple[int, float]]] = defaultdict(list)
    kind = "target" if node.op_type == REGRESSOR else "class"
    lists = [_numbers(node, f"{kind}_{name}") for name in ("treeids", "nodeids", "ids", "weights")]
    for tree, number, target, weight in zip(*(each.tolist() for each in lists), strict=True):
        votes[tree, number].append((target, weight))
    listed = [_numbers(node, f"nodes_{name}") for name in ("treeids", "nodeids", "featureids", "values")]
    places = [_numbers(node, f"nodes_{name}") for name in ("truenodeids", "falsenodeids")]
    modes = _strings(node, "nodes_modes")
    count = len(modes)
    missing = _numbers(node, "nodes_missing_value_tracks_true")
    if any(len(each) != count for each in (*listed, *places)) or len(missing) not in {0, count}:
        return "its lists of nodes have different lengths"
    return _Reader(votes, listed, places, modes, missing).forest()


class _Reader:
    def __init__(
        self,
        votes: dict[tuple[int, int], list[tuple[int, float]]],
        listed: list[npt.NDArray[Any]],
        places: list[npt.NDArray[Any]],
        modes: list[str],
        missing: npt.NDArray[Any],
    ) -> None:
        self._votes = votes
        self._trees, self._numbers, self._features, self._values = (each.tolist() for each in listed)
        self._true, self._false = (each.tolist() for each in places)
        self._modes, self._missing = modes, missing.tolist() or [0] * len(modes)
        self._known: dict[Tree, Tree] = {}
        self._reached = 0

    def forest(self) -> Forest | str:
        """Build every tree from its first listed node, the root, children before parents."""
        places = {key: index for index, key in enumerate(zip(self._trees, self._numbers, strict=True))}
        if len(places) != len(self._modes):
            return "two of its nodes have the same number"
        children = {
            (self._trees[index], child)
            for index in range(len(self._modes))
            if self._modes[index] != _LEAF
            for child in (self._true[index], self._false[index])
        }
        roots = [key for key in places if key not in children]
        if sorted({tree for tree, _ in roots}) != sorted(set(self._trees)) or len(roots) != len(set(self._trees)):
            return "its trees have no single root"
        trees = []
        for key in roots:
            built = self._build(key, places)
            if isinstance(built, str):
                return built
            trees.append((key[0], built))
        if self._reached != len(self._modes):
            return "some of its nodes belong to no tree"
        return Forest(trees, self._known)

    def _build(self, root: tuple[int, int], places: dict[tuple[int, int], int]) -> Tree | str:
        tree = root[0]
        built: dict[int, Tree] = {}
        waiting: list[tuple[int, bool]] = [(places[root], False)]
        opened: set[int] = set()
        while waiting:
            index, ready = waiting.pop()
            self._reached += not ready
            if self._modes[index] == _LEAF:
                leaf = Leaf(tuple(self._votes.get((tree, self._numbers[index]), ())))
                built[index] = self._known.setdefault(leaf, leaf)
                continue
            sides = [places.get((tree, child)) for child in (self._true[index], self._false[index])]
            true, false = sides
            if true is None or false is None:
                return "one of its branches leads nowhere"
            if ready:
                branch = Branch(
                    self._features[index],
                    self._modes[index],
                    self._values[index],
                    bool(self._missing[index]),
                    built[true],
                    built[false],
                )
                built[index] = self._known.setdefault(branch, branch)
                continue
            if index in opened:
                return "its branches form a circle, or meet again"
            if len(waiting) > _DEEPEST:
                return f"one of its trees is more than {_DEEPEST // 2} tests deep"
            opened.add(index)
            waiting += [(index, True), (false, False), (true, False)]
        return built[places[root]]


# What is known of a feature on a path: not above the first, and above the second or missing.
_Bounds = dict[int, tuple[float, float]]


def _simplified(tree: Tree, bounds: _Bounds, known: dict[Tree, Tree]) -> Tree:
    while isinstance(tree, Branch):
        outcome = _outcome(tree, bounds)
        if outcome is None:
            break
        tree = tree.when_true if outcome else tree.when_false
    if isinstance(tree, Leaf):
        return known.setdefault(tree, tree)
    true, false = (_simplified(side, _within(bounds, tree, side=at), known) for at, side in _sides(tree))
    if true is false:
        return true
    branch = Branch(tree.feature, tree.mode, tree.threshold, tree.missing_is_true, true, false)
    return known.setdefault(branch, branch)


def _sides(branch: Branch) -> tuple[tuple[bool, Tree], tuple[bool, Tree]]:
    return (True, branch.when_true), (False, branch.when_false)


def _outcome(branch: Branch, bounds: _Bounds) -> bool | None:
    """Say how a test ends for all that get there; None where both may be."""
    if branch.mode != _LEQ or branch.missing_is_true:
        return None
    most, above = bounds.get(branch.feature, (np.inf, -np.inf))
    if branch.threshold >= most:
        return True
    # What is missing goes the same way as what is above.
    return False if branch.threshold <= above else None


def _within(bounds: _Bounds, branch: Branch, *, side: bool) -> _Bounds:
    if branch.mode != _LEQ or branch.missing_is_true:
        return bounds
    most, above = bounds.get(branch.feature, (np.inf, -np.inf))
    return bounds | {branch.feature: (branch.threshold, above) if side else (most, branch.threshold)}


def _walk(forest: Forest) -> Iterator[Tree]:
    seen: set[int] = set()
    for _, root in forest.trees:
        waiting = [root]
        while waiting:
            tree = waiting.pop()
            if id(tree) in seen:
                continue
            seen.add(id(tree))
            yield tree
            if isinstance(tree, Branch):
                waiting += [tree.when_false, tree.when_true]


def _numbers(node: ir.Node, name: str) -> npt.NDArray[Any]:
    """Read a list that is an attribute of numbers or, in later versions, of one tensor."""
    tensor = node.attributes.get(f"{name}_as_tensor")
    if tensor is not None:
        found: npt.NDArray[Any] = tensor.as_tensor().numpy().reshape(-1)
        return found
    attribute = node.attributes.get(name)
    if attribute is None:
        return np.zeros(0, np.int64)
    if attribute.type == ir.AttributeType.FLOATS:
        return np.array(attribute.as_floats(), np.float32)
    return np.array(attribute.as_ints(), np.int64)


def _strings(node: ir.Node, name: str) -> list[str]:
    attribute = node.attributes.get(name)
    return [] if attribute is None else [str(each) for each in attribute.as_strings()]


def holds_doubles(node: ir.Node) -> bool:
    """Say whether a node's lists are in double precision, which a list of floats would round."""
    return any(
        attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == ir.DataType.DOUBLE
        for attribute in node.attributes.values()
    )


def base_values(node: ir.Node) -> npt.NDArray[Any]:
    """Give what is added to every sum; empty where nothing is."""
    return _numbers(node, "base_values")


def class_labels(node: ir.Node) -> npt.NDArray[Any] | None:
    """Give a classifier's labels in order: integers, or strings."""
    integers = _numbers(node, "classlabels_int64s")
    if len(integers):
        return integers
    strings = _strings(node, "classlabels_strings")
    return np.array(strings, object) if strings else None


def is_ensemble(node: ir.Node) -> bool:
    """Say whether a node is a tree ensemble in the form of ai.onnx.ml before version 5."""
    return node.domain == _DOMAIN and node.op_type in {REGRESSOR, CLASSIFIER}


def post_transform(node: ir.Node) -> str:
    """Say what is done to the sums."""
    return text(node, "post_transform", "NONE")
