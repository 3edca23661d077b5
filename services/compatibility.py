"""Whether networks, data and spec of a job fit together, asked of the engine in the services' words."""

from sqlalchemy.orm import Session

import engine
from models import Job, Model
from services import report_figures
from services.errors import RejectedError
from services.job_inputs import JobInputs


def check(inputs: JobInputs, spec: "engine.Spec") -> list[str]:
    """Give warnings about a job before it runs; raises RejectedError for what its parts cannot do together."""
    model = inputs.model
    data, judging = inputs.data()
    try:
        if model.inspection is None:
            engine.check_data(data, spec, has_baseline=inputs.baseline is not None, judge=judging)
            return [f"The network is still to be made by the job {model.job_id}; it is checked then."]
        said = [each.declared.get("outputs") or {} for each in (inputs.judge, inputs.dataset) if each is not None]
        declared = engine.read_declarations({name: body for each in said for name, body in each.items()})
        return engine.check_fit(
            engine.Inspection.model_validate(model.inspection),
            data,
            spec,
            _inspected(inputs.baseline),
            judging,
            student=_inspected(inputs.student),
            teacher=_inspected(inputs.teacher),
            declared=declared,
        )
    except engine.EngineError as error:
        raise _rejected(error) from None


def adapted(inputs: JobInputs, spec: "engine.Spec", *, trains: bool) -> "engine.Spec":
    """Leave out of a recipe by name what the network or the workers cannot do; raises RejectedError where nothing is left."""
    has_data = inputs.dataset is not None
    try:
        return engine.adapt_recipe(spec, inputs.inspection(), has_data=has_data, trains=trains)
    except engine.EngineError as error:
        raise _rejected(error) from None


def estimate(inputs: JobInputs, spec: "engine.Spec") -> "engine.Estimate | None":
    """Say what a job that fits together will take; None where the network's cost is not known, or it is still to be made."""
    network = inputs.inspection()
    if network is None:
        return None
    data, judging = inputs.data()
    return engine.estimate_job(network, data, spec, judging)


def gate_samples(inputs: JobInputs, spec: "engine.Spec") -> "list[engine.GateSamples]":
    """Say how many samples the gates of a job that fits take, and how many judge."""
    data, judging = inputs.data()
    model = inputs.model
    names = [] if model.inspection is None else [each["name"] for each in model.inspection["inputs"]]
    return engine.gate_samples_of(spec, data, judging, inputs=names)


def settle(session: Session, job: Job, model: Model) -> None:
    """Check an accepted job against its network, now that this has been made; raises as `check` does.

    Of a recipe by name, what the network does not let be done is left out now.
    """
    inputs, asked = JobInputs.of_job(session, job, model), engine.read_spec(job.spec)
    # Whether there are workers that train was asked when it was accepted.
    spec = adapted(inputs, asked, trains=True)
    job.warnings = check(inputs, spec)
    if spec != asked:
        job.spec = spec.model_dump(mode="json")
        job.steps = report_figures.waiting(engine.steps_of(spec))


def _rejected(error: "engine.EngineError") -> RejectedError:
    return RejectedError(error.message, code=error.code, hint=error.hint, problem=error.problem())


def _inspected(model: Model | None) -> "engine.Inspection | None":
    return engine.Inspection.model_validate(model.inspection) if model else None
