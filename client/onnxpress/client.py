"""The SDK: `Client` and its collections, one per noun of the HTTP API."""

import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar

import httpx

from onnxpress.aliases import Aliases
from onnxpress.configuration import find_access, find_patience, shown
from onnxpress.deadline import NEVER, Deadline
from onnxpress.documents import Change, Dataset, Event, Job, Key, Model, Prunability, Stored
from onnxpress.errors import (
    ConflictError,
    InvalidError,
    JobFailedError,
    NotFoundError,
    PlaintextWarning,
    WaitTimeoutError,
)
from onnxpress.exports import Exports
from onnxpress.file_transfer import Digested, Progress, digest, download
from onnxpress.model_names import in_address
from onnxpress.network_files import digest_network
from onnxpress.pages import PAGE, items, pages
from onnxpress.problem import Problem
from onnxpress.resumable_upload import ResumableUpload
from onnxpress.search_documents import Front, Minimised, Trial
from onnxpress.server_sent_events import read_events
from onnxpress.tenants import Tenants
from onnxpress.transport import ApiRequest, Transport, read_json
from onnxpress.webhooks import Webhooks

# The longest wait of one long poll that the service grants.
POLL_S = 30.0
# Below this many bytes, sending them costs no more than asking whether they are known.
WORTH_ASKING = 1 << 16
# From this many bytes on, sending them again from the start is what a broken connection should not cost.
WORTH_RESUMING = 32 << 20
# At least so many bytes of an upload in pieces are put together in a second.
ASSEMBLED_PER_S = 20e6
INSPECTION_S = 10.0
AnyPath = str | PathLike[str]
S = TypeVar("S", bound=Stored)


class Client:
    """A connection to an onnxpress service; use it as a context manager or call `close()`.

    The address is `url`, else ONNXPRESS_URL, else that of an embedded service in `./var`, else http://127.0.0.1:8765.
    The key is `key`, else ONNXPRESS_API_KEY, else the file that ONNXPRESS_KEY_FILE names, else, for a service on this
    host, `./var/admin.key`. Requests that are safe to repeat are repeated for `patience` seconds (else
    ONNXPRESS_PATIENCE, else 120, and 30 before the first answer) while the service is away or busy; `on_retry(reason, pause)`
    hears of it. All errors are `OnnxpressError`s. A key that goes to another host without encryption is a `PlaintextWarning`.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        patience: float | None = None,
        on_retry: Callable[[str, float], None] | None = None,
    ) -> None:
        access = find_access(url, key)
        if access.plaintext and access.key:
            text = f"{shown(access.url)} is not encrypted: others on the way can read the key and the files; use https"
            warnings.warn(text, PlaintextWarning, stacklevel=2)
        self._transport = Transport(access, patience=find_patience(patience), on_retry=on_retry)
        self.url = self._transport.url
        self.models = Models(self._transport)
        self.aliases = Aliases(self._transport)
        self.datasets = Datasets(self._transport)
        self.jobs = Jobs(self._transport)
        self.artifacts = Artifacts(self._transport)
        self.exports = Exports(self._transport)
        self.keys = Keys(self._transport)
        self.tenants = Tenants(self._transport)
        self.webhooks = Webhooks(self._transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def passes(self) -> list[dict[str, Any]]:
        """List what a recipe can be made of: type, summary, JSON schema and defaults of every pass."""
        return items(self._transport.json(ApiRequest("GET", "/passes")))

    def recipes(
        self, *, model: str | None = None, dataset: str | None = None, provider: str | None = None
    ) -> list[dict[str, Any]]:
        """List the recipes that a job may ask for by name; for a stored model also what each would take (`estimate`)."""
        query = {"model": model, "dataset": dataset, "provider": provider}
        asked = ApiRequest("GET", "/recipes", query={name: value for name, value in query.items() if value})
        return items(self._transport.json(asked))

    def targets(self) -> list[dict[str, Any]]:
        """List what workers can optimise for and measure on; one that is not `live` now makes a job wait."""
        return items(self.capacity())

    def capacity(self) -> dict[str, Any]:
        """Give the targets (`items`), what does not run and why (`unavailable`), and the `workers` with their load."""
        return self._transport.json(ApiRequest("GET", "/targets"))

    def audit(
        self,
        *,
        subject: str | None = None,
        key: str | None = None,
        action: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Change]:
        """Yield what was made and changed and by which key, newest first; for keys with the scope `admin`."""
        query = {"subject": subject, "key": key, "action": action}
        found = pages(self._transport, "/audit", {name: value for name, value in query.items() if value}, limit)
        return (Change.from_document(one) for one in found)


class _Collection(Generic[S]):
    """Stored things of one kind: sent, inspected by the service, listed."""

    def __init__(self, transport: Transport, path: str, kind: type[S]) -> None:
        self._transport = transport
        self._path = path
        self._kind = kind

    def get(self, item_id: str) -> S:
        """Give one by its id; a model also as `@alias` or `name@version`."""
        return self._get(item_id, NEVER)

    def list(self, *, tags: Sequence[str] = (), limit: int | None = None) -> Iterator[S]:
        """Yield those that have all the tags, newest first, without their inspections; `limit` ends the list."""
        found = pages(self._transport, self._path, {"tag": [*tags]} if tags else {}, limit)
        return (self._kind.from_document(one) for one in found)

    def _get(self, item_id: str, deadline: Deadline) -> S:
        return self._kind.from_document(self._transport.json(ApiRequest("GET", self._address(item_id)), deadline))

    def _upload(
        self,
        file: AnyPath | Digested,
        query: Mapping[str, str | None],
        *,
        wait: bool,
        timeout: float | None,
        idempotency_key: str | None,
        progress: Progress | None,
    ) -> S:
        """Hash the file, then stream it, unless the service has its bytes; it refuses bytes that changed in between."""
        deadline = Deadline.after(timeout)
        hashed = file if isinstance(file, Digested) else digest(file)
        asked: dict[str, str | float] = {key: value for key, value in query.items() if value is not None}
        asked.setdefault("name", hashed.path.stem)
        wait_s = deadline.left(INSPECTION_S) if wait else 0.0
        raw = ApiRequest(
            "POST",
            self._path,
            query=asked | ({"wait": round(wait_s, 1)} if wait else {}),
            stream=lambda: hashed.stream(progress, deadline),
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(hashed.size),
                "Repr-Digest": hashed.repr_digest,
                "Idempotency-Key": idempotency_key or secrets.token_hex(16),
            },
            wait_s=wait_s,
        )
        document = self._known(raw, hashed, deadline) if hashed.size >= WORTH_ASKING else None
        if document is None and hashed.size >= WORTH_RESUMING:
            document = self._in_pieces(raw, hashed, progress, deadline)
        item = self._kind.from_document(document or self._transport.json(raw, deadline))
        return self._inspected(item, deadline) if wait else item

    def _known(self, raw: ApiRequest, hashed: Digested, deadline: Deadline) -> dict[str, Any] | None:
        """Name bytes that the service has already instead of sending them; None where it has not."""
        try:
            self._transport.fetch(ApiRequest("HEAD", f"/blobs/{hashed.sha256}"), deadline)
        except NotFoundError:
            return None
        key = {"Idempotency-Key": (raw.headers or {})["Idempotency-Key"]}
        try:
            return self._transport.json(replace(raw, stream=None, body={"blob": hashed.sha256}, headers=key), deadline)
        except InvalidError as error:
            # They went in between.
            if error.problem.code != "unknown_blob":
                raise
            return None

    def _in_pieces(
        self, raw: ApiRequest, hashed: Digested, progress: Progress | None, deadline: Deadline
    ) -> dict[str, Any] | None:
        """Send a large file so that it can be gone on with; None where the service does not take it like this."""
        upload_id = ResumableUpload(self._transport, hashed, progress, deadline).send()
        if upload_id is None:
            return None
        key = {"Idempotency-Key": (raw.headers or {})["Idempotency-Key"]}
        # It is put together while nothing is said.
        wait_s = raw.wait_s + hashed.size / ASSEMBLED_PER_S
        return self._transport.json(
            replace(raw, stream=None, body={"upload": upload_id}, headers=key, wait_s=wait_s), deadline
        )

    def delete(self, item_id: str) -> None:
        """Remove it; raises ConflictError while a job needs it."""
        self._transport.fetch(ApiRequest("DELETE", self._address(item_id)))

    def _change(self, item_id: str, changes: Mapping[str, Any]) -> S:
        return self._kind.from_document(self._transport.json(ApiRequest("PATCH", self._address(item_id), body=changes)))

    def _address(self, item_id: str) -> str:
        return f"{self._path}/{item_id}"

    def _inspected(self, item: S, deadline: Deadline) -> S:
        """Wait until the service has looked at it; raises InvalidError when it was rejected."""
        pause = 0.1
        while item.state == "checking":
            time.sleep(deadline.left(pause))
            pause = min(pause * 2, 2.0)
            item = self._get(item.id, deadline)
        if item.state == "rejected":
            raise InvalidError(item.problem or Problem(f"{item.id} was rejected", code="rejected"))
        return item


class Models(_Collection[Model]):
    """Stored networks, uploaded ones and results alike."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport, "/models", Model)

    def upload(
        self,
        file: AnyPath | Digested,
        *,
        name: str | None = None,
        wait: bool = True,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        progress: Progress | None = None,
    ) -> Model:
        """Send an ONNX file and give it as the service sees it, inspected unless `wait` is false.

        External data beside the file go with it, as one zip. Raises UsageError for a file that is certainly no network (a
        checkpoint, a SavedModel, ...) with the line that exports it, InvalidError when it is none that the service takes,
        WaitTimeoutError after `timeout` seconds.
        """
        return self._upload(
            file if isinstance(file, Digested) else digest_network(file),
            {"name": name},
            wait=wait,
            timeout=timeout,
            idempotency_key=idempotency_key,
            progress=progress,
        )

    def download(
        self, model_id: str, path: AnyPath, *, progress: Progress | None = None, timeout: float | None = None
    ) -> Path:
        """Fetch a model's file, a zip where it has external data; `path` appears complete and checked or not at all."""
        deadline, address = Deadline.after(timeout), self._address(model_id)
        model = Model.from_document(self._transport.json(ApiRequest("GET", address), deadline))
        digest_of = model.sha256 or model.artifact
        if digest_of is None:
            raise ConflictError(Problem(f"model {model_id} has no bytes yet", code="not_finished"))
        source = f"{address}/content"
        several = model.sha256 is None
        return download(self._transport, source, digest_of, path, several=several, progress=progress, deadline=deadline)

    def change(
        self, model_id: str, *, name: str | None = None, tags: Sequence[str] | None = None, alias: str | None = None
    ) -> Model:
        """Rename or tag a model, or have an alias name it; an empty one takes all its aliases away."""
        wanted = {"name": name, "tags": None if tags is None else [*tags]}
        changes: dict[str, Any] = {key: value for key, value in wanted.items() if value is not None}
        if alias is not None:
            changes["alias"] = alias or None
        return self._change(model_id, changes)

    def list(self, *, tags: Sequence[str] = (), limit: int | None = None, name: str | None = None) -> Iterator[Model]:
        """Yield those that have all the tags, newest first; those of one `name` are its versions, which have numbers. `limit` ends the list."""
        query: dict[str, Any] = {"tag": [*tags]} if tags else {}
        found = pages(self._transport, self._path, query | ({"name": name} if name is not None else {}), limit)
        return (Model.from_document(one) for one in found)

    def by_alias(self, alias: str) -> Model:
        """Give the model that has an alias; raises NotFoundError."""
        found = items(self._transport.json(ApiRequest("GET", "/models", query={"alias": alias})))
        if not found:
            raise NotFoundError(Problem(f"no model has the alias {alias}", code="not_found", status=404))
        return self.get(str(found[0]["id"]))

    def prunability(self, model_id: str, *, timeout: float | None = None) -> Prunability:
        """Say what of a model could be pruned, and which nodes keep what and why; the service takes seconds to find out.

        Raises InvalidError where the model cannot be analysed, WaitTimeoutError after `timeout` seconds.
        """
        deadline, address = Deadline.after(timeout), self._address(model_id)
        while True:
            seconds = max(round(deadline.left(POLL_S), 1), 0.1)
            request = ApiRequest("GET", f"{address}/prunability", query={"wait": seconds}, wait_s=seconds)
            answer = self._transport.fetch(request, deadline)
            if answer.status_code != httpx.codes.ACCEPTED:
                return Prunability.from_document(read_json(answer))
            # A service that stops answers at once.
            time.sleep(deadline.left(1.0))

    def lineage(self, model_id: str) -> dict[str, Any]:
        """Give what a model was made from and what was made from it."""
        return self._transport.json(ApiRequest("GET", f"{self._address(model_id)}/lineage"))

    def _address(self, item_id: str) -> str:
        return f"{self._path}/{in_address(self._transport, item_id)}"


class Datasets(_Collection[Dataset]):
    """Stored arrays for calibration and evaluation."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport, "/datasets", Dataset)

    def upload(
        self,
        file: AnyPath | Digested,
        *,
        name: str | None = None,
        metric: str | None = None,
        wait: bool = True,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        progress: Progress | None = None,
    ) -> Dataset:
        """Send an `.npz`, `.safetensors`, or zip of one `.npz` per sample; `metric` says what the labels are judged by (by default top1 for integer labels).

        Raises InvalidError when the service does not take it, WaitTimeoutError after `timeout` seconds.
        """
        return self._upload(
            file,
            {"name": name, "metric": metric},
            wait=wait,
            timeout=timeout,
            idempotency_key=idempotency_key,
            progress=progress,
        )

    def change(self, dataset_id: str, *, name: str | None = None, tags: Sequence[str] | None = None) -> Dataset:
        """Rename or tag a dataset."""
        wanted = {"name": name, "tags": None if tags is None else [*tags]}
        return self._change(dataset_id, {key: value for key, value in wanted.items() if value is not None})

    def download(
        self, dataset_id: str, path: AnyPath, *, progress: Progress | None = None, timeout: float | None = None
    ) -> Path:
        """Fetch a dataset as it was uploaded; `path` appears complete and checked or not at all."""
        deadline = Deadline.after(timeout)
        sha256 = self._get(dataset_id, deadline).sha256
        if sha256 is None:
            raise ConflictError(Problem(f"dataset {dataset_id} has no bytes", code="not_finished"))
        source = f"/datasets/{dataset_id}/content"
        return download(self._transport, source, sha256, path, progress=progress, deadline=deadline)


class Jobs:
    """Work that was asked for."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Ask for a job; `spec` is the body of `POST /v1/jobs`.

        The same key with the same spec gives the same job, however often it is sent; without one, each call is a job.
        """
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        return Job.from_document(self._transport.json(ApiRequest("POST", "/jobs", body=spec, headers=headers)))

    def profile(
        self,
        model: str,
        targets: Sequence[Mapping[str, Any]] = ({"provider": "cpu"},),
        *,
        baseline: str | None = None,
        dataset: str | None = None,
        judge: str | None = None,
        gates: Sequence[Mapping[str, Any]] = (),
        tune: bool = False,
        idempotency_key: str | None = None,
        **more: Any,
    ) -> Job:
        """Ask what stored models cost on targets; `more` are further fields of the job, such as `measure_seconds`.

        A target is `{"provider": ..., "threads": ..., "batch": ...}`; limits on latency are in milliseconds.
        """
        spec = {"kind": "profile", "model": model, "targets": [*targets], "gates": [*gates], **more}
        spec |= {"baseline": baseline} if baseline else {}
        spec |= {"dataset": dataset} if dataset else {}
        spec |= {"judge": judge} if judge else {}
        spec |= {"tune": {}} if tune else {}
        return self.submit(spec, idempotency_key=idempotency_key)

    def search(
        self,
        model: str,
        minimise: Minimised = "latency",
        *,
        dataset: str | None = None,
        judge: str | None = None,
        subject_to: Sequence[Mapping[str, Any]] = (),
        effort: Literal["low", "medium", "high"] = "medium",
        max_seconds: float | None = None,
        max_trials: int | None = None,
        target: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        **more: Any,
    ) -> Job:
        """Ask for the network that has least of something and holds every limit; the service finds the way there.

        `subject_to` are gates, such as `{"metric": "top1", "rule": "max_drop", "value": 0.01}`. `more` are further fields of
        the job, such as `strategy`, `seed`, `space`, `outputs` or `labels`.
        """
        goal = {"minimise": minimise, "subject_to": [*subject_to], "effort": effort}
        limits = {"max_seconds": max_seconds, "max_trials": max_trials}
        budget = {name: value for name, value in limits.items() if value is not None}
        named = {"dataset": dataset, "judge": judge, "budget": budget, "target": target}
        told = {name: value for name, value in named.items() if value}
        spec = {"kind": "search", "model": model, "goal": goal, **told, **more}
        return self.submit(spec, idempotency_key=idempotency_key)

    def front(self, job_id: str) -> Front:
        """Give what there is to choose from of a search; while it goes on, as it is now. Raises ConflictError for other jobs."""
        return Front.from_document(self._transport.json(ApiRequest("GET", f"/jobs/{job_id}/front")))

    def trials(self, job_id: str) -> Iterator[Trial]:
        """Yield the candidates of a search in the order in which they were proposed, those to come left out."""
        after: int | None = 0
        while after is not None:
            query = {"after": after, "limit": PAGE}
            page = self._transport.json(ApiRequest("GET", f"/jobs/{job_id}/trials", query=query))
            yield from map(Trial.from_document, items(page))
            after = page.get("next_after")

    def pick(
        self,
        job_id: str,
        number: int,
        *,
        gates: Sequence[Mapping[str, Any]] | None = None,
        labels: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Make a point of a search's front real, as a new job that measures it on the samples that judge.

        `gates` stand instead of the goal's limits, `labels` instead of the search's. Raises NotFoundError for a number that is
        not on the front, ConflictError for one that cannot be made yet.
        """
        said = {"gates": None if gates is None else [*gates], "labels": labels}
        body = {name: value for name, value in said.items() if value is not None}
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        request = ApiRequest("POST", f"/jobs/{job_id}/front/{number}:pick", body=body, headers=headers)
        return Job.from_document(self._transport.json(request))

    def pause(self, job_id: str) -> Job:
        """Let a search rest: what runs of it ends, nothing more begins, and the time does not count. Harmless twice."""
        return Job.from_document(self._transport.json(ApiRequest("POST", f"/jobs/{job_id}:pause")))

    def resume(self, job_id: str) -> Job:
        """Let a paused search go on where it was; raises ConflictError where it is not paused."""
        return Job.from_document(self._transport.json(ApiRequest("POST", f"/jobs/{job_id}:resume")))

    def validate(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Say what would come of a job without asking for it: `valid`, the whole spec, warnings, or the problem."""
        return self._transport.json(ApiRequest("POST", "/jobs:validate", body=spec))

    def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """Ask again, as a new job, for what a failed or cancelled one was to do."""
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        return Job.from_document(self._transport.json(ApiRequest("POST", f"/jobs/{job_id}:retry", headers=headers)))

    def logs(self, job_id: str) -> str:
        """Give what happened to a job, a line for each event."""
        return self._transport.fetch(ApiRequest("GET", f"/jobs/{job_id}/logs", headers={"Accept": "text/plain"})).text

    def events(self, job_id: str, *, after: int = 0, timeout: float | None = None) -> Iterator[Event]:
        """Yield what happens to a job until it is finished; a broken connection is taken up where it broke."""
        deadline = Deadline.after(timeout)
        last = after
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(last)} if last else {})
            request = ApiRequest("GET", f"/jobs/{job_id}/events", headers=headers)
            told = 0
            try:
                with self._transport.open(request, deadline) as answer:
                    if answer.status_code == httpx.codes.NO_CONTENT:
                        return
                    for event in read_events(answer.iter_lines()):
                        last, told = event.id, told + 1
                        yield event
            except httpx.TransportError:
                deadline.left(1)
            if not told:
                time.sleep(deadline.left(1.0))

    def get(self, job_id: str) -> Job:
        """Give one job as it stands."""
        return Job.from_document(self._transport.json(ApiRequest("GET", f"/jobs/{job_id}")))

    def list(self, *, status: str | None = None, label: str | None = None, limit: int | None = None) -> Iterator[Job]:
        """Yield jobs, newest first, without their specs, steps and warnings; `label` is `key=value`; `limit` ends the list."""
        query = {"status": status, "label": label}
        found = pages(self._transport, "/jobs", {key: value for key, value in query.items() if value}, limit)
        return (Job.from_document(one) for one in found)

    def updates(self, job_id: str, *, timeout: float | None = None) -> Iterator[Job]:
        """Yield the job now and at each change, the last time when it is finished.

        `timeout` is the total of all waiting, in seconds; WaitTimeoutError when it is over.
        """
        deadline = Deadline.after(timeout)
        job, etag = None, None
        while job is None or not job.finished:
            try:
                # The first answer comes at once.
                seconds = max(round(deadline.left(POLL_S), 1), 0.1) if job else 0.0
                document, etag = self._poll(job_id, etag, seconds, deadline)
            except WaitTimeoutError as error:
                said = f"job {job_id} is still {job.status if job else 'unknown'} after {timeout:g} s"
                raise WaitTimeoutError(said, job) from error
            if document is not None:
                job = Job.from_document(document)
                yield job

    def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        on_update: Callable[[Job], None] | None = None,
    ) -> Job:
        """Give the job once it has succeeded; raises JobFailedError when it ended otherwise, WaitTimeoutError in time."""
        job = None
        for job in self.updates(job_id, timeout=timeout):
            if on_update:
                on_update(job)
        assert job is not None
        if not job.succeeded:
            raise JobFailedError(job)
        return job

    def cancel(self, job_id: str) -> Job:
        """Ask for a job's end; its last state is `cancelled` unless it was faster."""
        return Job.from_document(
            self._transport.json(
                ApiRequest("POST", f"/jobs/{job_id}:cancel", headers={"Idempotency-Key": secrets.token_hex(16)})
            )
        )

    def report(self, job_id: str) -> dict[str, Any]:
        """Give the measured report; of a job that ended without one, that and why, as a document of kind `unfinished`."""
        return self._transport.json(ApiRequest("GET", f"/jobs/{job_id}/report.json"))

    def report_markdown(self, job_id: str) -> str:
        """Give the report as Markdown."""
        return self._transport.fetch(
            ApiRequest("GET", f"/jobs/{job_id}/report.md", headers={"Accept": "text/markdown"})
        ).text

    def report_as(self, job_id: str, form: Literal["junit.xml", "prom", "html"]) -> str:
        """Give the gates as JUnit XML, the main figures as OpenMetrics, or the whole as one HTML file that opens anywhere."""
        return self._transport.fetch(ApiRequest("GET", f"/jobs/{job_id}/report.{form}")).text

    def report_page(self, job_id: str, *, beside: str | None = None) -> str:
        """Give the whole as one HTML file; `beside`: a profile of the same result, whose figures come last."""
        asked = {} if beside is None else {"beside": beside}
        return self._transport.fetch(ApiRequest("GET", f"/jobs/{job_id}/report.html", query=asked)).text

    def download(
        self, job_id: str, path: AnyPath, *, progress: Progress | None = None, timeout: float | None = None
    ) -> Path:
        """Fetch a finished job's network; `path` appears complete and checked or not at all."""
        job = self.get(job_id)
        if job.finished and not job.succeeded:
            raise JobFailedError(job)
        if not job.succeeded or job.output_model is None:
            raise ConflictError(Problem(f"job {job_id} is {job.status} and has no result yet", code="not_finished"))
        return Models(self._transport).download(job.output_model, path, progress=progress, timeout=timeout)

    def _poll(
        self, job_id: str, etag: str | None, seconds: float, deadline: Deadline
    ) -> tuple[dict[str, Any] | None, str | None]:
        """Give the job's JSON and its version; no JSON when it still is the version that is known."""
        request = ApiRequest(
            "GET",
            f"/jobs/{job_id}",
            query={"wait": seconds} if seconds else None,
            headers={"If-None-Match": etag} if etag else None,
            wait_s=seconds,
        )
        answer = self._transport.fetch(request, deadline)
        if answer.status_code == httpx.codes.NOT_MODIFIED:
            return None, etag
        return read_json(answer), answer.headers.get("ETag")


class Keys:
    """Who may do what; for keys with the scope `admin`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, name: str, scopes: Sequence[str], *, expires_at: datetime | None = None) -> Key:
        """Make a key; its `text` cannot be had again."""
        body = {"name": name, "scopes": [*scopes], "expires_at": expires_at.isoformat() if expires_at else None}
        # A repeated request would not show the key: each one that may have come through makes its own.
        return Key.from_document(self._transport.json(ApiRequest("POST", "/keys", body=body)))

    def list(self) -> list[Key]:
        """Give all keys, newest first."""
        return [Key.from_document(one) for one in items(self._transport.json(ApiRequest("GET", "/keys")))]

    def expire(self, key_id: str, at: datetime | None) -> Key:
        """Set when a key ends, None for never."""
        body = {"expires_at": at.isoformat() if at else None}
        return Key.from_document(self._transport.json(ApiRequest("PATCH", f"/keys/{key_id}", body=body)))

    def revoke(self, key_id: str) -> Key:
        """End a key at once and for ever."""
        return Key.from_document(self._transport.json(ApiRequest("DELETE", f"/keys/{key_id}")))


class Artifacts:
    """Bytes that are named by their sha256."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def download(
        self, sha256: str, path: AnyPath, *, progress: Progress | None = None, timeout: float | None = None
    ) -> Path:
        """Fetch bytes into `path`: into a temporary file beside it first, checked, synced to disk, then renamed."""
        deadline = Deadline.after(timeout)
        return download(self._transport, f"/artifacts/{sha256}", sha256, path, progress=progress, deadline=deadline)

    def link(self, sha256: str, *, hours: float = 24.0, name: str | None = None) -> str:
        """Give an address that the bytes can be had from without a key, for some hours and while this key is valid."""
        body: dict[str, Any] = {"sha256": sha256, "hours": hours} | ({"name": name} if name else {})
        path = str(self._transport.json(ApiRequest("POST", "/links", body=body))["path"])
        return f"{self._transport.url.rstrip('/')}{path}"
