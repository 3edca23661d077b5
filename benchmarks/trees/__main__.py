"""Store tree ensembles smaller by `simplify`; measure files, loading in a fresh process, and runs beside the original.

    python -m benchmarks.trees [--quick]

Trees are drawn at random and fully grown. Results go to var/benchmarks/trees.
"""

import argparse
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks import documents
from benchmarks.contest import HERE, ONE_THREAD
from benchmarks.process import spend
from benchmarks.scores import Array
from engine.measure.latency import compare
from engine.measure.memory import probe, store_feed
from engine.report.counted_time import counted
from engine.runtime.sessions import session

GROUP = "trees"
FEATURES = 30
_ML = "ai.onnx.ml"
_LOADS = 5


@dataclass(frozen=True)
class Ensemble:
    """Trees of one depth. `kind` is the operator; a leaf of a random forest votes for each class, a boosted one has one number."""

    title: str
    kind: str
    trees: int
    depth: int
    classes: int = 1
    boosted: bool = True


ENSEMBLES = (
    Ensemble("300 boosted trees of depth 7, regression", "TreeEnsembleRegressor", 300, 7),
    Ensemble("300 boosted trees of depth 6, two classes", "TreeEnsembleClassifier", 300, 6, classes=2),
    Ensemble("random forest, 100 trees of depth 9, three classes", "TreeEnsembleClassifier", 100, 9, 3, boosted=False),
)


@dataclass(frozen=True)
class Measured:
    """An ensemble before and after: bytes, milliseconds to load, median run of the original, and how many times as fast."""

    title: str
    bytes: tuple[int, int]
    load_ms: tuple[float, float]
    run_us: float
    speed: float
    clock: str
    largest_difference: float


def main() -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trees", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few loads and runs: a trial, no result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = [measure(each, Path(folder), quick=options.quick) for each in ENSEMBLES]
    markdown = _section(measured)
    documents.store(
        GROUP, "simplify", {"ensembles": [asdict(each) for each in measured]}, markdown, quick=options.quick
    )
    print(markdown)
    return 0


def measure(ensemble: Ensemble, folder: Path, *, quick: bool) -> Measured:
    """Simplify one ensemble and measure both."""
    original, smaller, feed = folder / "original.onnx", folder / "smaller.onnx", {"x": _inputs()}
    onnx.save(network(ensemble), original)
    request = {"model": str(original), "out": str(smaller), "settings": {"type": "simplify"}}
    spent = spend(Path(sys.executable), HERE / "engine_pass.py", request, folder)
    if spent.problem is not None:
        sys.exit(f"{ensemble.title}: {spent.problem}")
    before, after = (session(path, ONE_THREAD).run(feed) for path in (original, smaller))
    store_feed(folder / "feed.npz", feed)
    load = [_load(path, folder / "feed.npz", loads=1 if quick else _LOADS) for path in (original, smaller)]
    one = {"x": feed["x"][:1]}
    compared = compare(original, smaller, one, ONE_THREAD, seconds=1.0 if quick else 10.0)
    time = counted(compared)
    return Measured(
        ensemble.title,
        (original.stat().st_size, smaller.stat().st_size),
        (load[0], load[1]),
        compared.original.p50_ms * 1e3,
        1 / time.ratio.value,
        time.said,
        max(float(np.abs(before[name].astype(np.float64) - after[name]).max()) for name in before),
    )


def network(ensemble: Ensemble) -> onnx.ModelProto:
    """Write the trees as skl2onnx does: lists of attributes of one operator."""
    classifier = ensemble.kind == "TreeEnsembleClassifier"
    attributes: dict[str, Any] = {**_branches(ensemble), **_leaves(ensemble, "class" if classifier else "target")}
    if classifier:
        attributes |= {
            "classlabels_int64s": list(range(ensemble.classes)),
            "post_transform": "LOGISTIC" if ensemble.boosted else "NONE",
        }
    else:
        attributes["n_targets"] = 1
    names = ["label", "scores"] if classifier else ["scores"]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", None])]
    if classifier:
        outputs.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]))
    node = helper.make_node(ensemble.kind, ["x"], names, "trees", domain=_ML, **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(_ML, 1)]
    return helper.make_model(helper.make_graph([node], "g", [x], outputs), opset_imports=imports, ir_version=8)


def _branches(ensemble: Ensemble) -> dict[str, list[Any]]:
    random = np.random.default_rng(0)
    inner, nodes = 2**ensemble.depth - 1, 2 ** (ensemble.depth + 1) - 1
    number = np.arange(nodes)
    branch = number < inner
    one = {
        "nodeids": number,
        "truenodeids": np.where(branch, 2 * number + 1, 0),
        "falsenodeids": np.where(branch, 2 * number + 2, 0),
        "missing_value_tracks_true": np.zeros(nodes, int),
    }
    count = ensemble.trees
    lists = {name: np.tile(array, count).tolist() for name, array in one.items()}
    lists["treeids"] = np.repeat(np.arange(count), nodes).tolist()
    lists["modes"] = ["BRANCH_LEQ" if each else "LEAF" for each in branch] * count
    lists["featureids"] = np.where(np.tile(branch, count), random.integers(0, FEATURES, nodes * count), 0).tolist()
    values = random.standard_normal(nodes * count).astype(np.float32)
    lists["values"] = np.where(np.tile(branch, count), values, 0).astype(float).tolist()
    lists["hitrates"] = [1.0] * (nodes * count)
    return {f"nodes_{name}": values for name, values in lists.items()}


def _leaves(ensemble: Ensemble, prefix: str) -> dict[str, list[Any]]:
    random = np.random.default_rng(1)
    leaves = np.arange(2**ensemble.depth - 1, 2 ** (ensemble.depth + 1) - 1)
    votes = 1 if ensemble.boosted else ensemble.classes
    shape = (ensemble.trees, len(leaves), votes)
    trees = np.broadcast_to(np.arange(ensemble.trees)[:, None, None], shape)
    targets = np.broadcast_to(np.arange(votes), shape)
    weights = random.standard_normal(shape) / ensemble.trees
    if not ensemble.boosted:
        shares = random.dirichlet(np.ones(votes), shape[:2])
        weights = shares / ensemble.trees
    return {
        f"{prefix}_treeids": trees.ravel().tolist(),
        f"{prefix}_nodeids": np.broadcast_to(leaves[:, None], shape).ravel().tolist(),
        f"{prefix}_ids": targets.ravel().tolist(),
        f"{prefix}_weights": weights.astype(np.float32).astype(float).ravel().tolist(),
    }


def _inputs() -> Array:
    return np.random.default_rng(2).standard_normal((256, FEATURES), np.float32)


def _load(network: Path, feed: Path, *, loads: int) -> float:
    """Give the median first load of fresh processes, in milliseconds."""
    return float(np.median([probe(network, ONE_THREAD, feed).load_ms for _ in range(loads)]))


def _section(measured: list[Measured]) -> str:
    header = ["ensemble", "bytes", "after", "load", "one run", "as fast", "largest difference"]
    rows = [
        [
            each.title,
            f"{each.bytes[0]:,}",
            f"{each.bytes[1]:,} ({each.bytes[0] / each.bytes[1]:.1f}x smaller)",
            f"{each.load_ms[0]:.0f} → {each.load_ms[1]:.0f} ms",
            f"{each.run_us:.0f} µs",
            f"{each.speed:.2f}x{each.clock}",
            f"{each.largest_difference:.1e}",
        ]
        for each in measured
    ]
    intro = f"### Tree ensembles by `simplify`, random trees over {FEATURES} features\n\n"
    return intro + documents.table(header, rows)


if __name__ == "__main__":
    sys.exit(main())
