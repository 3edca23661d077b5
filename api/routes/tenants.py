"""Who has objects here and how much they may have: for keys with the scope `operator`, and one's own for everybody."""

from typing import Annotated

from fastapi import APIRouter, Path, Response

from api.dependencies import OperatorReadScope, OperatorWriteScope, ReadScope, TenantScope
from api.errors import problems
from api.json_body import JSON_BODY
from api.schemas import KeyView, NewKeyBody, NewKeyView
from api.tenant_schemas import NewTenantBody, TenantChanges, TenantList, TenantUsageView, TenantView
from services import keys, quotas, tenants

router = APIRouter(tags=["tenants"])
_Id = Annotated[str, Path(max_length=200)]


@router.get("/v1/tenant", responses=problems(403))
def get_own_tenant(scope: ReadScope) -> TenantUsageView:
    """Give your own tenant: what it may have, and what it has of it."""
    return _with_usage(scope, scope.tenant_id)


@router.get("/v1/tenants", responses=problems(403))
def list_tenants(scope: OperatorReadScope) -> TenantList:
    """List every tenant with its own limits, by id."""
    return TenantList(items=[TenantView.of(row) for row in tenants.list_tenants(scope.session)])


@router.post("/v1/tenants", status_code=201, dependencies=JSON_BODY, responses=problems(403, 408, 409, 413, 415))
def create_tenant(body: NewTenantBody, response: Response, scope: OperatorWriteScope) -> TenantView:
    """Make a tenant, with limits of its own where they are given; 409 where there is one of that id."""
    made = tenants.create(scope.session, body.id, name=body.name, limits=body.limits())
    scope.subject = made.id
    response.headers["Location"] = f"/v1/tenants/{made.id}"
    return TenantView.of(made)


@router.get("/v1/tenants/{tenant_id}", responses=problems(403, 404))
def get_tenant(tenant_id: _Id, scope: OperatorReadScope) -> TenantUsageView:
    """Give one tenant: what it may have, and what it has of it."""
    return _with_usage(scope, tenant_id)


@router.patch("/v1/tenants/{tenant_id}", dependencies=JSON_BODY, responses=problems(403, 404, 408, 413, 415))
def change_tenant(tenant_id: _Id, body: TenantChanges, scope: OperatorWriteScope) -> TenantUsageView:
    """Change a tenant's name or limits, or suspend it; a limit of null is the service's again."""
    tenants.change(scope.session, tenant_id, name=body.name, limits=body.limits(), suspended=body.suspended)
    return _with_usage(scope, tenant_id)


@router.post(
    "/v1/tenants/{tenant_id}/keys",
    status_code=201,
    dependencies=JSON_BODY,
    responses=problems(403, 404, 408, 409, 413, 415),
)
def create_tenant_key(tenant_id: _Id, body: NewKeyBody, scope: OperatorWriteScope) -> NewKeyView:
    """Make a key of any tenant: its first one, mostly. Its text is in this answer and nowhere else."""
    tenants.get(scope.session, tenant_id)
    new = keys.create(scope.session, tenant_id, body.name, tuple(dict.fromkeys(body.scopes)), body.expires_at)
    scope.subject = new.row.id
    return NewKeyView(**KeyView.of(new.row).model_dump(), key=new.text)


def _with_usage(scope: TenantScope, tenant_id: str) -> TenantUsageView:
    row, settings = tenants.get(scope.session, tenant_id), scope.resources.settings
    return TenantUsageView.with_usage(row, quotas.usage(scope.session, row.id, settings), settings)
