"""The kinds of outputs: a module for each, taken together here."""

from collections.abc import Mapping

from engine.measure.kinds.boxes import BOXES
from engine.measure.kinds.classes import CLASSES
from engine.measure.kinds.embedding import EMBEDDING
from engine.measure.kinds.kind import Batch, Comparison, Floor, Kind, Subject
from engine.measure.kinds.mask import MASK
from engine.measure.kinds.state import STATE
from engine.measure.kinds.tokens import TOKENS
from engine.measure.kinds.values import VALUES
from engine.outputs import OutputKind

__all__ = ["KINDS", "Batch", "Comparison", "Floor", "Kind", "Subject"]

KINDS: Mapping[OutputKind, Kind] = {
    "classes": CLASSES,
    "embedding": EMBEDDING,
    "values": VALUES,
    "mask": MASK,
    "boxes": BOXES,
    "tokens": TOKENS,
    "state": STATE,
}
