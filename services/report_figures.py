"""The figures of a report that jobs, trials and their lists show."""

from collections.abc import Mapping, Sequence
from typing import Any


def of_compression(report: Mapping[str, Any]) -> dict[str, Any]:
    """Give the main figures of a compression's report."""
    return {
        "text": report["summary"],
        "unchanged": report["unchanged"],
        "size": report["size"],
        "quality": report["quality"],
        "latency_ratio": _latency_ratio(report["latency"]),
        "gates": gates(report["verdict"]["gates"]),
    }


def of_profile(report: Mapping[str, Any]) -> dict[str, Any]:
    """Give the main figures of a profile's report."""
    return {"text": report["summary"], "targets": targets(report), "gates": gates(report["verdict"]["gates"])}


def waiting(names: Sequence[str]) -> list[dict[str, Any]]:
    """Give a job's steps before any of them has begun."""
    return [{"index": index, "type": name, "status": "waiting"} for index, name in enumerate(names)]


def passes(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give the passes of a compression as a job's steps."""
    return [
        {
            "index": step["index"],
            "type": step["type"],
            "status": step["status"],
            "seconds": step["seconds"],
            "reason": (step["refusal"] or {}).get("reason"),
            "change": (step["change"] or {}).get("summary"),
            "size": step["size"],
            "quality": [
                {name: quality.get(name) for name in ("metric", "output", "original", "compressed", "difference")}
                for quality in step["quality"]
            ],
            "latency_ratio": _latency_ratio(step["latency"]),
        }
        for step in report["steps"]
    ]


def targets(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give the targets of a profile as a job's steps."""
    return [_target(target) for target in report["targets"]]


def gates(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give judged gates as lists of jobs show them."""
    return [
        {**result["gate"], **{name: result[name] for name in ("target", "measured", "bound", "outcome", "reason")}}
        for result in results
    ]


def _target(profile: Mapping[str, Any]) -> dict[str, Any]:
    measured, refusal = profile["measured"], profile["refusal"]
    return {
        "index": profile["index"],
        "type": profile["target"]["provider"],
        "status": "refused" if measured is None else "measured",
        "seconds": profile["seconds"],
        "reason": None if refusal is None else refusal["reason"],
        "latency": None if measured is None else _latency(measured),
    }


def _latency(measured: Mapping[str, Any]) -> dict[str, Any]:
    latency = measured["latency"]
    found = {name: latency[name] for name in ("p50_ms", "p95_ms", "p99_ms", "samples")}
    return {**found, "stable": measured["stable"]}


def _latency_ratio(latency: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Give the ratio of the medians, the steadiest of the statistics."""
    if latency is None:
        return None
    return {**latency["ratios"]["p50"], "statistic": "p50", "stable": latency["stable"]}
