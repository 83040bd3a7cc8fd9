"""The Capabilities service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import remote_execution_pb2_grpc as re_grpc
from tvix.cas.capabilities import CapabilitiesConfig, server_capabilities
from tvix.cas.resource_names import check_instance_name
from tvix.rpc import handled

MayUpdate = Callable[[Any], bool]
"""Tells from the RPC's context whether its caller may write action results."""


class CapabilitiesService(re_grpc.CapabilitiesServicer):
    """Says the same for every instance; only `update_enabled` depends on the caller."""

    def __init__(self, config: CapabilitiesConfig, may_update: MayUpdate) -> None:
        self._may_update = may_update
        self._replies = {enabled: server_capabilities(config, update_enabled=enabled) for enabled in (False, True)}

    @handled
    async def GetCapabilities(self, request: re_pb2.GetCapabilitiesRequest, context: Any) -> re_pb2.ServerCapabilities:
        """Return what the server can do."""
        check_instance_name(request.instance_name)
        return self._replies[bool(self._may_update(context))]


def register_capabilities(server: Any, config: CapabilitiesConfig, may_update: MayUpdate) -> None:
    """Add the service to a server that was not started yet."""
    re_grpc.add_CapabilitiesServicer_to_server(CapabilitiesService(config, may_update), server)
