"""Keys under which the service does the same request of the same run only once."""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping

# What names one execution of a pipeline's step, and what tells its second attempt from the first.
CI_RUNS = (
    ("ONNXPRESS_RUN_ID",),
    ("GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT", "GITHUB_JOB"),
    ("CI_JOB_ID",),
    ("BUILDKITE_JOB_ID", "BUILDKITE_RETRY_COUNT"),
    ("CIRCLE_WORKFLOW_JOB_ID",),
    ("BUILD_BUILDID", "SYSTEM_JOBATTEMPT", "SYSTEM_JOBID"),
    ("BUILD_TAG",),
)


def idempotency_key(*parts: object, run: str | None = None) -> str:
    """Give the key under which the service does the same request of the same run only once."""
    text = json.dumps([*parts, run or run_id()], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def run_id(environment: Mapping[str, str] = os.environ) -> str:
    """Name this run: by the CI system's ids, so that the same attempt is recognised, else at random.

    The attempt is part of it: the second attempt of a cancelled CI run must not be answered with the cancelled job.
    """
    for names in CI_RUNS:
        if environment.get(names[0]):
            return "/".join(f"{name}={environment.get(name, '')}" for name in names)
    return secrets.token_hex(16)
