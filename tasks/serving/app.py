"""The routes of `regraft serve`, as FastAPI knows them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from tasks import pages
from tasks.errors import RefusedError, RegraftError, TrackingError
from tasks.serving import messages
from tasks.serving.batching import Batcher, Busy
from tasks.serving.guard import Limited, demand
from tasks.serving.measures import Measured, Measures
from tasks.serving.messages import NoAdapter, Service

PAGE = Path(__file__).parent / "trying.jinja"
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": messages.Fault, "description": told}
    for status, told in {
        401: "no token, or another one",
        404: "no such adapter",
        413: "too large a body",
        422: "a row that cannot be answered, or an adapter that cannot be served",
        429: "too many rows wait: ask again in a moment",
        503: "the registry does not answer, or the disk does not",
    }.items()
}
Name = Annotated[str, InPath(pattern=messages.NAME)]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """batch: rows that the model takes at once. waiting: rows that may wait. body: bytes of a request.
    refresh: seconds between two looks at the registry's aliases. token: who asks must bear it, if there is
    one. hosts: what a request may call the server."""

    batch: int = 32
    waiting: int = 2048
    body: int = 4 * 2**20
    refresh: float = 30.0
    token: str = ""
    hosts: tuple[str, ...] = ("*",)


def build(service: Service, settings: Settings) -> FastAPI:
    measures = Measures()
    batcher = Batcher(
        service.answer,
        rows=settings.batch,
        waiting=settings.waiting,
        alike=service.alike,
        seen=measures.batch,
    )

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(_follow(service, settings.refresh, measures))
        yield
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
        await run_in_threadpool(batcher.close)

    app = FastAPI(title="regraft", summary="One frozen base, many adapters", lifespan=living)
    app.include_router(_open(service))
    guarded = [Depends(demand(settings.token))]
    app.include_router(_answering(service, batcher, measures), dependencies=guarded, responses=FAULTS)
    app.include_router(_holding(service), dependencies=guarded, responses=FAULTS)
    app.add_exception_handler(RequestValidationError, _unusable)
    app.add_exception_handler(RegraftError, _failed)
    app.add_exception_handler(OSError, _unwritten)
    app.add_middleware(Limited, most=settings.body)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts))
    app.add_middleware(Measured, told=measures.request)
    return app


def _open(service: Service) -> APIRouter:
    """What everybody may see."""
    router, page = APIRouter(), pages.render(PAGE)

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def look() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    @router.get("/health")
    async def health() -> messages.Health:
        return messages.Health(status="ok", adapters=len(service.adapters()))

    return router


def _answering(service: Service, batcher: Batcher, measures: Measures) -> APIRouter:
    router = APIRouter()

    @router.post("/predict", response_model_exclude_unset=True)
    async def predict(request: messages.Request) -> messages.Response:
        """Each row's answer, by the adapter that the row names; rows of one request may name several."""
        prepared = await run_in_threadpool(service.prepare, request.rows)
        try:
            found = await _all(batcher, prepared)
        finally:
            service.release(prepared)
        for one in found:
            measures.row(one.adapter)
        return messages.Response(predictions=found)

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """In Prometheus' text format."""
        resident = sum(one.bytes for one in service.adapters() if one.resident)
        text = measures.page(waiting=len(batcher), resident=resident)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _holding(service: Service) -> APIRouter:
    router = APIRouter(prefix="/adapters")

    @router.get("")
    async def known() -> messages.Adapters:
        return messages.Adapters(adapters=list(service.adapters()))

    @router.put("/{name}")
    def load(name: Name, source: messages.Source) -> messages.Adapter:
        """Serve a registered model's adapter under this name, in place of another if one had it."""
        return service.load(name, source.source)

    @router.delete("/{name}", status_code=204)
    def unload(name: Name) -> Response:
        service.unload(name)
        return Response(status_code=204)

    return router


async def _all(batcher: Batcher, prepared: Sequence[Any]) -> list[messages.Answer]:
    try:
        futures = batcher.submit(prepared)
    except Busy:
        raise HTTPException(429, "too many rows wait: ask again in a moment", {"Retry-After": "1"}) from None
    found = await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
    for one in found:  # only now: whoever is released must not be needed any more
        if isinstance(one, BaseException):
            raise one
    return list(found)  # type: ignore[arg-type]


async def _follow(service: Service, seconds: float, measures: Measures) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            news = await run_in_threadpool(service.refresh)
        except Exception as error:  # noqa: BLE001 - what is served goes on being served, and is looked at again
            news = [error]
        for told in news:
            if isinstance(told, Exception):
                measures.unfollowed()
                log.warning("an alias was not followed: %s", told)
            else:
                log.info(told)


async def _unusable(request: Any, error: Exception) -> JSONResponse:
    """As FastAPI tells it, without the input: that may be what JSON cannot say."""
    assert isinstance(error, RequestValidationError)
    told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return JSONResponse({"detail": pages.visible(told)}, 422)


async def _failed(request: Any, error: Exception) -> JSONResponse:
    away = isinstance(error, TrackingError) and not isinstance(error, RefusedError)
    status = 404 if isinstance(error, NoAdapter) else 503 if away else 422
    return JSONResponse({"detail": pages.visible(str(error))}, status)


async def _unwritten(request: Any, error: Exception) -> JSONResponse:
    """Paths are told in the log alone."""
    assert isinstance(error, OSError)
    log.error("%s", error, exc_info=error)
    why = error.strerror or type(error).__name__
    return JSONResponse({"detail": f"the server cannot read or write a file: {why}"}, 503)
