"""Who may do what: keys, for keys with the scope `admin`."""

from fastapi import APIRouter, Response

from api.dependencies import AdminReadScope, AdminWriteScope
from api.errors import ApiError, problems
from api.json_body import JSON_BODY
from api.schemas import IdempotencyKey, KeyChanges, KeyList, KeyView, NewKeyBody, NewKeyView
from services import keys

router = APIRouter(prefix="/v1/keys", tags=["keys"])


@router.post("", status_code=201, dependencies=JSON_BODY, responses=problems(403, 408, 409, 413, 415))
def create_key(
    body: NewKeyBody, response: Response, scope: AdminWriteScope, idempotency_key: IdempotencyKey = None
) -> NewKeyView:
    """Make a key of your own tenant. Its text is in this answer and nowhere else."""
    if "operator" in body.scopes and "operator" not in scope.caller.scopes:
        raise ApiError(403, "Only a key with the scope `operator` makes another one.")
    new = keys.create_once(
        scope.session,
        scope.tenant_id,
        body.name,
        tuple(dict.fromkeys(body.scopes)),
        expires_at=body.expires_at,
        idempotency_key=idempotency_key,
    )
    scope.subject = new.row.id
    response.headers["Location"] = f"/v1/keys/{new.row.id}"
    return NewKeyView(**KeyView.of(new.row).model_dump(), key=new.text)


@router.get("", responses=problems(403))
def list_keys(scope: AdminReadScope) -> KeyList:
    """List the tenant's keys, the newest first."""
    return KeyList(items=[KeyView.of(row) for row in keys.list_keys(scope.session, scope.tenant_id)])


@router.get("/{key_id}", responses=problems(403, 404))
def get_key(key_id: str, scope: AdminReadScope) -> KeyView:
    """Give one key."""
    return KeyView.of(keys.get_key(scope.session, scope.tenant_id, key_id))


@router.patch("/{key_id}", dependencies=JSON_BODY, responses=problems(403, 404, 408, 413, 415))
def change_key(key_id: str, body: KeyChanges, scope: AdminWriteScope) -> KeyView:
    """Set when a key expires; a revoked one stays revoked."""
    return KeyView.of(keys.expire(scope.session, scope.tenant_id, key_id, body.expires_at))


@router.delete("/{key_id}", responses=problems(403, 404))
def revoke_key(key_id: str, scope: AdminWriteScope) -> KeyView:
    """End a key's validity at once and for ever."""
    return KeyView.of(keys.revoke(scope.session, scope.tenant_id, key_id))
