"""Uploads that are answered once they have been inspected."""

import time
from collections.abc import Callable
from typing import TypeVar

from api.dependencies import RequestContext, TenantScope
from api.errors import ApiError
from api.schemas import DatasetView, ModelView

Upload = TypeVar("Upload", ModelView, DatasetView)


async def wait_for_inspection(context: RequestContext, read: Callable[[TenantScope], Upload], wait_s: float) -> Upload:
    """Give the upload as soon as it is ready, or as it is after `wait_s`; raises 422 where it was rejected."""
    end = time.monotonic() + wait_s
    shown = await context.read(read)
    watcher = context.resources.watcher
    while shown.state == "checking" and not watcher.closed and (left := end - time.monotonic()) > 0:
        await watcher.wait(shown.id, shown.state, left)
        shown = await context.read(read)
    if shown.problem is not None:
        raise _rejection(shown)
    return shown


def _rejection(shown: ModelView | DatasetView) -> ApiError:
    assert shown.problem is not None
    more = shown.problem.model_dump(include={"hint", "node", "retryable"}, exclude_none=True)
    noun = "models" if isinstance(shown, ModelView) else "datasets"
    location = {"Location": f"/v1/{noun}/{shown.id}"}
    return ApiError(422, shown.problem.message, code=shown.problem.code, headers=location, id=shown.id, **more)
