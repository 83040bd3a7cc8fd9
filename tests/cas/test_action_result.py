import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.action_result import check_action_result
from tvix.cas.digest import digest_of, digest_to_proto
from tvix.errors import InvalidInput

ACTION = digest_of(b"action")
GOOD = digest_to_proto(digest_of(b"x"))


def result_with_path(path: str) -> re_pb2.ActionResult:
    return re_pb2.ActionResult(output_files=[re_pb2.OutputFile(path=path, digest=GOOD)])


@pytest.mark.parametrize(
    ("path", "working_directory"),
    [("a", ""), ("a/b/c", ""), ("../a", "w"), ("../../a", "v/w"), ("a/../b", ""), ("./a", ""), ("w/../../a", "x")],
)
def test_paths_below_the_root_are_good(path: str, working_directory: str) -> None:
    check_action_result(result_with_path(path), ACTION, working_directory)


@pytest.mark.parametrize(
    ("path", "working_directory"),
    [
        ("", ""),
        ("/a", ""),
        ("..", ""),
        ("../a", ""),
        ("../../a", "w"),
        ("a/../../b", ""),
        ("..", "./"),
        ("a/../..", ""),
    ],
)
def test_paths_outside_are_bad(path: str, working_directory: str) -> None:
    with pytest.raises(InvalidInput, match=r"output_files\[0\]\.path"):
        check_action_result(result_with_path(path), ACTION, working_directory)


def test_digests_are_of_the_actions_function() -> None:
    blake3 = digest_to_proto(digest_of(b"x", "md5"))
    with pytest.raises(InvalidInput, match="stdout_digest"):
        check_action_result(re_pb2.ActionResult(stdout_digest=blake3), ACTION, "")
    check_action_result(re_pb2.ActionResult(stdout_digest=blake3), digest_of(b"action", "md5"), "")
