"""A residual network with its architecture, as the parts of a search see it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from engine.contract import Context
from engine.data.dataset import Samples
from engine.goal import Space
from engine.graph import io
from engine.measure.quality import Evaluator
from engine.runtime import sessions
from engine.search.architecture import Architecture
from engine.search.candidate import prepared
from engine.target import Target


@dataclass(frozen=True)
class Searched:
    """A prepared network, what may change of it, and a context whose evaluation is real."""

    model: ir.Model
    architecture: Architecture
    context: Context


@pytest.fixture
def searched(
    residual_cnn: Callable[..., bytes],
    images: Callable[..., np.ndarray],
    feeds_of: Callable[..., Samples],
    context: Callable[..., Context],
    tmp_path: Path,
) -> Callable[..., Searched]:
    def make(network: bytes | None = None, space: Space | None = None) -> Searched:
        path = tmp_path / "network.onnx"
        path.write_bytes(network or residual_cnn())
        samples = feeds_of({"image": images(96)})
        given = context(io.load(path), samples)
        model = prepared(io.load(path), given)
        evaluator = Evaluator(sessions.session(io.to_bytes(model), Target()), samples, graph=io.copy(model))

        def evaluate(candidate: ir.Model) -> object:
            return evaluator.evaluate(sessions.session(io.to_bytes(candidate), Target()))

        architecture = Architecture.of(model, space or Space(), Target())
        return Searched(model, architecture, replace(given, original=io.copy(model), evaluate=evaluate))

    return make
