"""What a network declares of its inputs and outputs: a contract with whoever runs it, which no pass rewrites."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from engine.errors import VerificationFailedError
from engine.graph import io
from engine.graph.agreement import family

_Sizes = tuple[int | str | None, ...]


@dataclass(frozen=True)
class _Declared:
    name: str
    dtype: ir.DataType | None
    sizes: _Sizes | None

    @classmethod
    def of(cls, value: ir.Value) -> "_Declared":
        return cls(str(value.name), value.dtype, io.sizes(value))

    @property
    def family(self) -> str:
        """Name the type so that floats of all widths are alike."""
        return family(None if self.dtype is None else self.dtype.numpy())


@dataclass(frozen=True)
class Declaration:
    """Inputs that are no weights, and outputs, as the network's author declares them."""

    inputs: tuple[_Declared, ...]
    outputs: tuple[_Declared, ...]

    @classmethod
    def of(cls, model: ir.Model) -> "Declaration":
        """Read a network's."""
        return cls(tuple(map(_Declared.of, _inputs(model))), tuple(map(_Declared.of, model.graph.outputs)))

    def restore(self, model: ir.Model, *, widths_may_change: bool = False) -> None:
        """Write declared shapes back in place: whoever changed a network may have guessed others, and guessed wrong.

        `widths_may_change`: floats may have become floats of another width.

        Raises:
            VerificationFailedError: names, their order or types are others; no writing mends that.
        """
        for role, declared, values in (
            ("inputs", self.inputs, _inputs(model)),
            ("outputs", self.outputs, list(model.graph.outputs)),
        ):
            _refuse_other_names(role, [each.name for each in declared], [str(value.name) for value in values])
            for each, value in zip(declared, values, strict=True):
                self._restore(each, value, widths_may_change=widths_may_change)

    def _restore(self, declared: _Declared, value: ir.Value, *, widths_may_change: bool) -> None:
        now = _Declared.of(value)
        if now.dtype is None:
            value.type = None if declared.dtype is None else ir.TensorType(declared.dtype)
        elif now.dtype != declared.dtype and not (widths_may_change and now.family == declared.family):
            raise VerificationFailedError(f"`{now.name}` is {_name(now.dtype)} now, but was {_name(declared.dtype)}.")
        # What is stored says itself which shape it has.
        if now.sizes != declared.sizes and not value.is_initializer():
            value.shape = None if declared.sizes is None else ir.Shape(declared.sizes)


def undeclared(model: ir.Model) -> ir.Model:
    """Forget in place which shapes a network declares of its outputs: whoever infers shapes believes them, and they may be wrong."""
    for value in model.graph.outputs:
        # What an input or a constant is, no run decides.
        if value.producer() is not None:
            value.shape = None
    return model


def contradictions(model: ir.Model, outputs: Mapping[str, Any]) -> list[str]:
    """Say of each output that a run has shown to have another shape than the network declares; empty where all is well."""
    found = []
    for value in model.graph.outputs:
        declared, given = io.sizes(value), outputs.get(str(value.name))
        if declared is not None and isinstance(given, np.ndarray) and not _matches(declared, given.shape):
            found.append(
                f"Output `{value.name}` is declared as {_words(declared)}, but a run gives {_words(given.shape)}. ONNX"
                " Runtime takes no notice, so the declaration stays as it is; other runtimes may refuse the network."
            )
    return found


def _inputs(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def _refuse_other_names(role: str, before: Sequence[str], after: Sequence[str]) -> None:
    if list(before) != list(after):
        raise VerificationFailedError(f"The network's {role} changed: {_listed(before)} became {_listed(after)}.")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _name(dtype: ir.DataType | None) -> str:
    return "of no declared type" if dtype is None else dtype.name.lower()


def _matches(declared: _Sizes, given: Sequence[int]) -> bool:
    return len(declared) == len(given) and all(
        not isinstance(size, int) or size == found for size, found in zip(declared, given, strict=True)
    )


def _words(sizes: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in sizes) + "]"
