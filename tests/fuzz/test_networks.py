"""Networks at random over all operators of the standard, right and wrong: none ends by an error of ours."""

import os
import random
import sys
from collections import Counter

import onnx
import pytest

from .test_malformed import ends_of

SECONDS = 120
# Of `make soak`: a fault found there is found at every run.
SEED = 15


@pytest.mark.parametrize(
    "seed", [pytest.param(SEED, marks=pytest.mark.soak), pytest.param(None, marks=pytest.mark.fuzz)]
)
def test_a_network_at_random_ends_in_words(seed):
    """`FUZZ_SEED=... make fuzz` repeats what one run has found; `python -m tests.fuzz.ends networks SEED COUNT SECONDS` shows each."""
    seed = seed or int(os.environ.get("FUZZ_SEED", random.randrange(1 << 32)))
    sys.stderr.write(f"FUZZ_SEED={seed}\n")
    ends = ends_of("networks", seed, 1 << 30, SECONDS)
    found = {name: told for name, told in ends.items() if told["end"] == "unforeseen" or told.get("blame") == "service"}
    assert not found, f"FUZZ_SEED={seed} {found}"
    # What takes too long or dies costs its own process, which the sandbox sees to; that is rare, or this looks at nothing else.
    kinds = Counter(told["end"] for told in ends.values())
    assert kinds["late"] + kinds["crashed"] <= len(ends) // 20, f"FUZZ_SEED={seed} {kinds}"
    assert kinds["runs"] >= len(ends) // 20, f"FUZZ_SEED={seed} {kinds}"
    # One over which onnx crashes while it is made has not said of what.
    tried = {name for told in ends.values() for name in told.get("what", ())}
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert len(tried & known) >= len(known) * 2 // 3
