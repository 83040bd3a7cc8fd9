"""The table of cases: names, choice, expectations."""

from __future__ import annotations

import hashlib
from pathlib import Path

from conformance.reapi import suite
from conformance.reapi.client import digest_of, directory_of, fresh, key


def test_names_are_unique_and_every_letter_of_the_checklist_is_there() -> None:
    names = [case.name for case in suite.chosen(())]
    assert len(names) == len(set(names))
    assert set("abcdefghijklmno") <= {name.partition(".")[0] for name in names}
    assert all(case.says for case in suite.chosen(()))


def test_cases_are_chosen_by_name_or_letter() -> None:
    assert [case.name for case in suite.chosen(("f",))] == ["f.tree", "f.omission", "f.pages", "f.large"]
    assert [case.name for case in suite.chosen(("x.cancel", "health"))] == ["health", "x.cancel"]


def test_expectations_are_read_with_their_reasons(tmp_path: Path) -> None:
    path = tmp_path / "expected"
    path.write_text("# theirs\na.read-names: lenient\n\nf.large : one message   # as configured\n")
    assert suite.read_expectations(path) == {"reapi/a.read-names": "lenient", "reapi/f.large": "one message"}


def test_fresh_bytes_have_the_size_asked_for_and_differ() -> None:
    for size in (1, 32, 33, 999, 1000, 100_000):
        assert len(fresh(size)) == size
        assert size < 16 or fresh(size) != fresh(size)


def test_directories_are_canonical() -> None:
    digest = digest_of(b"x")
    made = directory_of({"b": digest, "a": digest}, {"d": digest, "c": digest}, {"f": "x", "e": "y"}, ["b"])
    assert [node.name for node in made.files] == ["a", "b"]
    assert [node.is_executable for node in made.files] == [False, True]
    assert [node.name for node in made.directories] == ["c", "d"]
    assert [node.name for node in made.symlinks] == ["e", "f"]


def test_digests_are_sha256() -> None:
    assert key(digest_of(b"abc")) == f"{hashlib.sha256(b'abc').hexdigest()}/3"
