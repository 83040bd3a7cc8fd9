"""What the server tells clients that it can do. Pure.

The order of lists matters: siso takes the first compressor blindly, older Bazels the first digest
function; `max_batch_total_size_bytes` is never 0, which several clients take literally.
"""

from __future__ import annotations

from dataclasses import dataclass

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import semver_pb2
from tvix.cas.digest import FUNCTIONS

MAX_BATCH_BYTES = 4 * 1024 * 1024 - 64 * 1024
"""Blobs of one batch call: with digests and statuses they stay below gRPC's default limit of 4 MiB."""

AVERAGE_CHUNK_BYTES = 512 * 1024
"""FastCDC's average; chunks are between a quarter and four times of it."""

NODE_PROPERTIES = ("mtime", "unix_mode")


@dataclass(frozen=True, slots=True)
class CapabilitiesConfig:
    """What depends on how the server was set up."""

    execution: bool = True
    """Whether Execute is served; otherwise this is a cache only."""
    max_blob_bytes: int = 0
    """Larger uploads are refused; 0 means that any size is welcome."""
    max_batch_bytes: int = MAX_BATCH_BYTES
    absolute_symlinks: bool = True
    min_priority: int = -(2**31)
    """The most urgent priority that a client may ask for."""
    max_priority: int = 2**31 - 1


def server_capabilities(config: CapabilitiesConfig, *, update_enabled: bool) -> re_pb2.ServerCapabilities:
    """Return what to tell a caller; `update_enabled` is whether this caller may write action results."""
    return re_pb2.ServerCapabilities(
        cache_capabilities=_cache(config, update_enabled),
        execution_capabilities=_execution(config) if config.execution else None,
        deprecated_api_version=semver_pb2.SemVer(major=2),
        low_api_version=semver_pb2.SemVer(major=2),
        high_api_version=semver_pb2.SemVer(major=2, minor=12),
    )


def _cache(config: CapabilitiesConfig, update_enabled: bool) -> re_pb2.CacheCapabilities:
    strategy = re_pb2.SymlinkAbsolutePathStrategy
    return re_pb2.CacheCapabilities(
        digest_functions=[info.wire for info in FUNCTIONS.values()],
        action_cache_update_capabilities=re_pb2.ActionCacheUpdateCapabilities(update_enabled=update_enabled),
        cache_priority_capabilities=_priorities(config),
        max_batch_total_size_bytes=config.max_batch_bytes,
        symlink_absolute_path_strategy=strategy.ALLOWED if config.absolute_symlinks else strategy.DISALLOWED,
        supported_compressors=[re_pb2.Compressor.ZSTD],
        supported_batch_update_compressors=[re_pb2.Compressor.ZSTD],
        max_cas_blob_size_bytes=config.max_blob_bytes,
        split_blob_support=True,
        splice_blob_support=True,
        fast_cdc_2020_params=re_pb2.FastCdc2020Params(avg_chunk_size_bytes=AVERAGE_CHUNK_BYTES, seed=0),
    )


def _execution(config: CapabilitiesConfig) -> re_pb2.ExecutionCapabilities:
    return re_pb2.ExecutionCapabilities(
        digest_function=re_pb2.DigestFunction.SHA256,
        exec_enabled=True,
        execution_priority_capabilities=_priorities(config),
        supported_node_properties=list(NODE_PROPERTIES),
        digest_functions=[info.wire for info in FUNCTIONS.values()],
    )


def _priorities(config: CapabilitiesConfig) -> re_pb2.PriorityCapabilities:
    priority_range = re_pb2.PriorityCapabilities.PriorityRange(
        min_priority=config.min_priority, max_priority=config.max_priority
    )
    return re_pb2.PriorityCapabilities(priorities=[priority_range])
