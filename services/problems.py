"""The closed set of reasons why a job ends without a result, besides the engine's own."""

from typing import Any, Literal

import engine

Problem = dict[str, Any]
Blame = Literal["user", "service", "transient"]


def problem(code: str, message: str, *, blame: Blame, retryable: bool = False, hint: str | None = None) -> Problem:
    """Give a problem in the shape that rows store."""
    found: Problem = {"code": code, "class": blame, "retryable": retryable, "message": message}
    return found if hint is None else {**found, "hint": hint}


CANCELLED = problem("cancelled", "The job was cancelled.", blame="user")
PENDING_LIMIT = problem(
    "pending_limit",
    "No worker was free within the job's pending limit.",
    blame="transient",
    retryable=True,
    hint="Raise limits.max_pending_s, or start more workers.",
)


def no_worker_for(target: str, *, trains: bool = False) -> Problem:
    """Give the reason of a job whose target, a provider or a class of machines with it, no worker had while it waited.

    `trains`: it would have had to have PyTorch too.
    """
    if trains:
        return {
            **PENDING_LIMIT,
            "message": f"No worker that has the target `{target}` and PyTorch was there within the job's pending limit.",
            "hint": f"{engine.TRAINING_HINT}; GET /v1/targets shows who has it.",
        }
    return {
        **PENDING_LIMIT,
        "message": f"No worker that has the target `{target}` was there within the job's pending limit.",
        "hint": f"Start a worker whose onnxruntime has `{target}`; GET /v1/targets shows what there is.",
    }


RUNTIME_LIMIT = problem(
    "runtime_limit",
    "The work did not end within its run limit.",
    blame="user",
    hint="Raise limits.max_runtime_s, or ask for less.",
)
MEASURING_LIMIT = problem(
    "measuring_limit",
    "The network was still being measured when others had waited for that for as long as one may.",
    blame="user",
    hint="Ask for a shorter measurement, or for a smaller batch.",
)
MEMORY_LIMIT = problem(
    "memory_limit",
    "The process that worked on the network took more memory than the job's limit.",
    blame="user",
    hint="Raise limits.max_memory_mb.",
)
PROCESS_CRASHED = problem(
    "process_crashed",
    "The process that worked on the network crashed each time.",
    blame="user",
    hint="The network makes ONNX Runtime itself crash; simplify it, or drop the pass that was running.",
)
WORKER_LOST = problem("worker_lost", "The machines under the job were lost too often.", blame="service", retryable=True)
OUTPUT_INVALID = problem(
    "output_invalid", "The process that worked on the network left no valid result.", blame="service"
)
STORE_DAMAGED = problem("store_damaged", "Stored bytes of the job's inputs are damaged.", blame="service")
DEPENDENCY_FAILED = problem(
    "dependency_failed", "The job that was to make this job's network has ended without it.", blame="user"
)
JOB_ENDED = problem("dependency_failed", "The job that was to make this network has ended without it.", blame="user")
JOB_DEADLINE = problem(
    "job_deadline",
    "The time of the whole job was over before this part of it began.",
    blame="user",
    hint="Give the job more time, or start more workers.",
)
JOB_CPU_LIMIT = problem(
    "job_cpu_limit",
    "The processor time of the whole job was used up before this part of it began.",
    blame="user",
    hint="Give the job more processor time.",
)
