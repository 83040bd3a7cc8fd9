import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.asset import ASSETS, Asset, AssetKey, Assets, check_qualifiers, check_uris
from tvix.cas.digest import Digest, digest_of, digest_to_proto
from tvix.cas.memory import MemoryBlobStore, MemoryRecordStore
from tvix.errors import InvalidInput

KEY = AssetKey("blob", "main", "sha256", "urn:x:1", ())
digests = st.binary(max_size=3).map(digest_of)
times = st.floats(0, 1e12)


@given(st.builds(Asset, digests, times, times, st.tuples(digests), st.tuples(digests, digests)))
def test_records_round_trip(asset: Asset) -> None:
    assert ASSETS.decode(ASSETS.encode(asset)) == asset


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"digest": 1}'])
def test_what_is_no_record_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        ASSETS.decode(data)


def test_keys_differ_in_every_part_and_hide_credentials() -> None:
    secret = (("http_header:Authorization", "Bearer secret"),)
    keys = [
        KEY,
        KEY._replace(kind="directory"),
        KEY._replace(instance_name=""),
        KEY._replace(function="blake3"),
        KEY._replace(uri="urn:x:2"),
        KEY._replace(qualifiers=secret),
    ]
    encoded = [ASSETS.encode_key(key) for key in keys]
    assert len(set(encoded)) == len(keys)
    assert b"secret" not in b"".join(encoded)


def test_qualifiers_are_sorted_and_unique() -> None:
    assert check_qualifiers([("b", "1"), ("a", "2")]) == (("a", "2"), ("b", "1"))
    for bad in ([("a", "1"), ("a", "1")], [("", "x")]):
        with pytest.raises(InvalidInput, match="qualifiers"):
            check_qualifiers(bad)


@pytest.mark.parametrize("uris", [[], [""], ["no-colon"], ["http:"], ["1x:y"], ["ok:y", "http://a\r\nb"]])
def test_bad_uris_are_refused(uris: list[str]) -> None:
    with pytest.raises(InvalidInput, match="uris"):
        check_uris(uris)


class Setup:
    """Assets over stores in memory, with a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.blobs = MemoryBlobStore()
        self.assets = Assets(self.blobs, MemoryRecordStore(), now=lambda: self.now)

    async def store(self, data: bytes) -> Digest:
        await self.blobs.put_many([(digest_of(data), data)])
        return digest_of(data)


async def test_what_is_pushed_is_found_by_each_uri() -> None:
    setup = Setup()
    asset = Asset(await setup.store(b"content"), 1000.0)
    other = KEY._replace(uri="urn:x:2")
    await setup.assets.push([KEY, other], asset)
    assert await setup.assets.find(KEY) == asset
    assert await setup.assets.find(other) == asset
    assert await setup.assets.find(KEY._replace(qualifiers=(("a", "b"),))) is None


async def test_content_must_be_there_first() -> None:
    setup = Setup()
    with pytest.raises(InvalidInput, match="not in the CAS"):
        await setup.assets.push([KEY], Asset(digest_of(b"absent"), 1000.0))
    assert await setup.assets.find(KEY) is None


async def test_age_and_expiry() -> None:
    setup = Setup()
    await setup.assets.push([KEY], Asset(await setup.store(b"content"), 1000.0, expires_at=1010.0))
    assert await setup.assets.find(KEY, oldest_accepted=1000.0)
    assert await setup.assets.find(KEY, oldest_accepted=1000.1) is None
    setup.now = 1010.0
    assert await setup.assets.find(KEY) is None


async def test_a_record_lives_no_longer_than_anything_it_references() -> None:
    setup = Setup()
    leaf = await setup.store(b"leaf")
    directory = re_pb2.Directory(files=[re_pb2.FileNode(name="leaf", digest=digest_to_proto(leaf))])
    root = await setup.store(directory.SerializeToString())
    blob = await setup.store(b"referenced")
    main = await setup.store(b"main")
    asset = Asset(main, 1000.0, references_blobs=(blob,), references_directories=(root,))
    await setup.assets.push([KEY], asset)
    tree_key = KEY._replace(kind="directory")
    await setup.assets.push([tree_key], Asset(root, 1000.0))
    assert await setup.assets.find(KEY) == asset
    for gone, hides_tree in ((blob, False), (main, False), (leaf, True), (root, True)):
        content = setup.blobs.blobs.pop(gone)
        assert await setup.assets.find(KEY) is None
        assert (await setup.assets.find(tree_key) is None) is hides_tree
        setup.blobs.blobs[gone] = content
    assert await setup.assets.find(KEY) == asset
