import pytest
from starlette.datastructures import Headers

from showtell.pipeline.stage.errors import ConfigError
from showtell.serving.server.access import Access
from showtell.serving.server.config import ServeConfig

LOCAL = {"host": "127.0.0.1:8000"}


def code_of(access: Access, method: str = "POST", path: str = "/caption", **headers) -> str | None:
    """The code of the error of a request, or None if it may pass."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    error = access.check(method, path, Headers({**LOCAL, **named}))
    return error and error.code


def make(**options) -> Access:
    async def app(*_) -> None:
        raise AssertionError

    return Access(app, **{"host": "127.0.0.1", **options})


@pytest.mark.parametrize(
    "host, code",
    [
        *((host, None) for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000")),
        *((host, "host_not_allowed") for host in ("evil.example", "127.0.0.1.evil.example:8000")),
        *((host, "host_not_allowed") for host in ("localhost.", "[::1", "127.0.0.1@evil.example")),
    ],
)
def test_local_server_answers_to_its_own_names_only(host: str, code: str | None) -> None:
    assert code_of(make(), host=host) == code
    assert code_of(make(), "GET", "/", host=host) == code


@pytest.mark.parametrize(
    "option, host",
    [
        ("captions.example", "captions.example"),
        ("Captions.Example.org", "captions.example.org:8000"),
        ("captions.example:8080", "CAPTIONS.example"),
        ("192.168.0.7", "192.168.0.7:8000"),
        ("FE80::1", "[fe80::1]:8000"),
        ("[fe80::1]:80", "[fe80::1]"),
    ],
)
def test_further_names_can_be_allowed(option: str, host: str) -> None:
    allowed = ServeConfig(allow_host=[option]).allow_host
    for options in ({}, {"token": "a-secret"}, {"host": "0.0.0.0"}):
        access = make(allowed_hosts=allowed, **options)
        assert code_of(access, "GET", "/", host=host) is None
        assert code_of(access, "GET", "/", host="localhost:8000") is None
        assert code_of(access, "GET", "/", host="evil.example") == "host_not_allowed"


@pytest.mark.parametrize(
    "name", ["https://captions.example", "captions.example/x", "*.example", "", "a b", "[::1"]
)
def test_option_that_names_no_host_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"--allow-host must be a host name, such as captions"):
        ServeConfig(allow_host=[name])


def test_public_server_answers_to_any_name() -> None:
    access = make(host="0.0.0.0", token="a-secret")
    assert code_of(access, host="a.example", authorization="Bearer a-secret") is None


@pytest.mark.parametrize(
    "headers, code",
    [
        ({}, None),
        ({"origin": "http://127.0.0.1:8000"}, None),
        ({"origin": "http://127.0.0.1:9000"}, "origin_not_allowed"),
        ({"origin": "https://evil.example"}, "origin_not_allowed"),
        ({"origin": "null"}, "origin_not_allowed"),
        ({"sec_fetch_site": "same-origin", "origin": "https://proxy.example"}, None),
        ({"sec_fetch_site": "none"}, None),
        ({"sec_fetch_site": "cross-site"}, "origin_not_allowed"),
        ({"sec_fetch_site": "same-site", "origin": "http://127.0.0.1:8000"}, "origin_not_allowed"),
    ],
)
def test_page_of_another_site_cannot_send_images(headers, code: str | None) -> None:
    assert code_of(make(), **headers) == code


def test_link_from_another_site_opens_the_page() -> None:
    assert code_of(make(), "GET", "/", sec_fetch_site="cross-site") is None


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", "Basic a-secret", "a-secret", "é"])
def test_token_is_required_where_there_is_one(given: str) -> None:
    access = make(token="a-secret")
    for path in ("/caption", "/metrics", "/model", "/nothing"):
        assert code_of(access, path=path, authorization=given) == "token_required"
    assert code_of(access, authorization="bearer a-secret") is None


def test_page_and_health_need_no_token() -> None:
    access = make(token="a-secret")
    for path in ("/", "/page.js", "/page.css", "/icon.svg", "/healthz", "/openapi.json"):
        assert code_of(access, "GET", path) is None
