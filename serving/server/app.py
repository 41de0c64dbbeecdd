"""The routes of the server: the page, captions, health, metrics and the description of the API."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from .access import Access
from .config import ServeConfig
from .limits import CLIENT_LEFT, MB, App, BodyLimit, RequestError
from .request_body import FORM_TYPE, JSON_TYPE
from .request_log import RequestLog
from .request_options import schema_of
from .schema import ErrorResponseJson, ResultsJson
from .service import CaptionService, ClientLeftError

# The bodies of all requests together may have this many times the size of one.
BODIES_AT_ONCE = 8

ERROR_STATUSES = (400, 401, 403, 408, 413, 415, 422, 429, 500, 503, 504)

PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
ROUTES = frozenset({*PAGE_FILES, "/caption", "/healthz", "/metrics", "/model", "/openapi.json"})
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
DESCRIPTION = """Captions for images. Errors are `{"error": {"code": …, "message": …}}`."""


def create_app(service: CaptionService, config: ServeConfig, model: dict[str, Any]) -> App:
    """Return the ASGI application.

    Args:
        service: captions the images.
        config: of the server.
        model: what `/model` tells about the model.
    """
    app: App = create_api(service, config, model)
    app = BodyLimit(app, config.max_body * MB, BODIES_AT_ONCE * config.max_body * MB)
    app = Access(app, config.host, config.allow_host or (), config.token)
    return RequestLog(app, service.metrics, ROUTES)


def create_api(service: CaptionService, config: ServeConfig, model: dict[str, Any]) -> FastAPI:
    """Return the routes, without the checks that come before them. Arguments as `create_app`."""
    from ... import __version__

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    # FastAPI's own pages about the API load scripts from a CDN.
    api = FastAPI(
        title="showtell",
        description=DESCRIPTION,
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    add_error_handlers(api)
    add_page(api)
    add_caption(api, service)
    add_status(api, service)

    @api.get("/model")
    async def describe_model() -> dict[str, Any]:
        """Describe the model, the options of a request with their defaults, and the limits."""
        limits = {
            "max_images": config.max_images,
            "max_body_bytes": config.max_body * MB,
            "max_pixels": config.max_pixels,
        }
        options = schema_of(service.defaults)
        return {**model, "options": options, "limits": limits, "version": __version__}

    return api


def add_caption(api: FastAPI, service: CaptionService) -> None:
    """Add the route that captions images."""

    @api.post(
        "/caption",
        response_model=ResultsJson,
        responses={status: {"model": ErrorResponseJson} for status in ERROR_STATUSES},
        openapi_extra={"requestBody": describe_body(schema_of(service.defaults))},
    )
    async def caption(request: Request) -> Response:
        """Caption the images of a request, and answer with their captions in the same order."""
        try:
            status, results = await service.answer(request)
        except ClientLeftError:
            return Response(status_code=CLIENT_LEFT)
        content = results.model_dump_json(exclude_none=True)
        return Response(content, status, media_type=JSON_TYPE)


def add_status(api: FastAPI, service: CaptionService) -> None:
    """Add the routes that tell how the server is."""

    @api.get("/healthz")
    async def healthz() -> Response:
        """Answer 200 while images are captioned, else 503."""
        healthy = service.is_healthy
        return JSONResponse({"status": "ok" if healthy else "failed"}, 200 if healthy else 503)

    @api.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return metrics in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def add_page(api: FastAPI) -> None:
    """Add the files of the page as routes."""
    folder = files(__package__) / "page"
    for path, (name, media_type) in PAGE_FILES.items():
        content = (folder / name).read_bytes()

        async def send(content: bytes = content, media_type: str = media_type) -> Response:
            return Response(content, media_type=media_type, headers=PAGE_HEADERS)

        api.add_api_route(path, send, include_in_schema=False)


def add_error_handlers(api: FastAPI) -> None:
    """Answer every error with JSON of the same form."""

    @api.exception_handler(RequestError)
    async def refuse(request: Request, error: RequestError) -> Response:
        return error.response()

    @api.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        message = f"{error.detail}. The API is described in /openapi.json."
        return RequestError(error.status_code, code, message, error.headers).response()

    @api.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        # The framework raises the error again, so that its traceback is logged.
        message = "The server could not caption the images. Its log says why."
        return RequestError(500, "internal_error", message).response()


def describe_body(options: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI description of the body of `POST /caption`.

    Args:
        options: name → JSON schema.
    """
    details = {
        "type": "boolean",
        "default": False,
        "description": "Add the log-probability of each word, and where the decoder attended.",
    }

    def describe(images: dict[str, Any]) -> dict[str, Any]:
        properties = {"images": images, "details": details, **options}
        return {"schema": {"type": "object", "required": ["images"], "properties": properties}}

    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    texts = {
        "type": "array",
        "items": {"type": "string", "format": "byte"},
        "description": "Image files in base64.",
    }
    return {
        "required": True,
        "content": {FORM_TYPE: describe(files), JSON_TYPE: describe(texts)},
    }
