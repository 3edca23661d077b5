"""Jobs that are the same work: their result is measured once for each kind of machine, and given again."""

from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

import engine
from models import Artifact, Dataset, Job, JobStatus, Model, ModelState
from services import workers
from services.idempotency import digest
from services.job_inputs import JobInputs

_OF_A_GPU = ("gpu", "gpu_memory_bytes", "driver", "cuda", "cudnn")
# "use": an earlier result may answer; "refuse": the work is done again.
Mode = Literal["use", "refuse"]


def key(inputs: JobInputs, spec: "engine.Spec") -> str | None:
    """Name the work; None while the network has no bytes, and for profiles: whoever measures wants to know how it is now.

    Limits change no result, so they do not count.
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
            "spec": spec.model_dump(mode="json", exclude={"limits"}),
            "version": version(),
        }
    )


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


def find(session: Session, tenant_id: str, name: str, spec: "engine.Spec") -> tuple[Job, Model] | None:
    """Give a job whose result answers another one of this name, and its network.

    It was measured on a machine such as a live worker has, it was decided, and all its bytes are still there.
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
            Job.verdict != "inconclusive",
            Job.measured_on.in_(classes),
            Model.state == ModelState.READY,
        )
        .order_by(Job.id.desc())
        .limit(1)
        .with_for_update(read=True, of=Model)
    ).first()
    return None if found is None else (found[0], found[1])


@cache
def version() -> str:
    """Name this version of the service: another one may do the same work otherwise."""
    return metadata.version("onnxpress-server")
