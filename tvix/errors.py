"""The error tree, and the one table that maps it to gRPC, HTTP and exit codes.

    TvixError
    ├── InvalidInput            the caller's fault; the message names the field and the value
    │   ├── InvalidDigest
    │   ├── InvalidResourceName
    │   ├── InvalidDirectory
    │   └── DigestMismatch      the bytes sent are not the bytes named
    ├── OutOfRange              an offset beyond the end
    ├── NotFound                something named is not there
    │   └── BlobNotFound
    ├── AlreadyExists
    ├── Aborted                 a check in the middle of the work failed, through nobody's call here
    ├── FailedPrecondition      the system is not in the state the call needs
    │   └── MissingBlobs        an action's blobs are absent: upload them and try again
    ├── PermissionDenied
    ├── Unauthenticated
    ├── ResourceExhausted       disk, memory or quota is used up
    ├── DeadlineExceeded
    ├── Cancelled
    ├── Unsupported             a well-formed request for something we do not do
    ├── Unavailable             ours and passing: the same call may succeed later
    ├── CorruptData             stored bytes are not what their name says
    └── Internal                a fault of ours that trying again will not mend

Errors carry fields; text is made from them. Codes live in `CODES` and nowhere else: the edges
(`tvix/rpc.py`, the HTTP application, the command line) look them up with `codes_of`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tvix.cas.digest import Digest


class TvixError(Exception):
    """Base of all errors that we raise on purpose. `str(error)` is fit to show to a person."""


class InvalidInput(TvixError):
    """A request, file or argument is malformed."""

    def __init__(self, message: str, *, field: str = "", violations: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.field = field
        """The request field at fault, dotted, or empty."""
        self.violations = tuple(violations) or (((field, message),) if field else ())
        """Field and description of all that is wrong; they become BadRequest field violations."""


class InvalidDigest(InvalidInput):
    """A digest's function, hash or size is malformed."""


class InvalidResourceName(InvalidInput):
    """A ByteStream resource name or an instance name does not follow the grammar."""


class InvalidDirectory(InvalidInput):
    """A Directory or Tree is malformed or not canonical."""


class DigestMismatch(InvalidInput):
    """Data that was sent does not have the digest it was announced with."""

    def __init__(self, expected: Digest, actual: Digest) -> None:
        super().__init__(f"the data announced as {expected} is {actual}")
        self.expected = expected
        self.actual = actual


class OutOfRange(TvixError):
    """An offset lies outside the resource."""


class NotFound(TvixError):
    """A named thing is not there."""


class BlobNotFound(NotFound):
    """A blob is not in the store."""

    def __init__(self, digest: Digest) -> None:
        super().__init__(f"blob {digest} is not in the store")
        self.digest = digest


class AlreadyExists(TvixError):
    """A thing to be made is there already."""


class Aborted(TvixError):
    """The work was begun and given up, typically because what a third party sent is not what was expected."""


class FailedPrecondition(TvixError):
    """The system is not in a state in which the call can succeed."""


class MissingBlobs(FailedPrecondition):
    """Blobs that an action needs are absent; carries all of them, not only the first."""

    def __init__(self, digests: Iterable[Digest]) -> None:
        self.digests = tuple(sorted(digests))
        count = len(self.digests)
        shown = ", ".join(str(digest) for digest in self.digests[:3])
        more = f" and {count - 3} more" if count > 3 else ""
        super().__init__(f"{count} blob(s) missing from the store: {shown}{more}")


class PermissionDenied(TvixError):
    """The caller is known and may not do this."""


class Unauthenticated(TvixError):
    """The caller did not say, or not prove, who it is."""


class ResourceExhausted(TvixError):
    """Disk space, memory or a quota is used up."""


class DeadlineExceeded(TvixError):
    """Something took longer than it was allowed to."""


class Cancelled(TvixError):
    """Somebody asked for this to stop."""


class Unsupported(TvixError):
    """A well-formed request for something this server does not do."""


class Unavailable(TvixError):
    """A passing fault on our side or a peer's; `retry_seconds`, when set, says when to come back."""

    def __init__(self, message: str, *, retry_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class CorruptData(TvixError):
    """Bytes at rest or from a peer are not what their name says."""


class Internal(TvixError):
    """A fault of ours that the caller cannot mend."""


class Codes(NamedTuple):
    """How one kind of error leaves the process."""

    grpc: int
    """google.rpc.Code, which equals the number of the gRPC status."""
    http: int
    exit: int
    """Exit code of the command line; 70 and up follow sysexits."""


CODES: dict[type[TvixError], Codes] = {
    InvalidInput: Codes(3, 400, 2),
    OutOfRange: Codes(11, 416, 2),
    NotFound: Codes(5, 404, 4),
    AlreadyExists: Codes(6, 409, 1),
    Aborted: Codes(10, 502, 75),
    FailedPrecondition: Codes(9, 412, 1),
    PermissionDenied: Codes(7, 403, 77),
    Unauthenticated: Codes(16, 401, 77),
    ResourceExhausted: Codes(8, 507, 75),
    DeadlineExceeded: Codes(4, 504, 75),
    Cancelled: Codes(1, 499, 130),
    Unsupported: Codes(12, 501, 1),
    Unavailable: Codes(14, 503, 75),
    CorruptData: Codes(15, 500, 70),
    Internal: Codes(13, 500, 70),
    TvixError: Codes(2, 500, 70),
}


def codes_of(error: TvixError) -> Codes:
    """Return the codes of the nearest class of `error` in the table."""
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    raise AssertionError(f"{type(error)} is outside the tree")
