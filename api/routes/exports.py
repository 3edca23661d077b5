"""Networks to take along: how to load them, their card and bill of materials, signed folders for hubs and servers."""

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

import engine
from api.conditional_requests import NOT_MODIFIED, etag_matches
from api.dependencies import Context, ReadScope, TenantScope
from api.downloads import Downloadable, WantReprDigest, download
from api.errors import ApiError, problems
from api.uploads import BYTES, repr_digest
from models import ArtifactFile
from services import artifacts, export
from services.bill_of_materials import bill_of_materials
from services.provenance import Provenance, provenance

router = APIRouter(prefix="/v1", tags=["exports"])

_CARD: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/markdown": {"schema": {"type": "string"}}}, "description": "The card."}
}
_BILL: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"application/vnd.cyclonedx+json": {"schema": {"type": "object"}}},
        "description": "CycloneDX 1.6, with the network's model card.",
    }
}
_BUNDLE: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"application/vnd.dev.sigstore.bundle.v0.3+json": {"schema": {"type": "object"}}},
        "description": "Sigstore bundle.",
    }
}
_KEY: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/x-pem-file": {"schema": {"type": "string"}}}, "description": "PEM."}
}
_LayoutQuery = Annotated[
    export.Layout,
    Query(
        description="`hub`: `README.md` and `onnx/model_int8.onnx`, as model hubs name them; `triton`: a model repository of Triton"
        " Inference Server."
    ),
]
_Original = Annotated[bool, Query(description="`hub`: the original lies beside it as `onnx/model.onnx`.")]
_MaxBatch = Annotated[
    int,
    Query(ge=0, le=1024, description="`triton`: gather requests into batches of at most so many; 0: one by one."),
]


@router.get("/models/{model_id}/loading", responses=problems(403, 404, 409))
def get_loading(model_id: str, scope: ReadScope) -> "engine.Loading":
    """Say what loads a network as it was measured: provider, session options, the ONNX Runtime that it needs, lines to paste."""
    report = _found(scope, model_id).report
    if report is None or report.loading is None:
        raise ApiError(
            409,
            "The network was not made by a job that says how to load it.",
            code="not_measured",
            hint="Compress it, or ask a profile with `tune` for the session options that it runs fastest with.",
        )
    return report.loading


@router.get(
    "/models/{model_id}/card", response_class=Response, responses=problems(403, 404, 409) | NOT_MODIFIED | _CARD
)
def get_card(model_id: str, request: Request, scope: ReadScope) -> Response:
    """Give a network's model card: what was measured, what it was made from, how to load it."""
    return _text(request, export.model_card(_found(scope, model_id)), "text/markdown")


@router.get("/models/{model_id}/bom", response_class=Response, responses=problems(403, 404, 409) | NOT_MODIFIED | _BILL)
def get_bill_of_materials(model_id: str, request: Request, scope: ReadScope) -> Response:
    """Give a network's bill of materials: digests, ancestors, recipe, and what was measured with its intervals."""
    return _text(request, bill_of_materials(_found(scope, model_id)), "application/vnd.cyclonedx+json")


@router.get(
    "/models/{model_id}/signature", response_class=Response, responses=problems(403, 404, 409) | NOT_MODIFIED | _BUNDLE
)
def get_signature(model_id: str, request: Request, scope: ReadScope) -> Response:
    """Sign a network's files as they are at `content`: `model_signing verify key` checks the file, or the folder of several."""
    found = _found(scope, model_id)
    alone = len(found.files) == 1
    digests = {"." if alone else file.path: file.sha256 for file in found.files}
    bundle = export.signing_key(scope.resources.settings).bundle(found.model.name, digests)
    return _text(request, bundle, "application/vnd.dev.sigstore.bundle.v0.3+json")


@router.get("/signing-key", response_class=Response, responses=problems(403, 409) | NOT_MODIFIED | _KEY)
def get_signing_key(request: Request, scope: ReadScope) -> Response:
    """Give the public key that exported networks are signed with."""
    return _text(request, export.signing_key(scope.resources.settings).public_pem, "application/x-pem-file")


@router.get("/models/{model_id}/export", response_class=Response, responses=problems(403, 404, 409, 416) | BYTES)
async def export_model(  # noqa: PLR0917 - FastAPI calls it by name
    model_id: str,
    request: Request,
    context: Context,
    layout: _LayoutQuery = "hub",
    original: _Original = False,
    max_batch: _MaxBatch = 0,
    want_repr_digest: WantReprDigest = None,
) -> Response:
    """Download a network as a folder that others read, as one zip: with card and bill of materials, and signed where this service can.

    The ETag is the digest of the folder's manifest, as the digest of an artifact is.
    """

    def find(scope: TenantScope) -> Downloadable:
        found = _found(scope, model_id)
        key = export.signing_key(scope.resources.settings) if export.can_sign() else None
        if layout == "triton":
            members = export.triton_repository(found, key, max_batch=max_batch)
        else:
            members = export.hub_folder(found, key, _original(scope, found) if original else None)
        files = [ArtifactFile(path=each.path, sha256=each.sha256, size=each.size) for each in members]
        lines = [{"path": each.path, "sha256": each.sha256, "size": each.size} for each in members]
        written = {each.sha256: each.content for each in members if each.content is not None}
        digest = artifacts.manifest_digest(lines)
        return Downloadable(scope.tenant_id, digest, files, export.plain_name(found.model.name), written)

    return await download(request, context.resources, await context.read(find), want_repr_digest)


def _found(scope: TenantScope, model_id: str) -> Provenance:
    return provenance(scope.session, scope.resources.store, scope.tenant_id, model_id)


def _original(scope: TenantScope, found: Provenance) -> Provenance:
    if not found.ancestors:
        raise ApiError(409, "The network was uploaded: there is no original beside it.", code="no_original")
    return _found(scope, found.ancestors[-1].model.id)


def _text(request: Request, content: bytes, media_type: str) -> Response:
    digest = hashlib.sha256(content).hexdigest()
    headers = {"ETag": f'"{digest}"', "Repr-Digest": repr_digest(digest)}
    if etag_matches(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=media_type)
