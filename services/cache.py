"""Jobs that are the same work: their result is measured once for each kind of machine, and given again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from itertools import chain
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

import engine
from models import Artifact, Dataset, Job, JobStatus, Model, ModelState
from services import artifacts, workers
from services.idempotency import digest
from services.job_inputs import JobInputs
from services.storage import Store

_OF_A_GPU = ("gpu", "gpu_memory_bytes", "driver", "cuda", "cudnn")
# Of jobs that did the same work, the newest.
_MOST_LOOKED_AT = 5
# "use": an earlier result may answer; "refuse": the work is done again.
Mode = Literal["use", "refuse"]


def key(inputs: JobInputs, spec: "engine.Spec") -> str | None:
    """Name the work; None while the network has no bytes, and for profiles: whoever measures wants to know how it is now.

    Limits on resources change no result, so they do not count; nor do those of a compression's gates that can be judged anew.
    """
    if inputs.model.artifact_digest is None or not engine.makes_network(spec):
        return None
    others = {"student": inputs.student, "teacher": inputs.teacher}
    return digest(
        {
            "model": inputs.model.artifact_digest,
            **{name: row.artifact_digest for name, row in others.items() if row is not None},
            "dataset": _data(inputs.dataset),
            "judge": _data(inputs.judge),
            **_work(spec),
            "version": version(),
        }
    )


def _work(spec: "engine.Spec") -> dict[str, Any]:
    if not isinstance(spec, engine.Compress):
        return {"spec": spec.model_dump(mode="json", exclude={"limits"})}
    # By what gates mean for the work: whoever changes a limit alone asks for the same.
    return {
        "spec": spec.model_dump(mode="json", exclude={"limits", "gates"}),
        "gates": engine.work_of_gates(spec.gates, spec.recipe.passes),
    }


def key_of_job(session: Session, job: Job, model: Model) -> str | None:
    """Name the work of an accepted job, now that its network has been made."""
    return key(JobInputs.of_job(session, job, model), engine.read_spec(job.spec))


def _data(dataset: Dataset | None) -> dict[str, Any] | None:
    """Give what a result depends on of a dataset: its bytes, and how its owner wants them read."""
    if dataset is None:
        return None
    return {"artifact": dataset.artifact_digest, "declaration": dataset.declared}


def machine(described: Mapping[str, Any], flags: str) -> str:
    """Name a kind of machine by what its figures depend on; `flags` is the name of the processor's flags there.

    The runtime counts with the distribution that brought it: `onnxruntime` and `onnxruntime-openvino` are built otherwise,
    also where both run on the CPU. A provider that is a plugin has a version of its own. Of a GPU its driver counts, and the
    libraries that compute on it: each brings kernels of its own.
    """
    names = ("provider", "cpu", "onnxruntime", "distribution", "ep_version")
    gpu = [described.get(name) for name in _OF_A_GPU] if described.get("gpu") else []
    return digest([described.get(name) for name in names] + [sorted(described[flags])] + gpu)


@dataclass(frozen=True)
class Answer:
    """A job whose result answers another one, with its network; `report` where the other one's gates had to be judged anew."""

    job: Job
    model: Model
    report: "engine.Report | None" = None


def find(session: Session, tenant_id: str, name: str, spec: "engine.Spec", store: Store | None = None) -> Answer | None:
    """Give the job whose result answers another one of this name.

    It was measured on a machine such as a live worker has, it is decided, and all its bytes are still there. With the
    `store` one that had other gates answers too, where what was measured decides these.
    """
    providers = {target.provider for target in engine.targets_of(spec)}
    classes = {
        machine(target, "flags")
        for worker in workers.live(session)
        for target in worker.targets
        if target.get("provider") in providers
    }
    found = session.execute(
        select(Job, Model)
        .join(Model, Model.id == Job.output_model_id)
        .join(Artifact, (Artifact.tenant_id == Job.tenant_id) & (Artifact.digest == Job.report_digest))
        .where(
            Job.tenant_id == tenant_id,
            Job.cache_key == name,
            Job.status == JobStatus.SUCCEEDED,
            Job.measured_on.in_(classes),
            Model.state == ModelState.READY,
        )
        .order_by(Job.id.desc())
        .limit(_MOST_LOOKED_AT)
        .with_for_update(read=True, of=Model)
    ).all()
    answers = (Answer(job, model) for job, model in found if _same_gates(job, spec) and job.verdict != "inconclusive")
    anew = (
        _judged_anew(session, store, job, model, spec) for job, model in found if store and not _same_gates(job, spec)
    )
    return next((answer for answer in chain(answers, anew) if answer is not None), None)


def _same_gates(job: Job, spec: "engine.Spec") -> bool:
    return isinstance(spec, engine.Search) or engine.read_spec(job.spec) == spec.model_copy(
        update={"limits": engine.read_spec(job.spec).limits}
    )


def _judged_anew(session: Session, store: Store | None, job: Job, model: Model, spec: "engine.Spec") -> Answer | None:
    """Hold a job's gates against what another one measured; None where that does not decide them."""
    if store is None or job.report_digest is None or not isinstance(spec, engine.Compress):
        return None
    files = {file.path: file for file in artifacts.get_artifact(session, job.tenant_id, job.report_digest).files}
    try:
        told = json.loads(b"".join(store.read(job.tenant_id, files["report.json"].sha256)))
        report = engine.read_report(told)
    except (KeyError, ValueError):
        # Of a version that wrote otherwise.
        return None
    if not isinstance(report, engine.Report):
        return None
    anew = engine.rejudged(report, spec.gates, exact=spec.recipe.exact)
    return None if anew is None or anew.verdict.outcome == "inconclusive" else Answer(job, model, anew)


@cache
def version() -> str:
    """Name this version of the service: another one may do the same work otherwise."""
    return metadata.version("onnxpress-server")
