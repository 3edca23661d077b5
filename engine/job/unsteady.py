"""Networks that draw random numbers: they say something else of the same inputs each time, and no comparison can be closer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from engine.errors import EngineError
from engine.graph.linear import constant_root, node_name
from engine.measure.quality import Network

_DRAWS = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
# The input of Dropout that says whether it drops anything.
_DROPS = 2


def is_unsteady(network: Network, model: ir.Model, feed: Mapping[str, Any]) -> str | None:
    """Say which operator makes a network say something else of the same inputs each time; None where none does.

    Args:
        network: loaded; it runs twice where one of its operators may do so.
        model: its graph.
        feed: some inputs.
    """
    drawing = next(filter(_draws, model.graph.all_nodes()), None)
    if drawing is None:
        return None
    try:
        one, other = network.run(feed), network.run(feed)
    except EngineError:
        # A network that does not run is told of by whoever needs its outputs.
        return None
    if all(_same(one[name], other[name]) for name in one):
        return None
    return (
        f"The original says something else of the same inputs each time: its {drawing.op_type} `{node_name(drawing)}` draws"
        " random numbers, and no network can come closer to it than it does itself. Export it for inference"
        " (`model.eval()` in PyTorch), or with the random numbers as an input."
    )


def _draws(node: ir.Node) -> bool:
    if node.op_type in _DRAWS:
        return True
    drops = node.inputs[_DROPS] if node.op_type == "Dropout" and len(node.inputs) > _DROPS else None
    if drops is None:
        return False
    root = constant_root(drops)
    tensor = None if root is None else root[0].const_value
    return tensor is None or bool(tensor.numpy().any())


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, np.ndarray) or one.dtype.kind not in "fiub":
        return True
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
