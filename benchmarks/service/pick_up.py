"""How long units waited between being sent to the broker and being claimed, from the service's own database."""

import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path


def waits(data_dir: Path) -> list[float]:
    """Give the milliseconds of all units that were claimed at the first try."""
    query = "SELECT sent_at, started_at FROM unit WHERE attempt = 1 AND sent_at IS NOT NULL AND started_at IS NOT NULL"
    with closing(sqlite3.connect(f"file:{data_dir / 'onnxpress.db'}?mode=ro", uri=True)) as database:
        rows = database.execute(query).fetchall()
    return [1e3 * (_time(started) - _time(sent)).total_seconds() for sent, started in rows]


def _time(stored: str) -> datetime:
    return datetime.fromisoformat(stored)
