"""A decoder's two loads in words and as rows of a report's table."""

from collections.abc import Iterator

from engine.report.values import Generation, TokenRate
from engine.report.wording import milliseconds, speed


def generation_gain(generation: Generation) -> str:
    """Say how much faster tokens are written."""
    return f"writes tokens {_factor(generation.decode)}"


def generation_rows(generation: Generation) -> Iterator[tuple[str, ...]]:
    """Give time to the first token, and tokens per second of reading and of writing."""
    read, written = generation.prefill, generation.decode
    prompt = (
        f"{generation.texts} x {generation.prompt_tokens}" if generation.texts > 1 else f"{generation.prompt_tokens}"
    )
    yield (
        f"first token after {prompt} tokens",
        milliseconds(read.original_ms),
        milliseconds(read.compressed_ms),
        _factor(read),
    )
    for name, rate in (("prompt read", read), ("text written", written)):
        yield (
            name,
            f"{rate.original_tokens_per_s:.4g} tokens/s",
            f"{rate.compressed_tokens_per_s:.4g} tokens/s",
            _factor(rate),
        )


def _factor(rate: TokenRate) -> str:
    doubt = "" if rate.stable else " by CPU time" if rate.clock == "cpu" else ", measured on a busy machine"
    return f"{speed(rate.ratio)}{doubt}"
