"""The pages beside the cache, and the connections."""

from tests.server.test_http_cache import SHA, setting


async def test_the_front_page_says_what_this_is() -> None:
    async with setting() as it:
        status, body = await it.ask("GET", "/")
        assert status == 200
        assert b"--remote_cache=http://" in body


async def test_health_follows_the_server() -> None:
    async with setting() as it:
        assert await it.ask("GET", "/healthz") == (200, b"ok\n")
        it.serving = False
        assert (await it.ask("GET", "/healthz"))[0] == 503


async def test_metrics_are_prometheus_text() -> None:
    async with setting() as it:
        status, body = await it.ask("GET", "/metrics")
        assert status == 200
        assert b"# TYPE tvix_grpc_calls_by_seconds_total counter" in body


async def test_connections_are_kept_after_a_miss_and_after_an_error() -> None:
    async with setting() as it:
        for path in (f"/cas/{SHA}", "/cas/xyz", "/nowhere"):
            async with it.client.get(it.url + path) as response:
                assert response.status in (400, 404)
                assert response.headers.get("Connection") != "close"
