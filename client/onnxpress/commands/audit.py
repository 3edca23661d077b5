"""`onnxpress audit`: who changed what."""

from typing import Annotated

import typer

from onnxpress.commands.options import AsJson, Url
from onnxpress.terminal import give, give_json, session


def audit(
    *,
    subject: Annotated[
        str | None, typer.Option(metavar="ID", help="Only about this model, dataset, job or key.")
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="ID", help="Only by this key.")] = None,
    action: Annotated[str | None, typer.Option(metavar="NAME", help="Only this operation, such as create_job.")] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Only so many, the newest.")] = 50,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List what was made and changed, newest first, a line for each: when, which key, what it did, to what."""
    with session(url, as_json=as_json) as client:
        found = list(client.audit(subject=subject, key=key, action=action, limit=limit))
        if as_json:
            give_json({"items": [dict(change.document) for change in found]})
            return
        for change in found:
            give(f"{change.at} {change.key} {change.action} {change.subject or '-'}")
