"""The zoo of topologies, and running networks to compare them."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest

from engine.runtime.sessions import session
from engine.target import Target

sys.path.insert(0, str(Path(__file__).resolve().parent))
import zoo as topologies

Feed = Mapping[str, np.ndarray]


def run_network(model: ir.Model, *feeds: Feed, optimise: bool = False) -> list[np.ndarray]:
    opened = session(ir.to_proto(model).SerializeToString(), Target(provider="cpu", threads=1), optimise=optimise)
    return [next(iter(opened.run(feed).values())) for feed in feeds]


def largest_difference(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    """The largest difference as a share of the largest value."""
    return max(
        float(np.abs(one - other).max() / max(float(np.abs(other).max()), 1e-12))
        for one, other in zip(left, right, strict=True)
    )


@pytest.fixture(scope="session")
def zoo() -> ModuleType:
    return topologies


@pytest.fixture(scope="session")
def run() -> Callable[..., list[np.ndarray]]:
    return run_network


@pytest.fixture(scope="session")
def difference() -> Callable[..., float]:
    return largest_difference
