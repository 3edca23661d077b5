"""Labels that a text is to itself: at each position the token that comes next."""

from collections.abc import Mapping

import numpy as np

from engine.data.containers import Header, Varying
from engine.data.labels import UNLABELLED, Array

TOKENS = "input_ids"
MASK = "attention_mask"


def has_next_tokens(headers: Mapping[str, Header], metric: str | None) -> bool:
    """Say whether texts of one length can be judged by themselves: perplexity is asked for, and nothing else says of what."""
    header = headers.get(TOKENS)
    return (
        metric == "perplexity"
        and header is not None
        and header.dtype.kind in "iu"
        and len(header.shape) == 2
        and None not in header.shape
    )


def next_tokens(arrays: Mapping[str, Array | Varying]) -> Array | None:
    """Give the token after each of (texts, tokens), -1 after the last one and where a mask hides one of the two.

    None where there are no texts of one length.
    """
    tokens, mask = arrays.get(TOKENS), arrays.get(MASK)
    if tokens is None or isinstance(tokens, Varying):
        return None
    found = np.full(tokens.shape, UNLABELLED, np.int64)
    found[:, :-1] = tokens[:, 1:]
    if mask is not None and not isinstance(mask, Varying) and mask.shape == tokens.shape:
        seen = np.asarray(mask) != 0
        found[:, :-1][~(seen[:, 1:] & seen[:, :-1])] = UNLABELLED
    return found
