"""The table of kinds: complete, and light to import. What each makes is tested in test_compose.py."""

import inspect
import subprocess
import sys

from tvix.cas import compose_kinds
from tvix.cas.compose_kinds import ACTIONS, BLOBS, ActionsConfig, BlobsConfig


def test_every_config_is_in_its_table() -> None:
    classes = [kind for _, kind in inspect.getmembers(compose_kinds, inspect.isclass)]
    for base, table in ((BlobsConfig, BLOBS), (ActionsConfig, ACTIONS)):
        kinds = {kind for kind in classes if issubclass(kind, base) and kind is not base}
        assert kinds == set(table.values())


def test_no_database_or_disk_store_is_imported_before_it_is_used() -> None:
    heavy = {"sqlalchemy", "tvix.cas.grpc_client", "tvix.cas.disk"}
    program = f"import sys, tvix.cas.compose; print(*sorted({heavy} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert printed.stdout.split() == []
