import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvix.cas.asset_fetch import FetchConfig, Fetcher, plan_fetch
from tvix.cas.digest import digest_of
from tvix.cas.memory import MemoryBlobStore
from tvix.errors import Aborted, InvalidInput, NotFound, PermissionDenied


def sri(algorithm: str, data: bytes) -> str:
    return f"{algorithm}-{base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"


def test_plans() -> None:
    plan = plan_fetch(
        (
            ("bazel.canonical_id", "id"),
            ("checksum.sri", f"{sri('sha256', b'a')}?option {sri('sha512', b'b')} unknown-AAAA"),
            ("http_header:A", "all"),
            ("http_header_url:1:B", "one"),
            ("resource_type", "application/zip"),
        )
    )
    assert [algorithm for algorithm, _ in plan.checksums] == ["sha256", "sha512"]
    assert plan.headers_of(0) == {"A": "all"}
    assert plan.headers_of(1) == {"A": "all", "B": "one"}


def test_all_that_is_unsupported_is_named() -> None:
    with pytest.raises(InvalidInput) as caught:
        plan_fetch((("directory", "x"), ("vcs.branch", "main")))
    assert caught.value.violations == (
        ("qualifiers.name", '"directory" not supported'),
        ("qualifiers.name", '"vcs.branch" not supported'),
    )


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_qualifier_is_planned_or_refused(name: str, value: str) -> None:
    for candidate in (name, f"http_header:{name}", f"http_header_url:{name}", "checksum.sri"):
        try:
            plan_fetch(((candidate, value),))
        except InvalidInput as error:
            assert error.violations  # noqa: PT017


async def test_files_only_if_allowed(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("origin")
    (folder / "x").write_bytes(b"content")
    blobs = MemoryBlobStore()
    uri = f"file://{folder}/x"
    refusing = Fetcher(blobs)
    with pytest.raises(PermissionDenied, match="not allowed"):
        await refusing.fetch([uri], plan_fetch(()), "sha256", 5)
    allowing = Fetcher(blobs, FetchConfig(allow_files=True))
    assert await allowing.fetch(["urn:skipped", uri], plan_fetch(()), "blake3", 5) == (
        uri,
        digest_of(b"content", "blake3"),
    )
    wrong = plan_fetch((("checksum.sri", sri("sha256", b"other")),))
    with pytest.raises(Aborted, match="does not have the checksum"):
        await allowing.fetch([uri], wrong, "sha256", 5)
    with pytest.raises(NotFound):
        await allowing.fetch([f"file://{folder}/absent"], plan_fetch(()), "sha256", 5)
    assert list(blobs.blobs) == [digest_of(b"content", "blake3")]
    await refusing.close()
    await allowing.close()
