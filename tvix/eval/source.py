"""A Nix source: its text, its name, and places in it. Pure."""

from __future__ import annotations

from bisect import bisect_right

from tvix.eval.errors import Position


class Source:
    """The text of a file or of a command-line expression.

    Offsets count characters of the text, in which bytes that are not UTF-8 are surrogates. Columns count
    bytes, as Nix's do.
    """

    def __init__(self, text: str, name: str, base_directory: str) -> None:
        self.text = text
        self.name = name
        """The path of the file, or a name in «» such as «string»."""
        self.base_directory = base_directory
        """What relative paths in the source are relative to."""
        self._line_starts: list[int] | None = None

    def __repr__(self) -> str:
        return f"<Source {self.name}>"

    def line_and_column(self, offset: int) -> tuple[int, int]:
        """Return the 1-based line and column of an offset."""
        if self._line_starts is None:
            starts = [0]
            find = self.text.find
            at = find("\n")
            while at >= 0:
                starts.append(at + 1)
                at = find("\n", at + 1)
            self._line_starts = starts
        line = bisect_right(self._line_starts, offset)
        before = self.text[self._line_starts[line - 1] : offset]
        column = len(before) if before.isascii() else len(before.encode("utf-8", "surrogateescape"))
        return line, column + 1

    def position(self, offset: int) -> Position:
        """Return the place of an offset."""
        return Position(self.name, *self.line_and_column(offset))

    def line(self, number: int) -> str:
        """Return the text of a 1-based line, without its end."""
        lines = self.text.split("\n", number)
        return lines[number - 1].rstrip("\r") if number <= len(lines) else ""


def decode_source(data: bytes) -> str:
    """Return the text of a file's bytes; bytes that are not UTF-8 become surrogates."""
    return data.decode("utf-8", "surrogateescape")
