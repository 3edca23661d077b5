"""Commands about keys: who may do what."""

import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.table import Table

from onnxpress.commands.options import AsJson, Url
from onnxpress.documents import Key
from onnxpress.terminal import give, give_json, people, session, tell
from onnxpress.terminal_text import safe_text

keys = typer.Typer(no_args_is_help=True, help="Make, list and end API keys; needs a key with the scope admin.")
KeyId = Annotated[str, typer.Argument(metavar="KEY", help="Id of the key.", show_default=False)]
Days = Annotated[
    float | None, typer.Option("--days", min=0, metavar="DAYS", help="Its life from now; by default no end.")
]


@keys.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    *,
    scope: Annotated[
        list[str] | None, typer.Option("--scope", metavar="SCOPE", help="read, write, metrics or admin.")
    ] = None,
    days: Days = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Make a key and give its text on stdout, once; by default it may read and write."""
    with session(url, as_json=as_json) as client:
        made = client.keys.create(name, scope or ["write"], expires_at=_end(days))
        tell(f"key {made.id}; it is not shown again")
        if as_json:
            give_json({"key": dict(made.document), "exit_code": 0})
        else:
            give(made.text or "")


@keys.command("list")
def list_keys(*, as_json: AsJson = False, url: Url = None) -> None:
    """List keys, newest first: a table on a terminal, bare ids in a pipe."""
    with session(url, as_json=as_json) as client:
        found = client.keys.list()
        if as_json:
            give_json({"items": [dict(key.document) for key in found]})
        elif sys.stdout.isatty():
            people().print(_table(found))
        else:
            for key in found:
                give(key.id)


@keys.command()
def revoke(key_id: KeyId, *, as_json: AsJson = False, url: Url = None) -> None:
    """End a key at once and for ever."""
    with session(url, as_json=as_json) as client:
        _told(client.keys.revoke(key_id), as_json=as_json)


@keys.command()
def expire(key_id: KeyId, *, days: Days = None, as_json: AsJson = False, url: Url = None) -> None:
    """Set when a key ends: so many days from now, or never."""
    with session(url, as_json=as_json) as client:
        _told(client.keys.expire(key_id, _end(days)), as_json=as_json)


def _told(key: Key, *, as_json: bool) -> None:
    if as_json:
        give_json({"key": dict(key.document), "exit_code": 0})
    else:
        give(key.id)


def _end(days: float | None) -> datetime | None:
    return None if days is None else datetime.now(UTC) + timedelta(days=days)


def _table(found: list[Key]) -> Table:
    table = Table()
    for name in ("key", "name", "scopes", "created", "expires", "revoked"):
        table.add_column(name, no_wrap=name == "key")
    for key in found:
        moments = (key.created_at, key.expires_at, key.revoked_at)
        told = [(moment or "")[:19].replace("T", " ") for moment in moments]
        table.add_row(key.id, safe_text(key.name), " ".join(key.scopes), *told)
    return table
