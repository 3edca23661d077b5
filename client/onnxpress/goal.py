"""What is needed, as people type it: a goal with its limits, and what the search for it may take."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from onnxpress.errors import UsageError
from onnxpress.quantities import parse_seconds
from onnxpress.recipe import read_document, search_job

MINIMISED = ("latency", "size", "memory", "macs")
EFFORTS = ("low", "medium", "high")
STRATEGIES = ("auto", "tpe", "nsga2", "random", "gradient", "reinforce")
# Of a job that says nothing of it.
USUAL_RUNTIME_S = 1800
_ABSENT = f"there is no such file, and a goal is one of {', '.join(MINIMISED)}"


def read_goal(goal: str) -> dict[str, Any]:
    """Give the spec of a search from what is minimised, or from a file: `{"minimise": ...}`, or a whole job with a `goal`."""
    if goal in MINIMISED:
        return {"kind": "search", "goal": {"minimise": goal}}
    document = read_document(goal, f"--goal {goal}: {_ABSENT}")
    if "goal" in document:
        return search_job(document, goal)
    if "minimise" in document:
        return {"kind": "search", "goal": document}
    raise UsageError(
        f'{goal} holds neither a goal ({{"minimise": "latency", ...}}) nor a job with one ({{"goal": {{...}}, ...}})'
    )


def search_options(
    *,
    effort: str | None = None,
    budget: str | None = None,
    trials: int | None = None,
    strategy: str | None = None,
    seed: int | None = None,
    flip: bool = False,
) -> dict[str, Any]:
    """Give the options of these names that were typed, as parts of a search's spec; raises UsageError."""
    _one_of("--effort", effort, EFFORTS)
    _one_of("--strategy", strategy, STRATEGIES)
    limits = {
        "max_seconds": None if budget is None else parse_seconds(budget, f"--budget {budget}"),
        "max_trials": trials,
    }
    told = {
        "goal": _told({"effort": effort}),
        "budget": _told(limits),
        "strategy": strategy,
        "seed": seed,
        "space": {"flip": True} if flip else {},
    }
    return {name: value for name, value in told.items() if value not in (None, {})}


def with_options(spec: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Let options add to a search's spec, and win where both say something."""
    joined = dict(spec)
    for name, value in options.items():
        joined[name] = {**spec.get(name, {}), **value} if isinstance(value, Mapping) else value
    seconds, limits = options.get("budget", {}).get("max_seconds"), spec.get("limits", {})
    if seconds is not None and "max_runtime_s" not in limits and seconds > USUAL_RUNTIME_S:
        # Who allows hours allows a job that runs so long; what the last trial and the report take comes on top.
        joined["limits"] = {**limits, "max_runtime_s": ceil(1.1 * seconds) + 600}
    return joined


def with_limits(spec: Mapping[str, Any], gates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add limits to a job: to a search's goal, or to the gates of a recipe."""
    if not gates:
        return dict(spec)
    if spec.get("kind") == "search":
        goal = spec["goal"]
        return {**spec, "goal": {**goal, "subject_to": [*goal.get("subject_to", ()), *gates]}}
    return {**spec, "gates": [*spec.get("gates", ()), *gates]}


def limits_of(spec: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Give the limits that a job has, whatever they are called in it."""
    holder = spec["goal"] if spec.get("kind") == "search" else spec
    return [*holder.get("subject_to" if spec.get("kind") == "search" else "gates", ())]


def _one_of(option: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise UsageError(f"{option} {value} is not known; it is one of {', '.join(known)}")


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
