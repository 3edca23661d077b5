"""What each layer of a network holds and takes, before and after."""

from pydantic import BaseModel, ConfigDict, Field


class LayerCost(BaseModel):
    """A node with weights. null: not known, which for bytes means that the network has no layer of that name."""

    # What a newer version says besides is left out: during an upgrade both read what the other has stored.
    model_config = ConfigDict(frozen=True, extra="ignore")

    node: str
    op: str = Field(description="Operator in the original; of a layer that it has not, in the result.")
    bytes_before: int | None = Field(
        None, description="Of its weights, biases, scales and zero points in the original."
    )
    bytes_after: int | None = Field(
        None, description="The same in the result; what several layers read counts to the first of them."
    )
    stored: str | None = Field(None, description="Number type of its weights in the result, as `int8`.")
    time_share_before: float | None = Field(
        None, description="Of the time of all nodes of the original, from a profile; null: none names it."
    )
    time_share_after: float | None = Field(None, description="The same in the result.")
    output_sqnr_db: float | None = Field(
        None,
        description="Of its output beside the original's, in dB; null: not measured, or of another shape. Searches measure it,"
        " quantizing steps have it in their details.",
    )
