"""Who may use the server: host names, origins of web pages, and the token.

A web page of another site can make its visitor's browser send requests to a server on the visitor's
own machine. Two checks stop it: the `Host` header must name this server, which defeats DNS
rebinding, and a request that a browser sends for another site's page is refused.
"""

import hmac
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from .config import is_loopback
from .limits import App, Receive, RequestError, Scope, Send

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

# The page must load before it can ask for the token; /healthz is for probes.
PUBLIC_PATHS = frozenset({"/", "/page.js", "/page.css", "/icon.svg", "/healthz", "/openapi.json"})


class Access:
    """ASGI middleware that refuses requests of strangers.

    Args:
        app: what answers all others.
        host: the address that the server listens on.
        allowed_hosts: further names by which it may be addressed, in lower case, without ports.
        token: the secret that clients must send; None for none.
    """

    def __init__(
        self, app: App, host: str, allowed_hosts: Collection[str] = (), token: str | None = None
    ) -> None:
        self.app, self.token = app, token
        # A page that rebinds its name lacks the token. A public server without a token does not
        # know its own names: only --allow-host protects it from such pages.
        checks_host = bool(allowed_hosts) or (token is None and is_loopback(host))
        self.hosts = {*LOOPBACK_NAMES, host.lower(), *allowed_hosts} if checks_host else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http":
            error = self.check(scope["method"], scope["path"], Headers(scope=scope))
            if error is not None:
                await error.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def check(self, method: str, path: str, headers: Headers) -> RequestError | None:
        """Return why a request is refused, or None."""
        host = headers.get("host", "")
        name = host_name(host)
        if self.hosts is not None and host and name not in self.hosts:
            return RequestError(
                403,
                "host_not_allowed",
                "The Host header names another server. Start this one with --allow-host NAME to "
                "serve under another name, such as that of a proxy.",
            )
        if method not in ("GET", "HEAD") and is_from_another_site(headers, host):
            return RequestError(
                403, "origin_not_allowed", "Web pages of other sites may not use this server."
            )
        if self.token is None or path in PUBLIC_PATHS or has_token(headers, self.token):
            return None
        return RequestError(
            401,
            "token_required",
            "Send the token of this server in the header 'Authorization: Bearer TOKEN'.",
            {"WWW-Authenticate": "Bearer"},
        )


def host_name(host: str) -> str | None:
    """Return the name in a `Host` header, without its port; None if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def is_from_another_site(headers: Headers, host: str) -> bool:
    """Return whether a browser sends this request for a page that another server delivered."""
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in ("same-origin", "none")
    # Older browsers, and pages that came through plain HTTP. Other clients send no origin.
    origin = headers.get("origin")
    return origin is not None and origin.partition("//")[2].lower() != host.lower()


def has_token(headers: Headers, token: str) -> bool:
    """Return whether a request has the token; the time taken tells nothing about it."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    is_equal = hmac.compare_digest(given.strip().encode(), token.encode())
    return scheme.lower() == "bearer" and is_equal
