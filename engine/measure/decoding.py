"""How fast a decoder reads a prompt, and how fast it writes after it: two different loads, so each is measured for itself.

Reading multiplies weights with all tokens of a prompt at once; writing reads all weights for one token. What pays for one may
cost the other.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from engine.data.batches import Alone
from engine.data.decoder_inputs import decodes, past_axis, role, tokens_input
from engine.errors import ModelUnsupportedError
from engine.inspection import TensorInfo
from engine.measure.metrics import Array
from engine.measure.runs import Network
from engine.report.counted_time import counted
from engine.report.values import Generation, LatencyComparison, TokenRate
from engine.runtime.sessions import Feed, owned

_WORDS = re.compile(r"past|present|key_values|cache|_in\b|_out\b|new|old", re.IGNORECASE)


def decoding_feeds(original: Network, prompts: Iterable[Feed], inputs: Sequence[TensorInfo]) -> list[Feed]:
    """Give for each prompt the feed of the token after it: what the original thinks likeliest, behind a cache of the prompt.

    Both networks are then timed on these, so that they do the same work. Empty where the network is no decoder with a cache.

    Raises:
        ModelUnsupportedError: no output is what an input of the cache becomes.
    """
    if not decodes(inputs):
        return []
    return [_after(original.run(prompt), prompt, inputs) for prompt in prompts if not isinstance(prompt, Alone)]


def _after(outputs: Mapping[str, Array], prompt: Feed, inputs: Sequence[TensorInfo]) -> Feed:
    tokens = tokens_input(inputs)
    assert tokens is not None
    caches = _successors(inputs, outputs)
    scores = next((value for value in outputs.values() if value.ndim == 3 and value.dtype.kind in "fV"), None)
    count = len(prompt[tokens.name])
    if scores is None or len(scores) != count:
        raise ModelUnsupportedError("No output of the network scores the tokens (samples, positions, tokens).")
    feed: dict[str, Array] = {}
    for tensor in inputs:
        given = prompt[tensor.name]
        if tensor.name in caches:
            feed[tensor.name] = owned(outputs[caches[tensor.name]])
        elif tensor is tokens:
            feed[tensor.name] = np.asarray(scores[:, -1], np.float32).argmax(axis=-1)[:, None].astype(given.dtype)
        elif role(tensor) == "mask":
            feed[tensor.name] = np.concatenate([given, np.ones((count, 1), given.dtype)], axis=1)
        elif role(tensor) == "positions":
            feed[tensor.name] = given[:, -1:] + 1
        else:
            feed[tensor.name] = given
    return feed


def _successors(inputs: Sequence[TensorInfo], outputs: Mapping[str, Array]) -> dict[str, str]:
    """Find for each input of the cache the output that it becomes: by the name's number and kind, else by their order."""
    before = [tensor.name for tensor in inputs if past_axis(tensor) is not None]
    after = [name for name, value in outputs.items() if value.ndim == 4]
    by_core = {_core(name): name for name in after}
    found = {name: by_core[_core(name)] for name in before if _core(name) in by_core}
    if len(found) == len(before) == len(set(found.values())):
        return found
    if len(before) != len(after):
        raise ModelUnsupportedError(
            f"The network takes {len(before)} caches and gives {len(after)}, so that it is not known which becomes which."
        )
    return dict(zip(before, after, strict=True))


def _core(name: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[^a-z0-9]+", _WORDS.sub(" ", name.lower())) if word)


def generation(
    prompts: Sequence[Feed], inputs: Sequence[TensorInfo], prefill: LatencyComparison, decode: LatencyComparison
) -> Generation:
    """Put together what the two loads took: prompts as they were fed, and one token for each text of a batch."""
    tokens = tokens_input(inputs)
    assert tokens is not None
    shapes = [prompt[tokens.name].shape for prompt in prompts]
    texts = shapes[0][0]
    read = sum(count * length for count, length in shapes) / len(shapes)
    return Generation(
        texts=texts,
        prompt_tokens=round(read / texts),
        prefill=_rate(read, prefill),
        decode=_rate(texts, decode),
    )


def _rate(tokens: float, compared: LatencyComparison) -> TokenRate:
    before, after = compared.original.p50_ms, compared.compressed.p50_ms
    time = counted(compared)
    return TokenRate(
        original_ms=before,
        compressed_ms=after,
        original_tokens_per_s=round(1000 * tokens / before, 2),
        compressed_tokens_per_s=round(1000 * tokens / after, 2),
        ratio=time.ratio,
        clock=time.clock,
        stable=compared.stable,
        unstable_because=compared.unstable_because,
    )
