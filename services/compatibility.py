"""Whether networks, data and spec of a job fit together, asked of the engine in the services' words."""

from sqlalchemy.orm import Session

import engine
from models import Dataset, Job, Model
from services.errors import RejectedError


def check(
    model: Model, dataset: Dataset | None, judge: Dataset | None, spec: "engine.Spec", baseline: Model | None
) -> list[str]:
    """Give warnings about a job before it runs; raises RejectedError for what its parts cannot do together."""
    data, judging = (
        engine.DatasetInspection.model_validate(each.inspection) if each else None for each in (dataset, judge)
    )
    try:
        if model.inspection is None:
            engine.check_data(data, spec, has_baseline=baseline is not None, judge=judging)
            return [f"The network is still to be made by the job {model.job_id}; it is checked then."]
        network = engine.Inspection.model_validate(model.inspection)
        compared = engine.Inspection.model_validate(baseline.inspection) if baseline else None
        said = [each.declared.get("outputs") or {} for each in (judge, dataset) if each is not None]
        declared = engine.read_declarations({name: body for each in said for name, body in each.items()})
        return engine.check_fit(network, data, spec, compared, judging, declared=declared)
    except engine.EngineError as error:
        raise RejectedError(error.message, code=error.code, hint=error.hint, problem=error.problem()) from None


def estimate(
    model: Model, dataset: Dataset | None, judge: Dataset | None, spec: "engine.Spec"
) -> "engine.Estimate | None":
    """Say what a job that fits together will take; None where the network's cost is not known, or it is still to be made."""
    if model.inspection is None:
        return None
    data, judging = (
        engine.DatasetInspection.model_validate(each.inspection) if each else None for each in (dataset, judge)
    )
    return engine.estimate_job(engine.Inspection.model_validate(model.inspection), data, spec, judging)


def gate_samples(
    model: Model, dataset: Dataset | None, judge: Dataset | None, spec: "engine.Spec"
) -> "list[engine.GateSamples]":
    """Say how many samples the gates of a job that fits take, and how many judge."""
    data, judging = (
        engine.DatasetInspection.model_validate(each.inspection) if each else None for each in (dataset, judge)
    )
    inputs = [] if model.inspection is None else [each["name"] for each in model.inspection["inputs"]]
    return engine.gate_samples_of(spec, data, judging, inputs=inputs)


def check_job(session: Session, job: Job, model: Model) -> list[str]:
    """Check an accepted job against its network, now that this has been made; raises as `check` does."""
    dataset = session.get(Dataset, job.dataset_id) if job.dataset_id else None
    judge = session.get(Dataset, job.judge_id) if job.judge_id else None
    baseline = session.get(Model, job.baseline_id) if job.baseline_id else None
    return check(model, dataset, judge, engine.read_spec(job.spec), baseline)
