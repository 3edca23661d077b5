"""What was done to raw data so that they became arrays: written into the file with them, so that a deployment can repeat it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onnxpress.npz import DECLARATION_BYTES, encoded

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Converted:
    """What was written; `classes` are the names of the label's numbers, in order.

    `declaration` is what the file says of itself (`dataset.json` in it): kind, a summary in words, parameters, classes.
    """

    path: Path
    samples: int
    classes: tuple[str, ...] = ()
    declaration: Document = field(default_factory=dict)


def declaration(kind: str, summary: str, parameters: Document, classes: Sequence[str] = ()) -> dict[str, Any]:
    """Say what was done, in words and as parameters that repeat it.

    Names of classes that would not fit are left out, and the summary says so.
    """
    document = {
        "kind": kind,
        "summary": summary,
        "parameters": dict(parameters),
        "classes": list(classes),
        "made_by": f"onnxpress {version('onnxpress')}",
    }
    if len(encoded(document)) > DECLARATION_BYTES:
        left_out = f"The names of its {len(classes)} classes are too long to be kept."
        document |= {"classes": [], "summary": f"{summary} {left_out}"}
    return document
