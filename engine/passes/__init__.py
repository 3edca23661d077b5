"""Every pass there is. One line in the union makes a pass part of specs, OpenAPI, the CLI's recipe file and the docs."""

import inspect
from dataclasses import asdict
from typing import Annotated, Any, get_args

from pydantic import Field

from engine.contract import Pass, Searchable
from engine.passes.distill import Distill
from engine.passes.drop_blocks import DropBlocks
from engine.passes.factorise import Factorise
from engine.passes.float16 import Float16
from engine.passes.fuse import Fuse
from engine.passes.mixed_precision import MixedPrecision
from engine.passes.prune_channels import PruneChannels
from engine.passes.prune_weights import PruneWeights
from engine.passes.quantize_aware_train import QuantizeAwareTrain
from engine.passes.quantize_dynamic import QuantizeDynamic
from engine.passes.quantize_static import QuantizeStatic
from engine.passes.quantize_weights import QuantizeWeights
from engine.passes.reconstruct import Reconstruct
from engine.passes.simplify import Simplify

AnyPass = Annotated[
    Simplify
    | Fuse
    | DropBlocks
    | PruneChannels
    | Reconstruct
    | Factorise
    | Distill
    | PruneWeights
    | QuantizeStatic
    | QuantizeDynamic
    | QuantizeWeights
    | Float16
    | MixedPrecision
    | QuantizeAwareTrain,
    Field(discriminator="type"),
]

PASSES: tuple[type[Pass], ...] = get_args(get_args(AnyPass)[0])


def list_passes() -> list[dict[str, Any]]:
    """Describe every pass: type, summary, documentation, JSON schema, defaults, search space."""
    return [_describe(kind) for kind in PASSES]


def _describe(kind: type[Pass]) -> dict[str, Any]:
    documentation = inspect.cleandoc(kind.__doc__ or "")
    parameters = {name: field for name, field in kind.model_fields.items() if name != "type"}
    return {
        "type": kind.model_fields["type"].default,
        "summary": documentation.partition("\n")[0],
        "documentation": documentation,
        "lossless": kind.lossless,
        "needs_data": kind.needs_data,
        "trains": kind().trains,
        "reads_gates": kind().reads_gates,
        "schema": kind.model_json_schema(),
        "defaults": kind().model_dump(mode="json", exclude={"type"}),
        "search_space": {
            name: {key: value for key, value in asdict(note).items() if value not in (None, False)}
            for name, field in parameters.items()
            for note in field.metadata
            if isinstance(note, Searchable)
        },
    }
