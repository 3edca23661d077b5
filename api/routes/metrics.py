"""Metrics in Prometheus' text format."""

from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import APIRouter, Response

from api.dependencies import Context, TenantScope
from api.errors import problems
from services import metrics
from services.metrics import Family

router = APIRouter(tags=["metrics"])

MEDIA_TYPE = "text/plain; version=0.0.4"
_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


@router.get("/metrics", response_class=Response, responses=problems(403) | _TEXT)
async def get_metrics(context: Context) -> Response:
    """Tell what waits and for how long, how long work takes, what fails, and how much this process is asked.

    A key with the scope `operator` sees all tenants together, the workers and this process; any other sees its own tenant.
    """

    def collect(scope: TenantScope) -> list[Family]:
        if "operator" in scope.caller.scopes:
            return [*metrics.collect(scope.session), *context.request_metrics.families()]
        return metrics.collect(scope.session, scope.tenant_id)

    return Response(text(await context.read(collect, needs="metrics")), media_type=MEDIA_TYPE)


def text(families: Iterable[Family]) -> str:
    """Write metrics in Prometheus' text format."""
    return "".join(f"{line}\n" for family in families for line in _lines(family))


def _lines(family: Family) -> Iterator[str]:
    yield f"# HELP {family.name} {family.help}"
    yield f"# TYPE {family.name} {family.kind}"
    for labels, value in family.samples:
        told = ",".join(f'{name}="{_escaped(given)}"' for name, given in labels.items())
        yield f"{family.name}{{{told}}} {value:.15g}" if told else f"{family.name} {value:.15g}"


def _escaped(value: str | None) -> str:
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
