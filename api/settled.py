"""Uploads that are answered once they have been inspected."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from api.deps import Asked, At
from api.errors import ApiError
from models import Dataset, Model

Upload = TypeVar("Upload", Model, Dataset)


async def settled(asked: Asked, read: Callable[[At], Upload], wait_s: float) -> Upload:
    """Give the upload's row as soon as it is ready, or as it is after `wait_s`; raises 422 where it was rejected."""
    end = time.monotonic() + wait_s
    row = await asked.read(read)
    while row.state == "checking" and (left := end - time.monotonic()) > 0:
        await asked.parts.watcher.wait(row.id, row.state, left)
        row = await asked.read(read)
    if row.state == "rejected":
        raise _rejection(row)
    return row


def _rejection(row: Model | Dataset) -> ApiError:
    problem: dict[str, Any] = row.problem or {}
    more = {key: problem[key] for key in ("hint", "node", "retryable") if problem.get(key) is not None}
    noun = "models" if isinstance(row, Model) else "datasets"
    message, code = problem.get("message"), problem.get("code")
    return ApiError(422, message, code=code, headers={"Location": f"/v1/{noun}/{row.id}"}, id=row.id, **more)
