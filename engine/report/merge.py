"""One report of the parts that several workers made."""

from collections.abc import Sequence

from engine.report.profile_markdown import summarise_profile
from engine.report.values import ProfileReport, Verdict


def merge_reports(parts: Sequence[ProfileReport]) -> ProfileReport:
    """Make one report of those of a job's targets, measured by several workers."""
    targets = tuple(sorted((each for part in parts for each in part.targets), key=lambda each: each.index))
    gates = sorted((each for part in parts for each in part.verdict.gates), key=lambda each: each.target or 0)
    return parts[0].model_copy(
        update={
            "summary": summarise_profile(targets),
            "targets": targets,
            "verdict": Verdict.of(gates),
            "samples": max(part.samples for part in parts),
            # Of the same data; an older worker does not say it.
            "parts": next((part.parts for part in parts if part.parts), None),
            "seconds": round(sum(part.seconds for part in parts), 3),
            "warnings": tuple(dict.fromkeys(warning for part in parts for warning in part.warnings)),
        }
    )
