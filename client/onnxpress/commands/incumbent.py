"""What a result is to replace: found before the work, measured beside the result after it, replaced on a pass only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxpress import wording
from onnxpress.aliases import UNSAID
from onnxpress.client import Client
from onnxpress.commands.submit import JobRequest, submit
from onnxpress.deadline import Deadline
from onnxpress.documents import Job
from onnxpress.errors import NotFoundError, UsageError
from onnxpress.live_progress import LiveProgress
from onnxpress.model_names import is_id, is_stored_model
from onnxpress.network_files import digest_network
from onnxpress.production import Incumbent, comparison_spec, usual_gates
from onnxpress.run_record import Comparison, RunRecord
from onnxpress.terminal import people, tell


@dataclass(frozen=True)
class Replacement:
    """What the options say: whom the result is compared with, by which limits, and which alias it gets."""

    baseline: str | None = None
    gates: Sequence[Mapping[str, Any]] = ()
    promote: str | None = None

    def check(self, *, has_gates: bool, wait: bool) -> None:
        """Raise UsageError for what cannot be meant."""
        if self.gates and self.baseline is None:
            raise UsageError("--baseline-gate limits the result beside a network in production; name it by --baseline")
        if (self.baseline or self.promote) and not wait:
            raise UsageError("--no-wait ends before there is a result for --baseline or --promote")
        if self.promote is not None and not has_gates and self.baseline is None:
            raise UsageError(
                "--promote needs something that the result has to pass: --max-drop, --gate or --baseline @PRODUCTION"
            )


def find_incumbent(client: Client, asked: Replacement, record: RunRecord, deadline: Deadline) -> Incumbent | None:
    """Give the network that the result is to replace; None where nobody named one, or where the result will be the first.

    Raises NotFoundError for an alias that nobody has, unless it is the one that the result is to get.
    """
    named = asked.baseline
    if named is None:
        return None
    if not is_stored_model(named):
        file = digest_network(named)
        with LiveProgress(people()) as live, live.transfer(f"upload {file.path.name}") as progress:
            stored = client.models.upload(file, timeout=deadline.remaining(), progress=progress)
        return Incumbent(Path(named).name, stored.id)
    try:
        return Incumbent(named, client.models.get(named).id)
    except NotFoundError:
        if not is_id(named, "@") or named.removeprefix("@") != asked.promote:
            raise
    record.notes.append(f"{named} names no network yet: there is nothing to compare with, and the result is the first.")
    tell(record.notes[-1], "yellow")
    return None


def compare(
    client: Client,
    job: Job,
    incumbent: Incumbent,
    asked: Replacement,
    deadline: Deadline,
    *,
    drop: float | None,
    keep: bool,
    as_json: bool,
) -> Comparison:
    """Measure a job's result and the incumbent run by run in turn, and judge the one beside the other."""
    judging = job.document.get("judge") or job.document.get("dataset")
    gates = asked.gates or usual_gates(
        job.document.get("spec") or {}, drop, client.datasets.get(judging) if judging else None
    )
    limits = ", ".join(map(wording.gate_text, gates))
    usual = "" if asked.gates else "; --baseline-gate says otherwise"
    tell(f"beside {incumbent.named} ({incumbent.model}): {limits}{usual}")
    request = JobRequest(comparison_spec(job.document, incumbent, gates), str(job.output_model))
    done = submit(client, request, deadline, wait=True, keep=keep, as_json=as_json, silent=True)
    assert done is not None
    return Comparison(incumbent.named, incumbent.model, done, client.jobs.report(done.id))


def promote(client: Client, record: RunRecord, alias: str, incumbent: Incumbent | None) -> None:
    """Have the alias name the result, if that is what it still was compared with.

    Raises ConflictError where somebody else moved it meanwhile.
    """
    assert record.job is not None
    assert record.job.output_model is not None
    compared = incumbent is not None and incumbent.named == f"@{alias}"
    commit = record.labels.get("commit")
    note = f"{record.job.id}{f', commit {commit}' if commit else ''}"
    expected = incumbent.model if compared and incumbent is not None else UNSAID
    client.aliases.move(alias, record.job.output_model, expected=expected, note=note)
    record.promoted = alias
    record.notes.append(f"@{alias} names {record.job.output_model} now.")
    tell(record.notes[-1], "green")
