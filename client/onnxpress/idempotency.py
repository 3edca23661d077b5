"""Keys under which the service does the same request of the same run only once."""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping

# What names a pipeline's step, its attempts taken together: a later one finds the job of the one before.
CI_RUNS = (
    ("ONNXPRESS_RUN_ID",),
    ("GITHUB_RUN_ID", "GITHUB_JOB"),
    ("CI_PIPELINE_ID", "CI_JOB_NAME"),
    ("BUILDKITE_BUILD_ID", "BUILDKITE_STEP_ID"),
    ("CIRCLE_WORKFLOW_JOB_ID",),
    ("BUILD_BUILDID", "SYSTEM_JOBID"),
    ("BUILD_TAG",),
)


def idempotency_key(*parts: object, run: str | None = None) -> str:
    """Give the key under which the service does the same request of the same run only once."""
    text = json.dumps([*parts, run or run_id()], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def run_id(environment: Mapping[str, str] = os.environ) -> str:
    """Name this run: by the CI system's ids, so that a further attempt is recognised, else at random."""
    for names in CI_RUNS:
        if environment.get(names[0]):
            return "/".join(f"{name}={environment.get(name, '')}" for name in names)
    return secrets.token_hex(16)
