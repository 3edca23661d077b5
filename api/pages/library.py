"""Networks and datasets: what there is, what each one is, where it comes from, what its graph looks like."""

from fastapi import APIRouter, Request, Response

import models
from api.dependencies import ReadScope
from api.pages.jobs import may_write
from api.pages.lineage_view import lineage_rows
from api.pages.rendering import render
from api.schemas import Cursor, next_cursor, read_cursor
from services import analyses, artifacts, catalog, jobs
from services.errors import ConflictError, RejectedError

router = APIRouter(include_in_schema=False)

_PAGE = 50


@router.get("/models")
def models_page(request: Request, scope: ReadScope, cursor: Cursor = None) -> Response:
    """List networks and datasets, the newest first."""
    session, tenant_id = scope.session, scope.tenant_id
    rows = artifacts.list_models(session, tenant_id, limit=_PAGE + 1, before=read_cursor(cursor), whole=True)
    values = {
        "rows": rows[:_PAGE],
        "next_cursor": next_cursor(rows, _PAGE),
        "datasets": artifacts.list_datasets(session, tenant_id, limit=_PAGE, whole=True) if cursor is None else [],
        "may_write": may_write(scope),
    }
    return render(request, "models.html", values)


@router.get("/models/{model_id}")
def model_page(request: Request, model_id: str, scope: ReadScope) -> Response:
    """Show a network: inputs and outputs, operators, lineage, what could be pruned."""
    session, tenant_id = scope.session, scope.tenant_id
    model = artifacts.get_model(session, tenant_id, model_id)
    found = catalog.lineage(session, tenant_id, model_id)
    ops = sorted(((model.inspection or {}).get("ops") or {}).items(), key=lambda each: (-each[1], each[0]))
    values = {
        "model": model,
        "inspection": model.inspection,
        "ops": ops,
        "most": max((count for _, count in ops), default=1),
        "lineage": lineage_rows(model, found),
        "complete": found.complete,
        "made_by": None if model.job_id is None else jobs.get(session, tenant_id, model.job_id),
        "analysis": _analysis(scope, model_id) if model.in_state is models.ModelState.READY else None,
        "may_write": may_write(scope),
    }
    return render(request, "model.html", values)


def _analysis(scope: ReadScope, model_id: str) -> analyses.Analysis | None:
    try:
        return analyses.find(scope.session, scope.tenant_id, model_id)
    except (ConflictError, RejectedError):
        return None


@router.get("/models/{model_id}/graph")
def graph_page(request: Request, model_id: str, scope: ReadScope, beside: str = "") -> Response:
    """Show a network's graph, or what is other in it than in another network's."""
    session, tenant_id = scope.session, scope.tenant_id
    model = artifacts.get_model(session, tenant_id, model_id)
    other = artifacts.get_model(session, tenant_id, beside) if beside else None
    return render(request, "graph.html", {"model": model, "other": other, "parent": model.parent_id})
