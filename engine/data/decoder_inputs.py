"""Which inputs of a decoder follow from its tokens: the attention mask, the positions, and a cache that is still empty.

So that a dataset of token numbers is all that somebody has to bring, whatever else the exporter made an input. A web process
tells by this what a dataset lacks; `engine/data/completion.py` makes the arrays.
"""

import re
from collections.abc import Collection, Sequence
from typing import Literal

from engine.inspection import TensorInfo

Role = Literal["tokens", "mask", "positions", "past"]

_INTEGERS = frozenset({"int32", "int64"})
_FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
# (samples, heads, positions, size of a head)
_CACHE_AXES, _LENGTH_AXIS = 4, 2
_LENGTH_NAME = re.compile(r"past|seq|len|total", re.IGNORECASE)


def role(tensor: TensorInfo) -> Role | None:
    """Tell by name, type and shape what an input of a decoder is; None for what none of these is."""
    name, rank = tensor.name.lower(), len(tensor.shape or ())
    if rank == 2 and "mask" in name and tensor.dtype in {*_INTEGERS, *_FLOATS, "bool"}:
        return "mask"
    if rank == 2 and tensor.dtype in _INTEGERS:
        if "position" in name:
            return "positions"
        return "tokens" if "ids" in name and "type" not in name and "seg" not in name else None
    if rank == _CACHE_AXES and tensor.dtype in _FLOATS and re.search(r"past|cache", name):
        return "past"
    return None


def past_axis(tensor: TensorInfo) -> int | None:
    """Give the axis of a cache that counts what is in it; None where it is no cache, or has a fixed length."""
    if role(tensor) != "past" or tensor.shape is None:
        return None
    opened = [axis for axis, size in enumerate(tensor.shape) if axis > 0 and not isinstance(size, int)]
    named = [axis for axis in opened if _LENGTH_NAME.search(str(tensor.shape[axis] or ""))]
    candidates = named or opened
    return _LENGTH_AXIS if _LENGTH_AXIS in candidates else next(iter(candidates), None)


def tokens_input(inputs: Sequence[TensorInfo]) -> TensorInfo | None:
    """Give the input that takes token numbers (samples, tokens), where a network has just one."""
    found = [tensor for tensor in inputs if role(tensor) == "tokens"]
    return found[0] if len(found) == 1 else None


def decodes(inputs: Sequence[TensorInfo]) -> bool:
    """Say whether a network with these inputs takes tokens, and keeps of earlier ones a cache that grows."""
    return tokens_input(inputs) is not None and any(past_axis(tensor) is not None for tensor in inputs)


def follow(inputs: Sequence[TensorInfo], given: Collection[str]) -> frozenset[str]:
    """Name the inputs that are not given but follow from the tokens, which are."""
    tokens = tokens_input(inputs)
    if tokens is None or tokens.name not in given or not decodes(inputs):
        return frozenset()
    return frozenset(
        tensor.name for tensor in inputs if tensor.name not in given and tensor.name != tokens.name and _follows(tensor)
    )


def _follows(tensor: TensorInfo) -> bool:
    if role(tensor) in {"mask", "positions"}:
        return True
    axis = past_axis(tensor)
    shape = tensor.shape or ()
    # The sizes of heads have to be known: nothing else says them.
    return axis is not None and all(isinstance(size, int) for at, size in enumerate(shape) if at not in {0, axis})
