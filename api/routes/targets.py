"""What live workers can run on."""

from datetime import datetime
from typing import Any, Literal, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api.dependencies import ReadScope
from api.errors import problems
from services import workers

router = APIRouter(prefix="/v1/targets", tags=["targets"])


class TrainingInfo(BaseModel):
    """Whether workers of a target can train networks, which PyTorch does; proven by a step of gradients."""

    model_config = ConfigDict(extra="allow")

    available: bool = Field(description="True: jobs with steps that train are taken for this target.")
    reason: str | None = Field(None, description="Why not, and what installs it.")
    torch: str | None = Field(None, description="PyTorch's version.")
    device: Literal["cpu", "cuda"] | None = Field(None, description="What it trains on.")
    gpu: str | None = Field(None, description="Name of the GPU that it trains on.")
    cuda: str | None = Field(None, description="The version of CUDA that PyTorch was built with; null: without.")


class TargetInfo(BaseModel):
    """An execution provider that workers have proven by running a small network on it, and take jobs for."""

    model_config = ConfigDict(extra="allow")

    provider: str
    live: bool = Field(description="False: seen in the last days, but no worker has it now. A job for it waits.")
    workers: int = Field(description="Live ones that have exactly this.")
    slots: int = Field(description="Units that they work on at the same time.")
    busy: int = Field(description="Units for this provider that they work on now.")
    seen_at: datetime
    device: str | None = None
    cpu: str | None = None
    flags: list[str] = Field(default_factory=list, description="Of the processor, as far as they decide on kernels.")
    threads: int | None = Field(None, description="Cores that a worker may use.")
    onnxruntime: str | None = Field(None, description="Its version.")
    distribution: str | None = Field(None, description="The package that brought onnxruntime, which decides its build.")
    ep_version: str | None = Field(None, description="Of an execution provider that is a plugin, and of TensorRT.")
    gpu: str | None = Field(None, description="Name of the GPU, where the provider runs on one.")
    gpu_memory_bytes: int | None = Field(None, description="Of the GPU, as its driver tells it.")
    driver: str | None = Field(None, description="Version of the GPU's driver.")
    cuda: str | None = Field(None, description="Version of the CUDA runtime.")
    cudnn: str | None = None
    training: TrainingInfo | None = Field(None, description="null: a worker of a version that trained nothing.")


class UnavailableInfo(BaseModel):
    """A provider that live workers have tried and cannot run, and why."""

    provider: str
    reason: str
    listed: bool = Field(description="True: the runtime claims to have it, which alone means nothing.")
    workers: list[str]


class WorkerInfo(BaseModel):
    """A worker of the last hour."""

    id: str
    host: str
    state: Literal["live", "draining", "gone"] = Field(
        description="A draining one ends what it has, and takes no more."
    )
    targets: list[str] = Field(description="Providers that it takes jobs for.")
    queues: list[str]
    slots: int = Field(description="Units that it works on at the same time.")
    busy: int = Field(description="Units that it works on now.")
    cores: int
    isolation: str = Field(description="How strongly the processes that touch networks are confined there.")
    started_at: datetime
    seen_at: datetime

    @classmethod
    def of(cls, seen: workers.Seen) -> Self:
        """Show a worker."""
        row = seen.worker
        return cls(
            id=row.id,
            host=row.host,
            state=seen.state,
            targets=[str(target.get("provider")) for target in row.targets],
            queues=row.queues,
            slots=row.concurrency,
            busy=seen.busy,
            cores=row.cores,
            isolation=row.isolation,
            started_at=row.started_at,
            seen_at=row.seen_at,
        )


class TargetList(BaseModel):
    """Every target, what does not run and why, and the workers."""

    items: list[TargetInfo]
    unavailable: list[UnavailableInfo]
    workers: list[WorkerInfo]


@router.get("", responses=problems(403))
def list_targets(scope: ReadScope) -> TargetList:
    """List what a job can be optimised for and measured on, and what workers lack for more."""
    found: dict[str, Any] = {"items": workers.targets(scope.session), "unavailable": workers.unavailable(scope.session)}
    return TargetList(**found, workers=[WorkerInfo.of(seen) for seen in workers.listed(scope.session)])
