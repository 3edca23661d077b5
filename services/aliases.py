"""Aliases: names that one network has at a time, with the moves that one can go back on."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, exists, func, select
from sqlalchemy.orm import Session

from models import Alias, AliasMove, Model, ModelState, new_id
from services import artifacts, db
from services.errors import ConflictError, NotFoundError
from services.transitions import record
from services.webhooks import deliveries

# Of each alias. Their networks are kept.
REMEMBERED_MOVES = 20
# Of a tenant: lists show all that there are, and a network all of its own. Of as many that were taken away the moves are remembered.
MOST = 1000


@dataclass(frozen=True)
class Mover:
    """Who moves an alias, and what is to be said of it."""

    key_id: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Expected:
    """Which network has to have the alias for the move to be made: `None` is none at all."""

    model_id: str | None


def list_aliases(session: Session, tenant_id: str) -> Sequence[Alias]:
    """Give the tenant's aliases by name."""
    return session.scalars(select(Alias).where(Alias.tenant_id == tenant_id).order_by(Alias.name)).all()


def get(session: Session, tenant_id: str, name: str) -> Alias:
    """Give an alias; raises NotFoundError."""
    found = session.get(Alias, (tenant_id, name), populate_existing=True)
    if found is None:
        raise NotFoundError(f"No model has the alias {name}.")
    return found


def history(session: Session, tenant_id: str, name: str) -> Sequence[AliasMove]:
    """Give the moves of an alias that are remembered, the newest first."""
    asked = select(AliasMove).where(AliasMove.tenant_id == tenant_id, AliasMove.alias == name)
    return session.scalars(asked.order_by(AliasMove.id.desc())).all()


def move(
    session: Session,
    tenant_id: str,
    name: str,
    model_id: str,
    *,
    mover: Mover = Mover(),
    expected: Expected | None = None,
) -> Alias:
    """Have an alias name a network that is ready; whichever had it has it no more.

    Raises NotFoundError, and ConflictError where the network is not ready, the alias is not where it is expected, or there are as
    many as a tenant may have.
    """
    _lock(session, tenant_id, name)
    model = artifacts.get_model(session, tenant_id, model_id)
    session.refresh(model, with_for_update=True)
    if model.in_state is not ModelState.READY:
        raise ConflictError(f"The model is {model.state}; only a ready one gets an alias.", code="model_not_ready")
    holder = session.get(Alias, (tenant_id, name), populate_existing=True)
    if expected is not None:
        _check(name, holder, expected)
    return _give(session, name, holder, model, mover, is_rollback=False)


def roll_back(
    session: Session,
    tenant_id: str,
    name: str,
    *,
    mover: Mover = Mover(),
    expected: Expected | None = None,
) -> Alias:
    """Have an alias name the network that had it before; again, the one before that.

    Raises NotFoundError, and ConflictError where there was none before that still is there.
    """
    _lock(session, tenant_id, name)
    holder = get(session, tenant_id, name)
    if expected is not None:
        _check(name, holder, expected)
    earlier = _earlier(list(history(session, tenant_id, name)), holder.model_id)
    for model_id in earlier:
        model = session.get_one(Model, model_id)
        session.refresh(model, with_for_update=True)
        if model.in_state is ModelState.READY:
            return _give(session, name, holder, model, mover, is_rollback=True)
    raise ConflictError(
        f"The alias {name} has named no other model before that is still there.",
        code="no_earlier_model",
        hint=f"The last {REMEMBERED_MOVES} moves are remembered; move the alias to a model by its id.",
    )


def take_away(session: Session, tenant_id: str, name: str, *, mover: Mover = Mover()) -> None:
    """Have an alias name nothing; raises NotFoundError."""
    _lock(session, tenant_id, name)
    holder = get(session, tenant_id, name)
    model = session.get_one(Model, holder.model_id)
    session.delete(holder)
    _remember(session, model, name, None, mover, is_rollback=False)
    _describe(session, model)
    _forget(session, tenant_id)


def take_all(session: Session, model: Model, *, mover: Mover = Mover()) -> None:
    """Take all its aliases from a network."""
    for name in session.scalars(select(Alias.name).where(Alias.model_id == model.id).order_by(Alias.name)).all():
        take_away(session, model.tenant_id, name, mover=mover)


def _lock(session: Session, tenant_id: str, name: str) -> None:
    db.lock(session, f"alias {tenant_id} {name}")


def _check(name: str, holder: Alias | None, expected: Expected) -> None:
    there = None if holder is None else holder.model_id
    if there != expected.model_id:
        raise ConflictError(
            f"The alias {name} names {there or 'no model'} by now, not {expected.model_id or 'none'}.",
            code="alias_moved",
            hint="Somebody moved it meanwhile: compare with what it names now, and ask again.",
        )


def _check_number(session: Session, tenant_id: str) -> None:
    number = session.scalar(select(func.count()).select_from(Alias).where(Alias.tenant_id == tenant_id)) or 0
    if number >= MOST:
        raise ConflictError(
            f"The tenant has {number} aliases, which is the most.",
            code="too_many_aliases",
            hint="Delete one that is not needed.",
        )


def _earlier(moves: Sequence[AliasMove], current: str) -> list[str]:
    """Give the networks that one goes back to, the nearest first: each step back undoes the move before it."""
    held: list[str] = []
    for one in reversed(moves):
        if one.is_rollback and one.model_id in held:
            del held[held.index(one.model_id) + 1 :]
        elif one.model_id is not None:
            held = [*(each for each in held if each != one.model_id), one.model_id]
    return [each for each in reversed(held) if each != current]


def _give(session: Session, name: str, holder: Alias | None, model: Model, mover: Mover, *, is_rollback: bool) -> Alias:
    moment = db.now(session)
    former = None if holder is None else session.get_one(Model, holder.model_id)
    if holder is None:
        _check_number(session, model.tenant_id)
        holder = Alias(tenant_id=model.tenant_id, name=name, model_id=model.id, moved_at=moment)
        session.add(holder)
    elif former is model:
        return holder
    holder.model_id, holder.moved_at = model.id, moment
    _remember(session, model, name, model.id, mover, is_rollback=is_rollback)
    # The one that loses it first: processes of the version before know one network by one alias.
    for each in (former, model):
        if each is not None:
            _describe(session, each)
    return holder


def _describe(session: Session, model: Model) -> None:
    session.flush()
    session.expire(model, ["aliases"])
    model.alias = model.aliases[0].name if model.aliases else None
    record(session, model, "changed")
    session.flush()


def _remember(
    session: Session, model: Model, name: str, model_id: str | None, mover: Mover, *, is_rollback: bool
) -> None:
    row = AliasMove(
        id=new_id("alm"),
        tenant_id=model.tenant_id,
        alias=name,
        model_id=model_id,
        is_rollback=is_rollback,
        key_id=mover.key_id,
        note=mover.note,
        created_at=db.now(session),
    )
    session.add(row)
    session.flush()
    deliveries.announce_move(session, model.tenant_id, name, model_id, is_rollback=is_rollback)
    old = [one.id for one in history(session, model.tenant_id, name)[REMEMBERED_MOVES:]]
    if old:
        session.execute(delete(AliasMove).where(AliasMove.id.in_(old)))


def _forget(session: Session, tenant_id: str) -> None:
    """Forget the moves of names that no network has any more, but for those that were moved last."""
    is_there = exists().where(Alias.tenant_id == AliasMove.tenant_id, Alias.name == AliasMove.alias)
    gone = select(AliasMove.alias).where(AliasMove.tenant_id == tenant_id, ~is_there).group_by(AliasMove.alias)
    old = session.scalars(gone.order_by(func.max(AliasMove.id).desc()).offset(MOST)).all()
    if old:
        session.execute(delete(AliasMove).where(AliasMove.tenant_id == tenant_id, AliasMove.alias.in_(old)))
