"""Is the process alive, can it serve? The two addresses that a load balancer asks without a key."""

from typing import Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from pydantic import BaseModel

from api.dependencies import Resources
from api.errors import problems
from services import db

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """A yes; a no is a problem."""

    status: Literal["ok"] = "ok"


@router.get("/livez")
async def livez() -> Health:
    """Answer as long as the process does."""
    return Health()


@router.get("/readyz", responses={503: problems(503)[503]})
async def readyz(request: Request) -> Health:
    """Answer 200 when the database does; a broker that is away only makes jobs wait."""
    resources: Resources = request.app.state.resources

    def ping() -> None:
        with resources.database.reading() as session:
            db.ping(session)

    await run_sync(ping, limiter=resources.health)
    return Health()
