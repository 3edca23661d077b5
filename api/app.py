"""create_app(): the HTTP edge as one ASGI application."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from importlib import metadata
from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from api import errors
from api.admission import Admission
from api.client_address import Proxies
from api.dependencies import Resources
from api.long_polling import Watcher
from api.middleware import RequestMiddleware
from api.pages import app as pages
from api.pages import problems
from api.rate_limit import RateLimiter
from api.request_metrics import RequestMetrics
from api.routes import (
    aliases,
    artifacts,
    audit,
    blobs,
    datasets,
    docs,
    exports,
    health,
    jobs,
    keys,
    links,
    metrics,
    models,
    passes,
    recipes,
    searches,
    targets,
    tenants,
    uploads,
    webhooks,
)
from api.uploads import NewBlob, UploadedFile
from engine import ProfileReport, Report, Unfinished
from services.db import Database
from services.publisher import BrokerPublisher
from services.reconcile import Reconciler
from services.server_secret import open_server_secret
from services.storage import open_store
from services.versions import versions
from services.webhooks import Courier
from settings import Settings

DISK_THREADS = 16
READ_THREADS = 8
HEALTH_THREADS = 2

_ROUTERS = tuple(
    part.router
    for part in (
        models,
        aliases,
        datasets,
        jobs,
        searches,
        artifacts,
        links,
        blobs,
        uploads,
        passes,
        recipes,
        targets,
        keys,
        tenants,
        webhooks,
        exports,
        audit,
        metrics,
        health,
        docs,
    )
)
_DESCRIPTION = """\
POST a model, POST a job, poll it, download an artifact that is smaller and faster, with a measured report and a verdict.

Every error is a problem (RFC 9457). A job always answers 200: look at `status`, and at `verdict` for the gates.
"""
_TAGS = [
    {"name": "models", "description": "Networks: uploaded ones and the results of jobs."},
    {
        "name": "aliases",
        "description": "Names that one network has at a time, such as `production`, with history and rollback.",
    },
    {"name": "datasets", "description": "Named arrays for calibration and evaluation."},
    {"name": "jobs", "description": "Work on a model, with limits and gates."},
    {"name": "searches", "description": "What a search has tried, and what there is to choose from."},
    {"name": "artifacts", "description": "Stored bytes, named by their SHA-256."},
    {"name": "links", "description": "One artifact for whoever has the link, for a time."},
    {"name": "blobs", "description": "Which bytes are stored already, so that nobody sends them twice."},
    {"name": "exports", "description": "Networks to take along: card, bill of materials, signature, folders."},
    {"name": "uploads", "description": "Large files in pieces, as tus 1.0 has it: what broke off goes on."},
    {"name": "passes", "description": "What a recipe can be made of."},
    {"name": "recipes", "description": "Recipes that a job asks for by name."},
    {"name": "targets", "description": "What live workers can run on."},
    {"name": "keys", "description": "Who may do what; for keys with the scope `admin`."},
    {
        "name": "tenants",
        "description": "Who has objects here and how much they may have; for keys with the scope `operator`.",
    },
    {"name": "webhooks", "description": "Who is told when something ends; for keys with the scope `admin`."},
    {"name": "audit", "description": "Who changed what; for keys with the scope `admin`."},
    {"name": "metrics", "description": "For keys with the scope `metrics`; of all tenants for operators' keys."},
    {"name": "health", "description": "For load balancers; no key."},
]


class Api(FastAPI):
    """FastAPI whose description holds the schemas of answers that routes write themselves."""

    def openapi(self) -> dict[str, Any]:
        """Give the OpenAPI 3.1 document."""
        if self.openapi_schema is not None:
            return self.openapi_schema
        document = super().openapi()
        _, schemas = models_json_schema(
            [
                (errors.Problem, "serialization"),
                (Report, "serialization"),
                (ProfileReport, "serialization"),
                (Unfinished, "serialization"),
                (NewBlob, "validation"),
                (UploadedFile, "validation"),
            ],
            ref_template="#/components/schemas/{model}",
        )
        document["components"]["schemas"].update(schemas["$defs"])
        _require_tags(document)
        _say_in_words(document)
        return document


def create_app(settings: Settings) -> FastAPI:
    """Make the application; nothing is opened before its lifespan starts."""
    app = Api(
        title="onnxpress",
        version=metadata.version("onnxpress-server"),
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        lifespan=_lifespan,
        # The usual pages load their scripts from elsewhere; the router `docs` has ours, and the document.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    app.state.settings = settings
    app.state.request_metrics = RequestMetrics()
    app.state.proxies = Proxies(settings.proxies)
    app.state.admission = Admission(settings.max_connections, settings.max_connections_per_address)
    app.state.description = docs.Description(app)
    app.state.watcher = Watcher(lambda rows: _versions(app, rows))
    errors.install(app)
    problems.install(app)
    app.add_middleware(RequestMiddleware)
    for router in _ROUTERS:
        app.include_router(router)
    app.include_router(pages.router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    publisher = BrokerPublisher(settings)
    database = Database.from_settings(settings, publisher)
    store = open_store(settings)
    # What uploads left that died with their process; those of other processes are younger.
    await run_sync(store.clean_incoming)
    secret = await run_sync(open_server_secret, settings)
    rate_limiter = RateLimiter(settings.rate_per_s, settings.rate_burst)
    app.state.resources = Resources(
        settings,
        database,
        store,
        app.state.watcher,
        CapacityLimiter(DISK_THREADS),
        CapacityLimiter(READ_THREADS),
        rate_limiter,
        secret,
        CapacityLimiter(HEALTH_THREADS),
    )
    # Connecting loads the transport; the first client's unit should not wait for it. A broker that is away is no reason to stop.
    await run_sync(publisher.answers)
    reconciler = Reconciler(database, settings, publisher.waiting)
    reconciler.start()
    courier = Courier(database, secret, settings)
    courier.start()
    watching = asyncio.create_task(app.state.watcher.run())
    try:
        yield
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await run_sync(courier.stop)
        await run_sync(reconciler.stop)
        publisher.close()
        database.dispose()


def _require_tags(document: dict[str, Any]) -> None:
    """Say that the member of a union must be named, though it has a default: without it nobody knows whose default."""
    schemas = document["components"]["schemas"]
    unions = [
        field["items"]
        for schema in schemas.values()
        for field in schema.get("properties", {}).values()
        if "items" in field
    ]
    for union in unions:
        if "discriminator" in union:
            tag = union["discriminator"]["propertyName"]
            for reference in union["discriminator"]["mapping"].values():
                member = schemas[reference.rpartition("/")[2]]
                member["required"] = sorted({*member.get("required", ()), tag})


def _say_in_words(document: dict[str, Any]) -> None:
    """Give each operation its first sentence as its summary, in place of the name of the function that answers."""
    for operations in document["paths"].values():
        for operation in operations.values():
            paragraph = " ".join(operation["description"].partition("\n\n")[0].split())
            operation["summary"] = paragraph.partition(". ")[0].removesuffix(".")


def _versions(app: FastAPI, rows: Sequence[str]) -> Mapping[str, str]:
    with app.state.resources.database.reading() as session:
        return versions(session, rows)


def _operation_id(route: APIRoute) -> str:
    return route.name
