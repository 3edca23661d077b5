"""The operators by family; importing this package fills the table."""

from engine.train.twin.operators import (
    activations,
    arithmetic,
    casting,
    comparison,
    constants,
    indexing,
    reduction,
    shapes,
)

__all__ = ["activations", "arithmetic", "casting", "comparison", "constants", "indexing", "reduction", "shapes"]
