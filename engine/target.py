"""What a result is made and measured for: an execution provider, its device and load."""

from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.provider_options import objection

ProviderName = Literal["cpu", "cuda", "tensorrt", "openvino", "directml", "migraphx", "rocm", "coreml", "webgpu", "qnn"]
PROVIDER_NAMES: tuple[str, ...] = get_args(ProviderName)


class Target(BaseModel):
    """The execution provider, device and load that the result is optimised and measured for."""

    # Strict: a JSON number is no boolean, a string no number. JSON has no tuples, so those take arrays.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    provider: ProviderName = Field("cpu", description="ONNX Runtime execution provider.")
    threads: int = Field(1, ge=1, le=256, description="Intra-op threads of the session.")
    batch: int = Field(1, ge=1, le=1024, description="Batch size that latency is measured at.")
    shapes: dict[str, Annotated[tuple[Annotated[int, Field(ge=1, le=1 << 24)], ...], Field(strict=False)]] = Field(
        default_factory=dict,
        description="Shape of an input where the network leaves it open, batch axis included; by default the dataset's.",
    )
    provider_options: dict[str, str] = Field(
        default_factory=dict,
        description="Options of the execution provider that it runs with, by ONNX Runtime's own names, such as"
        ' `{"prefer_nhwc": "1"}` for `cuda`; docs/targets.md lists them.',
    )
    inputs_on_device: bool = Field(
        default=False,
        description="Latency is measured with outputs that stay in the device's memory too, as inputs do; `cuda`, `tensorrt`.",
    )

    @model_validator(mode="after")
    def _options_are_known(self) -> Self:
        wrong = objection(self.provider, self.provider_options)
        if wrong is not None:
            raise ValueError(wrong)
        if self.inputs_on_device and self.provider not in {"cuda", "tensorrt"}:
            raise ValueError(f"inputs cannot be bound on the device of {self.provider}; they can for cuda and tensorrt")
        return self
