"""Inputs that a dataset may leave out: what a network remembers of earlier steps, which at the first step is nothing.

Caches of keys and values (`past_key_values.0.key`) are fed empty, states of recurrent networks as zeros. Told from names, types
and shapes alone, so that a job can be checked before any file is opened.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.data.batches import batch_axes
from engine.inspection import ArrayInfo, TensorInfo


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words of names, as exporters and hubs use them.
_IN_OR_OUT = _words(
    "in out input output inputs outputs new prev previous next old past present key values initial init final n t i o last"
)
_SAME_WORD = {"hidden": "h", "hn": "h", "cell": "c", "cn": "c", "states": "state", "caches": "cache"}
STATE_WORDS = _words("h c state cache memory buffer carry")
_LENGTH_WORDS = _words("past seq sequence len length context ctx cache kv steps time total positions window")
_FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


@dataclass(frozen=True)
class InitialState:
    """An input as it is before the first step. `shape` is one sample's, without the axis that counts samples."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def empty(self) -> bool:
        """Say whether it holds nothing at all."""
        return 0 in self.shape

    def described(self, samples: int) -> ArrayInfo:
        """Give it as if the dataset had an array of it."""
        return ArrayInfo(name=self.name, dtype=self.dtype, shape=(samples, *self.shape))


def split_name(name: str) -> list[str]:
    """Give the words of a name in lower case: `present.0.key`, `stateN`, `h0`, `last_hidden_state`."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[0-9])(?=[A-Za-z])", " ", name)
    return [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]


def core(name: str) -> frozenset[str]:
    """Give the words of a name that stay the same from one step to the next."""
    return frozenset(_SAME_WORD.get(word, word) for word in split_name(name) if word not in _IN_OR_OUT)


def same_core(one: str, other: str) -> bool:
    """Say whether two names may be those of one state, before and after a step."""
    left, right = core(one), core(other)
    return bool(left) and (left == right or _letters(left) == _letters(right) != frozenset())


def initial_states(
    inputs: Sequence[TensorInfo], given: Collection[str], outputs: Sequence[TensorInfo] | None
) -> dict[str, InitialState | None]:
    """Give the inputs without an array that are states; None for one of which the shape is not known at the first step.

    Args:
        inputs: of the network.
        given: names of the arrays that the dataset has.
        outputs: of the network; a state comes out again under a like name. None: whatever has no array is known to be one.
    """
    shapes = {tensor.name: tensor.shape for tensor in inputs}
    axes = batch_axes(shapes)
    named = {size for name in given for size in (shapes.get(name) or ())[:1] if isinstance(size, str)}
    found = {}
    for tensor in inputs:
        if tensor.name in given or not (outputs is None or _is_state(tensor, outputs)):
            continue
        shape = _first_shape(tensor, axes[tensor.name], named)
        found[tensor.name] = None if shape is None else InitialState(tensor.name, tensor.dtype, shape)
    return found


def told(states: Mapping[str, InitialState | None]) -> Iterator[str]:
    """Say which inputs are fed as they are before the first step."""
    known = [state for state in states.values() if state is not None]
    for what, names in (
        ("empty is", [state.name for state in known if state.empty]),
        ("zeros are", [state.name for state in known if not state.empty]),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 4 else ""
            listed = ", ".join(names[:3] if more else names)
            yield (
                f"The dataset has no array for {listed}{more}: as before the first step, {what} fed. Give arrays of these"
                " names for later steps."
            )


def _is_state(tensor: TensorInfo, outputs: Sequence[TensorInfo]) -> bool:
    words = set(split_name(tensor.name))
    if tensor.dtype == "bool":
        # The switch of decoders that hold both a first and a later step.
        return {"use", "cache"} <= words
    if tensor.dtype not in _FLOATS or not tensor.shape:
        return False
    rank = len(tensor.shape)
    if "past" in words and rank >= 3:
        return True
    named = core(tensor.name) & STATE_WORDS
    like = (output for output in outputs if output.dtype in _FLOATS and len(output.shape or ()) == rank)
    return bool(named) and any(same_core(output.name, tensor.name) for output in like)


def _first_shape(tensor: TensorInfo, batch: int | None, named: Collection[str]) -> tuple[int, ...] | None:
    """Give a sample's shape at the first step: no positions yet, and what is fixed as it is."""
    assert tensor.shape is not None
    own = [size for axis, size in enumerate(tensor.shape) if axis != batch]
    # More than one axis that only the caller knows cannot be told apart without names.
    unnamed = [size for size in own if not isinstance(size, int)]
    found = []
    for size in own:
        if isinstance(size, int):
            found.append(size)
        elif size in named:
            return None
        elif "past" in split_name(tensor.name) and (
            len(unnamed) == 1 or (size is not None and set(split_name(size)) & _LENGTH_WORDS)
        ):
            found.append(0)
        else:
            return None
    return tuple(found)


def _letters(words: frozenset[str]) -> frozenset[str]:
    return frozenset(word for word in words if not word.isdigit())
