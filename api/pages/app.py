"""Every page, as one router."""

from fastapi import APIRouter

from api.pages import assets, jobs, library, service, sign_in, trend

router = APIRouter()
for _part in (sign_in, jobs, library, trend, service, assets):
    router.include_router(_part.router)
