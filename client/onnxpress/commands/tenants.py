"""Commands about tenants: who has objects here, how much they may have and what they have of it."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.table import Table

from onnxpress.commands.options import AsJson, Url
from onnxpress.errors import UsageError
from onnxpress.quantities import parse_bytes, parse_number, parse_seconds
from onnxpress.tenants import Tenant
from onnxpress.terminal import give, give_json, people, session, tell
from onnxpress.terminal_text import safe_text
from onnxpress.wording import size

tenants = typer.Typer(no_args_is_help=True, help="Make, list and limit tenants; needs a key with the scope operator.")
TenantId = Annotated[
    str, typer.Argument(metavar="TENANT", help="Id: small letters, digits, - and _.", show_default=False)
]
Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="For people; by default the id.")]
_OWN = "`default`: the service's, 0: none."
QuotaBytes = Annotated[
    str | None, typer.Option("--quota-bytes", metavar="SIZE", help=f"Most that it may store, such as 50GB; {_OWN}")
]
QuotaJobs = Annotated[str | None, typer.Option("--quota-jobs", metavar="N", help=f"Most unfinished jobs; {_OWN}")]
QuotaCpu = Annotated[
    str | None,
    typer.Option(
        "--quota-cpu", metavar="TIME", help=f"Most processor time in the service's window, such as 10h; {_OWN}"
    ),
]
Rate = Annotated[
    str | None, typer.Option("--rate", metavar="N", help=f"Requests per second of all its keys together; {_OWN}")
]
Burst = Annotated[str | None, typer.Option("--burst", metavar="N", help="Requests of all its keys at once.")]


@tenants.command("list")
def list_tenants(*, as_json: AsJson = False, url: Url = None) -> None:
    """List tenants with the limits of their own: a table on a terminal, bare ids in a pipe."""
    with session(url, as_json=as_json) as client:
        found = client.tenants.list()
        if as_json:
            give_json({"items": [dict(one.document) for one in found]})
        elif sys.stdout.isatty():
            people().print(_table(found))
        else:
            for one in found:
                give(one.id)


@tenants.command()
def show(
    tenant: Annotated[
        str | None, typer.Argument(metavar="[TENANT]", help="By default your own, which any key may see.")
    ] = None,
    *,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Show what a tenant may have, and what it has of it."""
    with session(url, as_json=as_json) as client:
        _told(client.tenants.own() if tenant is None else client.tenants.get(tenant), as_json=as_json)


@tenants.command()
def create(
    tenant: TenantId,
    *,
    name: Name = None,
    quota_bytes: QuotaBytes = None,
    quota_jobs: QuotaJobs = None,
    quota_cpu: QuotaCpu = None,
    rate: Rate = None,
    burst: Burst = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Make a tenant; `onnxpress tenants key` makes its first key."""
    with session(url, as_json=as_json) as client:
        limits = _limits(quota_bytes, quota_jobs, quota_cpu, rate, burst)
        _told(client.tenants.create(tenant, name=name, limits=limits), as_json=as_json)


@tenants.command("set")
def set_tenant(
    tenant: TenantId,
    *,
    name: Name = None,
    quota_bytes: QuotaBytes = None,
    quota_jobs: QuotaJobs = None,
    quota_cpu: QuotaCpu = None,
    rate: Rate = None,
    burst: Burst = None,
    suspended: Annotated[
        bool | None,
        typer.Option("--suspend/--resume", help="Its keys open nothing; its jobs go on.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Change what is named of a tenant."""
    with session(url, as_json=as_json) as client:
        limits = _limits(quota_bytes, quota_jobs, quota_cpu, rate, burst)
        _told(client.tenants.change(tenant, name=name, limits=limits, suspended=suspended), as_json=as_json)


@tenants.command("key")
def create_key(
    tenant: TenantId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    *,
    scope: Annotated[
        list[str] | None, typer.Option("--scope", metavar="SCOPE", help="read, write, metrics, admin or operator.")
    ] = None,
    days: Annotated[
        float | None, typer.Option("--days", min=0, metavar="DAYS", help="Its life from now; by default no end.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Make a key of a tenant and give its text on stdout, once; by default it may read and write."""
    with session(url, as_json=as_json) as client:
        end = None if days is None else datetime.now(UTC) + timedelta(days=days)
        made = client.tenants.create_key(tenant, name, scope or ["write"], expires_at=end)
        tell(f"key {made.id} of {tenant}; it is not shown again")
        if as_json:
            give_json({"key": dict(made.document), "exit_code": 0})
        else:
            give(made.text or "")


def _limits(
    quota_bytes: str | None, quota_jobs: str | None, quota_cpu: str | None, rate: str | None, burst: str | None
) -> dict[str, float | None]:
    """Give the limits that were named; `default` is None."""
    told: dict[str, tuple[str | None, str, Callable[[str, str], float]]] = {
        "quota_bytes": (quota_bytes, "--quota-bytes", _whole_bytes),
        "quota_jobs": (quota_jobs, "--quota-jobs", _whole),
        "quota_cpu_s": (quota_cpu, "--quota-cpu", _seconds),
        "rate_per_s": (rate, "--rate", parse_number),
        "rate_burst": (burst, "--burst", _whole),
    }
    return {
        limit: None if text == "default" else read(text, f"{option} {text}")
        for limit, (text, option, read) in told.items()
        if text is not None
    }


def _whole_bytes(text: str, context: str) -> int:
    return int(parse_bytes(text, context))


def _seconds(text: str, context: str) -> float:
    return 0.0 if text == "0" else parse_seconds(text, context)


def _whole(text: str, context: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"{context!r}: {text!r} is no whole number")
    return int(text)


def _told(tenant: Tenant, *, as_json: bool) -> None:
    if as_json:
        give_json({"tenant": dict(tenant.document), "exit_code": 0})
        return
    if tenant.suspended_at is not None:
        tell(f"suspended since {tenant.suspended_at[:19].replace('T', ' ')}: its keys open nothing")
    for name, has in tenant.usage.items():
        most = tenant.quotas.get(name) or 0
        shown = size if name == "bytes" else "{:,.0f}".format
        tell(f"{name}: {shown(int(has))} of {shown(int(most)) if most else 'any'}")
    give(tenant.id)


def _table(found: list[Tenant]) -> Table:
    table = Table()
    limits = ("quota_bytes", "quota_jobs", "quota_cpu_s", "rate_per_s", "rate_burst")
    for name in ("tenant", "name", "suspended", *limits):
        table.add_column(name, no_wrap=name == "tenant")
    for one in found:
        own = ["" if one.limits.get(limit) is None else f"{one.limits[limit]:,g}" for limit in limits]
        table.add_row(one.id, safe_text(one.name), (one.suspended_at or "")[:10], *own)
    return table
