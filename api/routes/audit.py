"""Who changed what, for keys with the scope `admin`."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.dependencies import AdminReadScope
from api.errors import problems
from api.schemas import AuditView, Cursor, Page, PageSize, page, read_cursor
from services import audit

router = APIRouter(prefix="/v1/audit", tags=["audit"])

Id = Annotated[str | None, Query(max_length=64, pattern="^[0-9A-Za-z_]+$")]


@router.get("", responses=problems(403))
def list_changes(  # noqa: PLR0917 - FastAPI calls it by name
    scope: AdminReadScope,
    subject: Id = None,
    key: Id = None,
    action: Id = None,
    limit: PageSize = 50,
    cursor: Cursor = None,
) -> Page[AuditView]:
    """List what the tenant's keys have made and changed, the newest first."""
    rows = audit.list_changes(
        scope.session,
        scope.tenant_id,
        subject_id=subject,
        key_id=key,
        action=action,
        limit=limit + 1,
        before=read_cursor(cursor),
    )
    return page(AuditView.of, rows, limit)
