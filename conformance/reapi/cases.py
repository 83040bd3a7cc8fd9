"""The table of cases. A case has a name (its letter in the checklist, then a word), what the API says,
what the server must offer for it to apply, and a check that raises when the server does otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from conformance.reapi.client import Endpoint
from conformance.results import Skipped

Need = Literal["cache", "execution"]
Check = Callable[[Endpoint], str | None]


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    name: str
    says: str
    need: Need
    check: Check

    def __call__(self, server: Endpoint) -> str | None:
        """Run the check; Skipped when the server does not announce what it needs."""
        if self.need == "execution" and not server.capabilities.execution_capabilities.exec_enabled:
            raise Skipped("no execution is announced")
        return self.check(server)


CASES: list[Case] = []


def case(name: str, says: str, need: Need = "cache") -> Callable[[Check], Check]:
    """Add a check to the table."""

    def add(check: Check) -> Check:
        CASES.append(Case(name, says, need, check))
        return check

    return add
