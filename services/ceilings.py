"""What the operator lets a job ask for: memory, time, measuring, candidates, and the size of what is asked itself."""

from collections.abc import Iterator

import engine
from services.errors import FieldError, InvalidError
from settings import Settings

# A recipe that names thousands of nodes stays below it.
_SPEC_BYTES = 256 << 10


def held(spec: "engine.Spec", settings: Settings) -> "engine.Spec":
    """Give the spec with what it does not say lowered to the ceilings; raises InvalidError for what it says beyond them."""
    lowered = _lowered(spec, settings)
    wrong = tuple(_beyond(lowered, settings))
    if wrong:
        raise InvalidError("The job asks for more than this service gives.", wrong, code="over_ceiling")
    return lowered


def _lowered(spec: "engine.Spec", settings: Settings) -> "engine.Spec":
    given = spec.limits.model_fields_set
    most = {"max_memory_mb": settings.max_job_memory_mb, "max_runtime_s": settings.max_job_runtime_s}
    lower = {name: top for name, top in most.items() if name not in given and getattr(spec.limits, name) > top}
    changed: dict[str, object] = {}
    if lower:
        changed["limits"] = spec.limits.model_copy(update=lower)
    if isinstance(spec, engine.Search) and spec.budget.max_trials is None and spec.allowed[1] > settings.max_job_trials:
        changed["budget"] = spec.budget.model_copy(update={"max_trials": settings.max_job_trials})
    return spec.model_copy(update=changed) if changed else spec


def _beyond(spec: "engine.Spec", settings: Settings) -> Iterator[FieldError]:
    if spec.limits.max_memory_mb > settings.max_job_memory_mb:
        yield _too_much("/limits/max_memory_mb", f"{settings.max_job_memory_mb} MiB")
    if spec.limits.max_runtime_s > settings.max_job_runtime_s:
        yield _too_much("/limits/max_runtime_s", f"{settings.max_job_runtime_s} s")
    where, seconds = _measuring(spec)
    if seconds > settings.max_job_measuring_s:
        yield _too_much(where, f"{settings.max_job_measuring_s:g} s of measuring, and this job asks for {seconds:g} s")
    if isinstance(spec, engine.Search) and spec.allowed[1] > settings.max_job_trials:
        yield _too_much("/budget/max_trials", f"{settings.max_job_trials} candidates")
    size = len(spec.model_dump_json())
    if size > _SPEC_BYTES:
        yield FieldError("", f"The job takes {size} bytes to write down; {_SPEC_BYTES} are the limit.")


def _measuring(spec: "engine.Spec") -> tuple[str, float]:
    """Give the field that asks for most of the measuring, and the seconds of all targets together."""
    tuning = 0.0 if spec.tune is None else spec.tune.max_seconds
    latency = spec.measure_seconds if isinstance(spec, engine.Profile) else 0.0
    where = "/measure_seconds" if latency >= tuning else "/tune/max_seconds"
    return where, (latency + tuning) * len(engine.targets_of(spec))


def _too_much(pointer: str, most: str) -> FieldError:
    return FieldError(pointer, f"At most {most}: the operator of this service has set that.")
