"""What the service has: targets and workers, and who may do what."""

from fastapi import APIRouter, Request, Response

from api.dependencies import AdminReadScope, ReadScope
from api.pages.rendering import render
from services import keys, workers
from services.scopes import SCOPES

router = APIRouter(include_in_schema=False)


@router.get("/targets")
def targets_page(request: Request, scope: ReadScope) -> Response:
    """Show what jobs can run on, what does not run and why, and the workers."""
    session = scope.session
    values = {
        "targets": workers.targets(session),
        "unavailable": workers.unavailable(session),
        "workers": workers.listed(session),
    }
    return render(request, "targets.html", values)


@router.get("/keys")
def keys_page(request: Request, scope: AdminReadScope) -> Response:
    """Show the keys, and offer a new one."""
    rows = keys.list_keys(scope.session, scope.tenant_id)
    return render(request, "keys.html", {"rows": rows, "scopes": SCOPES, "own": scope.caller.key_id})
