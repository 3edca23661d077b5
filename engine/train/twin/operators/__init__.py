"""The operators by family; importing this package fills the table."""

from engine.train.twin.operators import activations, arithmetic, shapes

__all__ = ["activations", "arithmetic", "shapes"]
