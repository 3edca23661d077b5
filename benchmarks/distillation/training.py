"""What training took: seconds, steps, and the memory of the process that trained."""

from collections.abc import Iterator, Sequence

from benchmarks.contest import Result
from benchmarks.distillation.entries import TRAINING
from benchmarks.documents import megabytes, seconds


def lines(results: Sequence[Result]) -> list[str]:
    """Say of each network that was trained what that took."""
    return [f"{each.name}: {'; '.join(told)}." for each in results for told in [list(_trained(each))] if told]


def _trained(result: Result) -> Iterator[str]:
    steps = list(_steps(result))
    yield from steps
    if steps and result.peak_rss_bytes:
        yield f"peak memory of its process {megabytes(result.peak_rss_bytes)}"


def _steps(result: Result) -> Iterator[str]:
    for step in result.told.get("steps", ()):
        if step["type"] in TRAINING and step["status"] == "applied":
            yield f"`{step['type']}` took {seconds(step['seconds'])}: {step['change'].rstrip('.')}"
    if result.told.get("trained_steps"):
        yield f"fine-tuned for {seconds(result.told['trained_seconds'])}, {result.told['trained_steps']} steps"
