"""Commands about webhooks: who is told when something ends."""

import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.table import Table

from onnxpress.commands.options import AsJson, Url
from onnxpress.documents import Delivery, Webhook
from onnxpress.errors import UsageError
from onnxpress.exit_codes import ExitCode
from onnxpress.terminal import give, give_json, people, session, tell
from onnxpress.terminal_text import safe_text

webhooks = typer.Typer(
    no_args_is_help=True, help="Have events posted to a URL, signed; needs a key with the scope admin."
)
WebhookId = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Id of the webhook.", show_default=False)]
Events = Annotated[
    list[str] | None, typer.Option("--event", metavar="TYPE", help="Such as job.failed; by default everything.")
]


@webhooks.command()
def create(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="Where events are posted to: https://...")],
    *,
    event: Events = None,
    description: Annotated[str, typer.Option(metavar="TEXT", help="For people.")] = "",
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Make a webhook and give its secret on stdout, once."""
    with session(url, as_json=as_json) as client:
        _told_secret(client.webhooks.create(address, events=event or (), description=description), as_json=as_json)


@webhooks.command("list")
def list_webhooks(*, as_json: AsJson = False, url: Url = None) -> None:
    """List webhooks, newest first: a table on a terminal, bare ids in a pipe."""
    with session(url, as_json=as_json) as client:
        found = client.webhooks.list()
        if as_json:
            give_json({"items": [dict(one.document) for one in found]})
        elif sys.stdout.isatty():
            people().print(_table(found))
        else:
            for one in found:
                give(one.id)


@webhooks.command()
def change(
    webhook_id: WebhookId,
    *,
    address: Annotated[str | None, typer.Option(metavar="URL", help="Where events are posted to.")] = None,
    event: Events = None,
    enable: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Send again what waits and comes, or nothing more.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Change what is named of a webhook, or switch it off or on."""
    with session(url, as_json=as_json) as client:
        if address is None and event is None and enable is None:
            raise UsageError("name what is to change: --address, --event, --enable or --disable")
        made = client.webhooks.change(webhook_id, url=address, events=event, enabled=enable)
        if as_json:
            give_json({"webhook": dict(made.document), "exit_code": 0})
        else:
            give(made.id)


@webhooks.command()
def rotate(webhook_id: WebhookId, *, as_json: AsJson = False, url: Url = None) -> None:
    """Give a webhook a new secret, on stdout, once; for a day the one before signs too."""
    with session(url, as_json=as_json) as client:
        _told_secret(client.webhooks.rotate(webhook_id), as_json=as_json)


@webhooks.command()
def delete(webhook_id: WebhookId, *, url: Url = None) -> None:
    """Remove a webhook, what waits for it and what is known of what was sent."""
    with session(url) as client:
        client.webhooks.delete(webhook_id)


@webhooks.command()
def ping(webhook_id: WebhookId, *, as_json: AsJson = False, url: Url = None) -> None:
    """Have a message sent that says nothing, and say whether it arrived; exit code 4 where it did not."""
    with session(url, as_json=as_json) as client:
        sent = client.webhooks.ping(webhook_id)
        code = ExitCode.OK if sent.status == "delivered" else ExitCode.JOB_FAILED
        tell(f"{sent.id}: {sent.result}", "" if code is ExitCode.OK else "red")
        if as_json:
            give_json({"delivery": dict(sent.document), "exit_code": int(code)})
        if code is not ExitCode.OK:
            raise typer.Exit(code)


@webhooks.command()
def deliveries(
    webhook_id: WebhookId,
    *,
    status: Annotated[
        str | None, typer.Option(metavar="STATE", help="Only those that are pending, delivered or failed.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List what was sent to a webhook and will be, newest first."""
    with session(url, as_json=as_json) as client:
        found = list(client.webhooks.deliveries(webhook_id, status=status, limit=limit))
        if as_json:
            give_json({"items": [dict(one.document) for one in found]})
        elif sys.stdout.isatty():
            people().print(_deliveries_table(found))
        else:
            for one in found:
                give(one.id)


@webhooks.command()
def replay(
    webhook_id: WebhookId,
    delivery: Annotated[str | None, typer.Argument(metavar="[DELIVERY]", help="One, arrived or given up.")] = None,
    *,
    hours: Annotated[
        float | None, typer.Option(min=0, metavar="N", help="All that was given up of the last so many hours.")
    ] = None,
    url: Url = None,
) -> None:
    """Send again: one delivery, or all that was given up for a time."""
    with session(url) as client:
        if (delivery is None) == (hours is None):
            raise UsageError("name one delivery, or --hours")
        if delivery is not None:
            give(client.webhooks.replay(webhook_id, delivery).id)
        elif hours is not None:
            number = client.webhooks.replay_failed(webhook_id, datetime.now(UTC) - timedelta(hours=hours))
            tell(f"{number} deliveries are sent again")


def _told_secret(made: Webhook, *, as_json: bool) -> None:
    tell(f"webhook {made.id}; its secret is not shown again")
    if as_json:
        give_json({"webhook": {**made.document, "secret": made.secret}, "exit_code": 0})
    else:
        give(made.secret or "")


def _table(found: list[Webhook]) -> Table:
    table = Table()
    for name in ("webhook", "address", "events", "state"):
        table.add_column(name, no_wrap=name == "webhook")
    for one in found:
        state = "on" if one.enabled else f"off ({one.disabled_by})"
        table.add_row(one.id, safe_text(one.url), " ".join(one.events) or "all", state)
    return table


def _deliveries_table(found: list[Delivery]) -> Table:
    table = Table()
    for name in ("delivery", "type", "about", "state", "attempts", "last", "created"):
        table.add_column(name, no_wrap=name == "delivery")
    for one in found:
        moment = one.created_at[:19].replace("T", " ")
        table.add_row(one.id, one.type, one.subject or "", one.status, str(len(one.attempts)), one.result, moment)
    return table
