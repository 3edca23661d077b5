"""What is told of loading and running a network, apart from the reports that it stands in.

A process that only loads and runs one has no use for all that a report may say, and starts sooner without.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Value(BaseModel):
    """A part of a report."""

    # What a newer version says besides is left out: during an upgrade both read what the other has stored.
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class Memory(Value):
    """Of a fresh process that loads the network and runs it once."""

    peak_rss_bytes: int
    load_ms: float = Field(
        description="From the file to a session that can run; profiles drop the file from the page cache before."
    )
    first_run_ms: float
    warm_load_ms: float | None = Field(
        None, description="The same again in the same process, after the peak was read; in profiles only."
    )
    device_peak_bytes: int | None = Field(
        None,
        description="Most of the GPU's memory that loading and running took, over what the provider itself takes; null where"
        " there is no GPU, or it does not tell.",
    )


class SessionOptions(Value):
    """Options of an onnxruntime session and its provider that change its speed, and its numbers by no more than rounding."""

    threads: int = Field(description="Intra-op threads.")
    inter_op_threads: int = 1
    execution_mode: Literal["sequential", "parallel"] = "sequential"
    graph_optimization: Literal["disabled", "basic", "extended", "all"] = "all"
    spinning: bool = Field(default=True, description="Whether idle pool threads spin instead of sleeping.")
    provider_options: dict[str, str] = Field(
        default_factory=dict, description="Of the execution provider, beside what it is always given."
    )
    inputs_on_device: bool = Field(
        default=False, description="Whether inputs and outputs stay in the device's memory, by IOBinding."
    )
    fixed_axes: dict[str, int] = Field(
        default_factory=dict,
        description="Open axes of the inputs, by name, that are given a size when the session is made; it takes no other then.",
    )


class OpCost(Value):
    """Time per run of the network, and its share of the time of all nodes."""

    op_type: str
    node: str | None
    provider: str
    count: int
    ms: float
    share: float


class NodePlacement(Value):
    """A node of the network and the execution provider that the session gave it to."""

    node: str
    op_type: str
    provider: str
