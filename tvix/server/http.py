"""The HTTP application of a front: `/`, /healthz, /metrics and the HTTP cache."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from aiohttp import web

from tvix import __version__
from tvix.server.http_cache import MAX_RESULT_BYTES, HttpCache
from tvix.server.metrics import CONTENT_TYPE, render_metrics

KEEPALIVE_SECONDS = 75.0
"""Bazel keeps idle connections for a while; closing them first makes its next request fail."""

ABOUT = f"""tvix {__version__}: a remote execution server

/healthz           200 while requests are served, 503 while shutting down
/metrics           counters, for Prometheus
/ac/HASH           action results, GET and PUT (Bazel: --remote_cache=http://HOST:PORT)
/cas/HASH          blobs by their SHA-256, GET, HEAD and PUT; /cas/blake3/HASH for other functions
/INSTANCE/ac/HASH  the same, action results apart by instance name

Everything else is served by gRPC, on another port: bazel build --remote_executor=grpc://HOST:PORT
"""


class HttpServer:
    """Serves HTTP on a socket that is shared with other processes."""

    def __init__(self, cache: HttpCache, is_serving: Callable[[], bool]) -> None:
        self._is_serving = is_serving
        application = web.Application(client_max_size=MAX_RESULT_BYTES)
        application.router.add_get("/", self._about)
        application.router.add_get("/healthz", self._health)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_route("*", "/{path:.+}", cache.handle)
        self._runner = web.AppRunner(
            application,
            access_log=None,
            keepalive_timeout=KEEPALIVE_SECONDS,
            handle_signals=False,
            shutdown_timeout=5.0,
            auto_decompress=False,
        )

    async def start(self, listening: socket.socket) -> None:
        """Serve on a socket that listens already."""
        await self._runner.setup()
        await web.SockSite(self._runner, listening).start()

    async def stop(self) -> None:
        """Take no new connections, let requests finish for a few seconds, then cut."""
        await self._runner.cleanup()

    async def _about(self, request: web.Request) -> web.Response:
        return web.Response(text=ABOUT)

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n") if self._is_serving() else web.Response(status=503, text="draining\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        body = await asyncio.to_thread(render_metrics)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})
