"""Commands about aliases: which network is in production, since when, and the way back."""

import sys
from typing import Annotated

import typer
from rich.table import Table

from onnxpress.aliases import Alias
from onnxpress.commands.options import AsJson, Url
from onnxpress.terminal import give, give_json, people, session, tell
from onnxpress.terminal_text import safe_text

alias = typer.Typer(
    no_args_is_help=True,
    help="Name networks, such as `production`, and go back; @NAME stands for the network everywhere.",
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The alias, without its @.", show_default=False)]
Note = Annotated[str | None, typer.Option("--note", metavar="TEXT", help="Why, for the history.")]


@alias.command("list")
def list_aliases(*, as_json: AsJson = False, url: Url = None) -> None:
    """List aliases and the networks that have them: a table on a terminal, bare names in a pipe."""
    with session(url, as_json=as_json) as client:
        found = client.aliases.list()
        if as_json:
            give_json({"items": [dict(one.document) for one in found]})
        elif sys.stdout.isatty():
            table = _table("alias", "model", "since")
            for one in found:
                table.add_row(safe_text(one.name), one.model, _moment(one.moved_at))
            people().print(table)
        else:
            for one in found:
                give(one.name)


@alias.command()
def history(name: Name, *, as_json: AsJson = False, url: Url = None) -> None:
    """Show the last moves of an alias; on stdout the id of the network that has it."""
    with session(url, as_json=as_json) as client:
        found = client.aliases.get(name.removeprefix("@"))
        if not as_json:
            table = _table("at", "model", "why", "by")
            for move in found.history:
                why = " ".join(word for word in ("went back" if move.rollback else "", move.note) if word)
                table.add_row(_moment(move.at), move.model or "taken away", safe_text(why), move.key or "")
            people().print(table)
        _told(found, as_json=as_json)


@alias.command("set")
def set_alias(
    name: Name,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A stored model: its id, @ALIAS or NAME@VERSION.", show_default=False)
    ],
    *,
    note: Note = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Have an alias name a network, whichever had it before."""
    with session(url, as_json=as_json) as client:
        _told(client.aliases.move(name.removeprefix("@"), model, note=note), as_json=as_json)


@alias.command()
def rollback(name: Name, *, note: Note = None, as_json: AsJson = False, url: Url = None) -> None:
    """Have an alias name the network that had it before; again, the one before that."""
    with session(url, as_json=as_json) as client:
        known = client.aliases.get(name.removeprefix("@"))
        # Twice at once is one step back.
        found = client.aliases.roll_back(known.name, expected=known.model, note=note)
        tell(f"@{found.name} names {found.model} again, instead of {known.model}")
        _told(found, as_json=as_json)


@alias.command()
def remove(name: Name, *, url: Url = None) -> None:
    """Have an alias name nothing; its history stays."""
    with session(url) as client:
        client.aliases.remove(name.removeprefix("@"))
        tell(f"@{name.removeprefix('@')} names nothing now")


def _told(found: Alias, *, as_json: bool) -> None:
    if as_json:
        give_json({"alias": dict(found.document), "exit_code": 0})
    else:
        give(found.model)


def _table(*columns: str) -> Table:
    """Give a table that shows ids whole, for they are copied; other words go on in the next line."""
    table = Table()
    for column in columns:
        table.add_column(column, no_wrap=column == "model", overflow="fold")
    return table


def _moment(text: str) -> str:
    return text[:19].replace("T", " ")
