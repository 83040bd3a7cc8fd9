from typing import Any

from remote_apis import remote_execution_pb2 as re_pb2
from tests.cas.grpc_server import serve


async def test_update_enabled_is_per_caller() -> None:
    async with serve(may_update_actions=lambda context: ("user", "ci") in context.invocation_metadata()) as served:
        cases: list[tuple[Any, bool]] = [((), False), ((("user", "ci"),), True)]
        for metadata, enabled in cases:
            reply = await served.capabilities.GetCapabilities(
                re_pb2.GetCapabilitiesRequest(instance_name="any/instance"), metadata=metadata
            )
            assert reply.cache_capabilities.action_cache_update_capabilities.update_enabled is enabled
