"""A search while it goes on, for people on stderr: a line for each candidate that was tried, and which is the best so far."""

from collections.abc import Mapping
from typing import Any

from onnxpress import wording
from onnxpress.client import Client
from onnxpress.deadline import Deadline
from onnxpress.documents import Event, Job
from onnxpress.errors import JobFailedError, WaitTimeoutError, about_job
from onnxpress.goal import limits_of
from onnxpress.live_progress import LiveProgress
from onnxpress.metrics import LOWER_IS_BETTER

Json = Mapping[str, Any]
_BEST = {"latency": "fastest", "size": "smallest", "memory": "smallest", "macs": "smallest"}


def wait_for(client: Client, job_id: str, deadline: Deadline, live: LiveProgress) -> Job:
    """Give the job once it has succeeded, showing what happens to it; errors are those of `Jobs.wait`, and name the job."""
    with about_job(job_id):
        return _ended(client, job_id, deadline, live)


def _ended(client: Client, job_id: str, deadline: Deadline, live: LiveProgress) -> Job:
    job, followed = None, False
    for job in client.jobs.updates(job_id, timeout=deadline.remaining()):
        live.update(job)
        if job.kind == "search" and not job.finished and not followed:
            followed = True
            _follow(client, job, deadline, live)
    assert job is not None
    if not job.succeeded:
        raise JobFailedError(job)
    return job


def _follow(client: Client, job: Job, deadline: Deadline, live: LiveProgress) -> None:
    """Show a search's events until it has ended."""
    trials = LiveTrials(job, live)
    try:
        for event in client.jobs.events(job.id, timeout=deadline.remaining()):
            if not trials.show(event):
                live.update(client.jobs.get(job.id))
    except WaitTimeoutError as error:
        raise WaitTimeoutError(f"{error}; the search goes on", client.jobs.get(job.id)) from error


class LiveTrials:
    """Tells of a search's candidates as they end, and which of them is the best so far within the limits."""

    def __init__(self, job: Job, live: LiveProgress) -> None:
        spec = job.document.get("spec") or {}
        self._live = live
        self._limits = limits_of(spec) if "goal" in spec else ()
        self._minimise = str((spec.get("goal") or {}).get("minimise", "latency"))
        self._because: dict[int, str] = {}
        self._best: float | None = None

    def show(self, event: Event) -> bool:
        """Show an event of a trial; False for any other one."""
        if not event.type.startswith("trial_"):
            return False
        number = int(event.data["number"])
        if event.type == "trial_queued":
            self._because[number] = str(event.data.get("because") or "")
        elif event.type == "trial_started":
            self._live.note(f"trial {number}: {self._because.get(number, '')}")
        elif event.type == "trial_ended":
            self._live.say(f"trial {number}: {self._ended(event.data)}")
        return True

    def _ended(self, data: Json) -> str:
        if data["state"] != "succeeded":
            return f"{data['state']}{': ' * bool(data.get('code'))}{data.get('code') or ''}"
        return told(data) + self._standing(data)

    def _standing(self, data: Json) -> str:
        """Say whether a candidate is the best so far; by the figures alone, for how sure they are the end says."""
        if not all(_holds(limit, data) for limit in self._limits):
            return "; beyond a limit"
        cost = data.get("latency_ratio") if self._minimise == "latency" else data.get("size_bytes")
        if cost is None or (self._best is not None and cost >= self._best):
            return ""
        self._best = cost
        # What else is minimised is not told of a trial while the search goes on.
        known = self._minimise in {"latency", "size"}
        return f"; the {_BEST[self._minimise]} so far whose figures are within the limits" if known else ""


def told(data: Json) -> str:
    """Give what was measured of a candidate in a few words."""
    ratio, size = data.get("latency_ratio"), data.get("size_bytes")
    parts = [] if ratio is None else [wording.speed_between(ratio, data.get("latency_low"), data.get("latency_high"))]
    parts += [] if size is None else [wording.size(size)]
    # The first one speaks for the network.
    parts += [wording.metric_change(quality) for quality in (data.get("quality") or ())[:1]]
    return ", ".join(parts)


def _holds(limit: Json, data: Json) -> bool:
    """Say whether a candidate's figures are inside a limit; True where they do not tell."""
    metric, _, output = limit["metric"].partition("@")
    output = limit.get("output") or output
    found = [
        _measured(limit["rule"], each)
        for each in data.get("quality") or ()
        if each["metric"] == metric and output in {"", None, each.get("output")}
    ]
    if metric == "size_bytes" and limit["rule"] in {"min", "max"}:
        found.append(data.get("size_bytes"))
    if metric == "latency_p50" and limit["rule"] == "max_ratio":
        found.append(data.get("latency_ratio"))
    known = [value for value in found if value is not None]
    return all(value >= limit["value"] if limit["rule"] == "min" else value <= limit["value"] for value in known)


def _measured(rule: str, quality: Json) -> float | None:
    if rule != "max_drop":
        return float(quality["compressed"])
    difference = quality.get("difference")
    if difference is None:
        return None
    return float(difference if quality["metric"] in LOWER_IS_BETTER else -difference)
