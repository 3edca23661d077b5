"""What rows take of a tenant's quota: their own texts, beside the bytes that they name."""

import json
from typing import Any

from sqlalchemy import JSON, BigInteger, event, inspect
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Mapped, Mapper, mapped_column

# Of its other columns, its places in indices, its events and what was asked to make it.
ROW_BYTES = 1024
# It changes each second, and is small.
_NOT_COUNTED = frozenset({"progress"})


class Weighed:
    """A row that says how many bytes it takes; 0 where a process of the version before wrote it."""

    row_bytes: Mapped[int] = mapped_column(BigInteger, default=ROW_BYTES, server_default="0")


@event.listens_for(Weighed, "before_insert", propagate=True)
@event.listens_for(Weighed, "before_update", propagate=True)
def _weigh(mapper: Mapper[Any], _connection: Connection, row: Any) -> None:
    columns = [
        attribute.key
        for attribute in mapper.column_attrs
        if isinstance(attribute.columns[0].type, JSON) and attribute.key not in _NOT_COUNTED
    ]
    seen = inspect(row)
    # What is not loaded has not changed, and what it took is not known.
    is_known = not set(columns) & seen.unloaded
    if seen.pending or (is_known and any(seen.attrs[name].history.has_changes() for name in columns)):
        row.row_bytes = ROW_BYTES + sum(len(json.dumps(row.__dict__.get(name))) for name in columns)
