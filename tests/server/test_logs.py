"""Log lines."""

import logging

from tvix.server.logs import LineFormatter, set_up_logging


def test_a_line_names_time_level_and_process() -> None:
    record = logging.LogRecord("tvix.x", logging.WARNING, "", 0, "worker=%s lost", ("w1",), None)
    record.created, record.msecs = 1_700_000_000.5, 500.0
    assert LineFormatter("front-0").format(record) == "2023-11-14T22:13:20.500Z WARNING front-0 worker=w1 lost"


def test_libraries_are_only_heard_when_something_is_wrong() -> None:
    root, handlers, level = logging.getLogger(), logging.getLogger().handlers[:], logging.getLogger().level
    try:
        set_up_logging("test", "debug")
        assert logging.getLogger("tvix.anything").isEnabledFor(logging.DEBUG)
        assert not logging.getLogger("aiohttp").isEnabledFor(logging.INFO)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("tvix").setLevel(logging.NOTSET)
