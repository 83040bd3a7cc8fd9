from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.capabilities import CapabilitiesConfig, server_capabilities


def test_what_clients_check() -> None:
    found = server_capabilities(CapabilitiesConfig(), update_enabled=True)
    cache, execution = found.cache_capabilities, found.execution_capabilities
    assert cache.digest_functions[0] == re_pb2.DigestFunction.SHA256
    assert re_pb2.DigestFunction.BLAKE3 in cache.digest_functions
    assert list(cache.supported_compressors) == [re_pb2.Compressor.ZSTD]
    assert list(cache.supported_batch_update_compressors) == [re_pb2.Compressor.ZSTD]
    assert cache.max_batch_total_size_bytes == 4 * 1024 * 1024 - 64 * 1024
    assert cache.symlink_absolute_path_strategy == re_pb2.SymlinkAbsolutePathStrategy.ALLOWED
    assert cache.split_blob_support
    assert cache.splice_blob_support
    assert cache.fast_cdc_2020_params.avg_chunk_size_bytes == 512 * 1024
    assert cache.max_cas_blob_size_bytes == 0
    assert execution.exec_enabled
    assert execution.digest_function in execution.digest_functions
    assert list(execution.supported_node_properties) == ["mtime", "unix_mode"]
    (priorities,) = execution.execution_priority_capabilities.priorities
    assert priorities.min_priority < 0 < priorities.max_priority
    assert (found.low_api_version.major, found.low_api_version.minor) == (2, 0)
    assert (found.high_api_version.major, found.high_api_version.minor) == (2, 12)


def test_a_cache_says_nothing_of_execution() -> None:
    config = CapabilitiesConfig(execution=False, max_blob_bytes=10, absolute_symlinks=False)
    found = server_capabilities(config, update_enabled=False)
    assert not found.HasField("execution_capabilities")
    assert not found.cache_capabilities.action_cache_update_capabilities.update_enabled
    assert found.cache_capabilities.max_cas_blob_size_bytes == 10
    strategy = re_pb2.SymlinkAbsolutePathStrategy
    assert found.cache_capabilities.symlink_absolute_path_strategy == strategy.DISALLOWED
