"""Runs revisions on the connection that `services.db` hands over, or on the database of the settings."""

from alembic import context
from sqlalchemy import Connection

from models import Base, UtcDateTime
from services.db import Database
from settings import get_settings


def _render(kind: str, item: object, _context: object) -> str | bool:
    # Revisions stay as they are when our own types change: they name the plain SQL type.
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        # SQLite cannot alter a table: a batch makes it anew and copies.
        render_as_batch=True,
        render_item=_render,
        compare_type=True,
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:
    with Database.from_settings(get_settings()).migrating() as own:
        _run(own)
