"""Where the bytes of a stored network are: rows that add up to its files."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

ByteKind = Literal[
    "quantized", "scales", "zero_points", "float_weights", "other_floats", "other_tensors", "tree_ensembles", "graph"
]

# In the words of a table.
BYTE_KINDS: dict[ByteKind, str] = {
    "quantized": "quantized values",
    "scales": "scales",
    "zero_points": "zero points",
    "float_weights": "weights in float",
    "other_floats": "biases and other small floats",
    "other_tensors": "other tensors",
    "tree_ensembles": "tree ensembles",
    "graph": "operators, names and framing",
}


class ByteRow(BaseModel):
    """Bytes of one kind; weights in float have a row for each reason."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    kind: ByteKind
    reason: str | None = Field(None, description="Why they are in float; null for other kinds.")
    tensors: int = Field(ge=0, description="How many stored tensors; 0 for what is stored in operators.")
    bytes: int = Field(ge=0)


class ByteAccount(BaseModel):
    """What the bytes of a network's files hold: each byte is in one row."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    rows: tuple[ByteRow, ...]
    total: int = Field(description="Bytes of the network's file and of its external data: the sum of the rows.")

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if sum(row.bytes for row in self.rows) != self.total:
            raise ValueError("the rows do not add up to the total")
        return self
