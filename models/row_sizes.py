"""What rows take of a tenant's quota: their own texts, beside the bytes that they name."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import JSON, BigInteger, event, inspect
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Mapped, Mapper, mapped_column

# Of its other columns and its places in indices.
ROW_BYTES = 1024
# The same of what belongs to it: an event, and what is sent to a webhook with its attempts.
EVENT_BYTES, DELIVERY_BYTES = 256, 2048
# It changes each second, and is small.
_NOT_COUNTED = frozenset({"progress"})


class Weighed:
    """A row that says how many bytes it takes with what belongs to it; 0 where a process of the version before wrote it."""

    row_bytes: Mapped[int] = mapped_column(BigInteger, default=ROW_BYTES, server_default="0")

    def add_bytes(self, count: int) -> None:
        """Count what belongs to it, until it is removed."""
        self.row_bytes = (self.row_bytes or ROW_BYTES) + count


def text_bytes(value: Any) -> int:
    """Give what a value of a JSON column takes."""
    return len(json.dumps(value))


@event.listens_for(Weighed, "before_insert", propagate=True)
@event.listens_for(Weighed, "before_update", propagate=True)
def _weigh(mapper: Mapper[Any], _connection: Connection, row: Any) -> None:
    seen = inspect(row)
    columns = [
        attribute.key
        for attribute in mapper.column_attrs
        if isinstance(attribute.columns[0].type, JSON) and attribute.key not in _NOT_COUNTED
    ]
    if seen.pending:
        row.add_bytes(sum(text_bytes(row.__dict__.get(name)) for name in columns))
        return
    changes = [seen.attrs[name].history for name in columns]
    more = sum(_sizes(change.added) - _sizes(change.deleted) for change in changes if change.has_changes())
    if more:
        row.add_bytes(more)


def _sizes(values: Sequence[Any]) -> int:
    return sum(map(text_bytes, values))
