"""Log lines: one event a line, `time level process message`, the message itself in key=value pairs.

All processes of a server write to the same stderr; each names itself.
"""

from __future__ import annotations

import logging
import time


class LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO front-0 call=… failed`; a traceback follows on lines of its own."""

    def __init__(self, process_name: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {process_name} %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the event's time in UTC."""
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def set_up_logging(process_name: str, level: str) -> None:
    """Send everything from `level` up to stderr; libraries only from `warning` up."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(process_name))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("tvix").setLevel(level.upper())
