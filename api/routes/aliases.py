"""Aliases: names that one network has at a time, their history, and the way back."""

from fastapi import APIRouter

from api.dependencies import ReadScope, TenantScope, WriteScope
from api.errors import problems
from api.json_body import JSON_BODY
from api.schemas import (
    AliasHistoryView,
    AliasList,
    AliasMoveView,
    AliasName,
    AliasRollback,
    AliasTarget,
    AliasView,
)
from services import aliases

router = APIRouter(prefix="/v1/aliases", tags=["aliases"])


@router.get("", responses=problems(403))
def list_aliases(scope: ReadScope) -> AliasList:
    """List every alias with the network that has it."""
    return AliasList(items=[AliasView.of(row) for row in aliases.list_aliases(scope.session, scope.tenant_id)])


@router.get("/{name}", responses=problems(403, 404))
def get_alias(name: AliasName, scope: ReadScope) -> AliasHistoryView:
    """Give one alias with its last moves."""
    return _view(scope, name)


@router.put("/{name}", dependencies=JSON_BODY, responses=problems(403, 404, 408, 409, 413, 415))
def move_alias(name: AliasName, body: AliasTarget, scope: WriteScope) -> AliasHistoryView:
    """Have an alias name a network; with `expected` only where nobody moved it meanwhile."""
    scope.check_room()
    mover = aliases.Mover(scope.caller.key_id, body.note)
    aliases.move(scope.session, scope.tenant_id, name, body.model, mover=mover, expected=body.expects())
    return _view(scope, name)


@router.post("/{name}:rollback", dependencies=JSON_BODY, responses=problems(403, 404, 408, 409, 413, 415))
def roll_alias_back(name: AliasName, body: AliasRollback, scope: WriteScope) -> AliasHistoryView:
    """Have an alias name the network that had it before; again, the one before that."""
    scope.check_room()
    mover = aliases.Mover(scope.caller.key_id, body.note)
    aliases.roll_back(scope.session, scope.tenant_id, name, mover=mover, expected=body.expects())
    return _view(scope, name)


@router.delete("/{name}", status_code=204, responses=problems(403, 404))
def delete_alias(name: AliasName, scope: WriteScope) -> None:
    """Have an alias name nothing; its history stays."""
    aliases.take_away(scope.session, scope.tenant_id, name, mover=aliases.Mover(scope.caller.key_id))


def _view(scope: TenantScope, name: str) -> AliasHistoryView:
    found = AliasView.of(aliases.get(scope.session, scope.tenant_id, name))
    moves = aliases.history(scope.session, scope.tenant_id, name)
    return AliasHistoryView(**found.model_dump(), history=[AliasMoveView.of(row) for row in moves])
