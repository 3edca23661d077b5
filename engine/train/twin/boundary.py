"""Values inside of a network, as onnxruntime computes them."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engine.errors import SpecInvalidError
from engine.graph import io
from engine.runtime import sessions
from engine.target import Target

Array = npt.NDArray[Any]


class InnerValues:
    """A session that gives values of a network's main graph by name, its inputs among them.

    Args:
        model: the network.
        names: what is given.
        target: what it runs on.
        optimise: by onnxruntime, which may sum in another order then.
    """

    def __init__(self, model: ir.Model, names: Sequence[str], target: Target, *, optimise: bool = True) -> None:
        given = {str(value.name) for value in model.graph.inputs}
        self._names = tuple(dict.fromkeys(names))
        self._session: sessions.Session | None = None
        inner = [name for name in self._names if name not in given]
        if inner:
            with tempfile.TemporaryDirectory(prefix="inner-") as folder:
                path = Path(folder, "network.onnx")
                io.save(_giving(model, inner), path)
                self._session = sessions.session(path, target, optimise=optimise)

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Give the values for a feed; sequences are left out."""
        found = {} if self._session is None else self._session.run(feed)
        values = {name: feed[name] if name in feed else found[name] for name in self._names}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _giving(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Copy a network whose outputs are other values of it."""
    copied = io.copy(model)
    values = {str(value.name): value for node in copied.graph for value in node.outputs}
    unknown = [name for name in names if name not in values]
    if unknown:
        raise SpecInvalidError(f"The network computes no value {', '.join(unknown[:5])}.")
    copied.graph.outputs.clear()
    copied.graph.outputs.extend(values[name] for name in names)
    return copied
