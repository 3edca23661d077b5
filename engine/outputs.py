"""What an output of a network means, and what its owner declares of it."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.errors import DatasetInvalidError

OutputKind = Literal["classes", "embedding", "values", "mask", "boxes", "tokens", "state"]

# How much an output counts where several are taken together; a state only matters by what later steps make of it.
DEFAULT_WEIGHTS: Mapping[OutputKind, float] = {"state": 0.1}


class OutputDeclaration(BaseModel):
    """What the owner knows of an output better than we can tell: its kind, how much it counts, or that it does not."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    kind: OutputKind | None = Field(None, description="What its numbers mean; by default it is recognised.")
    weight: float | None = Field(
        None,
        gt=0,
        le=1000,
        allow_inf_nan=False,
        description="How much it counts where outputs are taken together; by default 1, and 0.1 for a state.",
    )
    ignore: bool = Field(False, description="True: nobody reads it, so it is not judged at all.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.kind is None and self.weight is None and not self.ignore:
            raise ValueError("say a `kind`, a `weight` or `ignore` of the output")
        return self


def read_declarations(value: Any) -> dict[str, OutputDeclaration]:
    """Give the declarations that a JSON object {output: {...}} holds; raises DatasetInvalidError."""
    if not isinstance(value, Mapping):
        raise DatasetInvalidError('`outputs` must be an object such as {"logits": {"kind": "classes"}}.')
    found = {}
    for name, body in value.items():
        try:
            found[str(name)] = OutputDeclaration.model_validate(body)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise DatasetInvalidError(
                f"The declaration of output `{name}` is wrong{where and f' at `{where}`'}: {first['msg']}."
            ) from error
    return found
