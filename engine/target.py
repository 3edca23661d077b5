"""What a result is made and measured for: an execution provider, its device and load."""

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

ProviderName = Literal["cpu", "cuda", "tensorrt", "openvino", "directml", "migraphx", "rocm", "coreml", "webgpu", "qnn"]
PROVIDER_NAMES: tuple[str, ...] = get_args(ProviderName)


class Target(BaseModel):
    """The execution provider, device and load that the result is optimised and measured for."""

    # Strict: a JSON number is no boolean, a string no number. JSON has no tuples, so those take arrays.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    provider: ProviderName = Field("cpu", description="ONNX Runtime execution provider.")
    threads: int = Field(1, ge=1, le=256, description="Intra-op threads of the session.")
    batch: int = Field(1, ge=1, le=1024, description="Batch size that latency is measured at.")
    shapes: dict[str, Annotated[tuple[Annotated[int, Field(ge=1, le=1 << 24)], ...], Field(strict=False)]] = Field(
        default_factory=dict,
        description="Shape of an input where the network leaves it open, batch axis included; by default the dataset's.",
    )
