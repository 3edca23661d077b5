"""Uploads as clients send them: stored once per Idempotency-Key, however often the same bytes come under it."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from models import ROW_BYTES, Dataset, Model, ModelState
from services import artifacts, idempotency, quotas, units
from services.artifacts import KnownArchive, KnownBlob, Source
from services.errors import ConflictError, RejectedError
from services.routing import INSPECT_QUEUE
from services.unit_kinds import INSPECTION, UNPACKING
from settings import Settings

Upload = TypeVar("Upload", Model, Dataset)


def upload_model(
    session: Session,
    tenant_id: str,
    writer: Source,
    *,
    name: str,
    idempotency_key: str | None = None,
    settings: Settings | None = None,
    before: Callable[[], None] | None = None,
) -> Model:
    """Register a finished upload as a network, or give the one that the same request made before.

    `before` is called first where there is none.
    """

    def make() -> Model:
        if before is not None:
            before()
        _admit(session, tenant_id, writer, settings)
        return register_model(session, tenant_id, writer, name=name)

    return _once(
        session,
        ("POST /v1/models", tenant_id, idempotency_key),
        {"sha256": writer.finish().sha256, "name": name},
        make=make,
        find=lambda model_id: artifacts.get_model(session, tenant_id, model_id),
    )


def upload_dataset(
    session: Session,
    tenant_id: str,
    writer: Source,
    *,
    name: str,
    declaration: Mapping[str, Any] | None = None,
    fits: str | None = None,
    idempotency_key: str | None = None,
    settings: Settings | None = None,
    before: Callable[[], None] | None = None,
) -> Dataset:
    """Register a finished upload as a dataset, or give the one that the same request made before.

    `declaration` is what their owner says of the data; `fits` is the id of a network whose inputs the arrays have to fit.
    `before` is called first where there is no earlier one.
    """
    fitted = None if fits is None else check_fits(session, tenant_id, fits)

    def make() -> Dataset:
        if before is not None:
            before()
        _admit(session, tenant_id, writer, settings)
        return register_dataset(session, tenant_id, writer, name=name, declaration=declaration, fits=fitted)

    return _once(
        session,
        ("POST /v1/datasets", tenant_id, idempotency_key),
        {"sha256": writer.finish().sha256, "name": name, "metric": None, "fits": fits, **(declaration or {})},
        make=make,
        find=lambda dataset_id: artifacts.get_dataset(session, tenant_id, dataset_id),
    )


def register_model(session: Session, tenant_id: str, writer: Source, *, name: str) -> Model:
    """Store a finished upload as a network and queue its inspection."""
    model = artifacts.add_model(session, tenant_id, writer, name=name)
    is_archive = writer.head.startswith(artifacts.ZIP) and not isinstance(writer, KnownArchive)
    units.make(
        session,
        "inspect_model",
        tenant_id=tenant_id,
        queue=INSPECT_QUEUE,
        limits=UNPACKING if is_archive else INSPECTION,
        model_id=model.id,
    )
    return model


def register_dataset(
    session: Session,
    tenant_id: str,
    writer: Source,
    *,
    name: str,
    declaration: Mapping[str, Any] | None = None,
    fits: str | None = None,
) -> Dataset:
    """Store a finished upload as a dataset and queue its inspection.

    `fits` is the id of a ready network whose inputs the arrays have to fit; else the data are rejected.
    """
    dataset = artifacts.add_dataset(session, tenant_id, writer, name=name, declaration=declaration)
    units.make(
        session,
        "inspect_dataset",
        tenant_id=tenant_id,
        queue=INSPECT_QUEUE,
        limits=INSPECTION,
        dataset_id=dataset.id,
        payload={} if fits is None else {"fits": fits},
    )
    return dataset


def check_fits(session: Session, tenant_id: str, model_id: str) -> str:
    """Give the id of the network; raise unless it can tell what its inputs are."""
    model = artifacts.get_model(session, tenant_id, model_id)
    if model.in_state is ModelState.REJECTED:
        raise RejectedError("The model was rejected.", code="model_rejected", problem=model.problem)
    if model.in_state is not ModelState.READY:
        raise ConflictError(f"The model is {model.state}; it has to be ready first.", code="model_not_ready")
    return model.id


def _admit(session: Session, tenant_id: str, writer: Source, settings: Settings | None) -> None:
    if settings is not None:
        is_new = not isinstance(writer, KnownBlob | KnownArchive)
        # A row of its own it takes in any case.
        quotas.check_bytes(session, tenant_id, writer.finish().size if is_new else ROW_BYTES, settings)


def _once(
    session: Session,
    request: tuple[str, str, str | None],
    body: dict[str, Any],
    *,
    make: Callable[[], Upload],
    find: Callable[[str], Upload],
) -> Upload:
    route, tenant_id, key = request
    if key is None:
        return make()
    earlier = idempotency.begin(session, tenant_id, route, key, idempotency.digest(body))
    if earlier is not None:
        return find(earlier)
    made = make()
    idempotency.answer(session, tenant_id, route, key, made.id)
    return made
