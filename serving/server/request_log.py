"""Logs as lines of JSON, one per request, without file names or content of images."""

import json
import logging
import time
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from .limits import CLIENT_LEFT, App, Message, Receive, Scope, Send
from .metrics import Metrics

logger = logging.getLogger(__name__)

# Attributes of every log record; whatever else a record has was given as `extra`.
COMMON_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "color_message"}


class JsonFormatter(logging.Formatter):
    """Format a log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        extra = vars(record).items()
        fields |= {name: value for name, value in extra if name not in COMMON_ATTRIBUTES}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


class RequestLog:
    """ASGI middleware that logs, counts and times requests.

    Args:
        app: what answers them.
        metrics: where they are counted.
        routes: the paths to name in logs and metrics; others are named "other".
    """

    def __init__(self, app: App, metrics: Metrics, routes: frozenset[str]) -> None:
        self.app, self.metrics, self.routes = app, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), CLIENT_LEFT
        request_id = uuid4().hex[:16]

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append((b"x-request-id", request_id.encode()))
            await send(message)

        try:
            with self.metrics.in_progress.track_inprogress():
                await self.app(scope, receive, send_and_note)
        finally:
            route = scope["path"] if scope["path"] in self.routes else "other"
            seconds = time.perf_counter() - started
            self.metrics.requests.labels(route, status).inc()
            self.metrics.request_seconds.labels(route).observe(seconds)
            fields = {
                "request_id": request_id,
                "client": (scope.get("client") or ("",))[0],
                "method": scope["method"],
                "route": route,
                "status": status,
                "seconds": round(seconds, 4),
                "bytes": scope.get("received_bytes", 0),
            }
            fields |= scope.get("log", {})
            logger.info("request", extra=fields)
