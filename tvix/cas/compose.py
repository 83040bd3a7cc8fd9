"""From configuration to stores: named tables, each of which may refer to others by name.

    [blobs.disk]
    type = "disk"
    path = "/var/lib/tvix/cas"
    [blobs.main]
    type = "cached"
    near = "disk"
    far = "grpc://cas.example:8980/main"
    [actions.main]
    type = "complete"
    inner = "sqlite:///var/lib/tvix/records.sqlite"
    blobs = "main"

Wherever a store is named, a URL may stand for a leaf: `memory:`, `file:///path` (a disk store), `grpc://…`,
`grpcs://…`, `unix:/path`, and for records `sqlite:///path`. Blobs from a peer are verified. Every mistake is
an InvalidInput that names the key. Each store is made once, however many refer to it, and closed once.

A new store is a class, a Config in compose_kinds.py, and a line in its table there.
"""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from tvix.cas.compose_kinds import ACTIONS, BLOBS, ActionsConfig, BlobsConfig, actions_from_url, blobs_from_url
from tvix.cas.interfaces import ActionCache, BlobStore
from tvix.cas.metered import StoreMetrics
from tvix.errors import InvalidInput

Document = Mapping[str, Any]
"""What a TOML file parses to."""

C = TypeVar("C", BlobsConfig, ActionsConfig)
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Composition:
    """All named stores. They are closed when the context of `compose` ends."""

    blobs: Mapping[str, BlobStore]
    actions: Mapping[str, ActionCache]


def check_document(document: Document) -> tuple[dict[str, BlobsConfig], dict[str, ActionsConfig]]:
    """Return the settings of all stores by name; InvalidInput lists every mistake, one per line.

    Does not follow references: names that do not exist, and cycles, are found by `compose`.
    """
    problems = [
        f"{key}: unknown{_suggest(key, ('blobs', 'actions'))}" for key in document if key not in ("blobs", "actions")
    ]
    blobs = _parse(document.get("blobs", {}), "blobs", BLOBS, problems)
    actions = _parse(document.get("actions", {}), "actions", ACTIONS, problems)
    if problems:
        raise InvalidInput("\n".join(problems), field=problems[0].split(":")[0])
    return blobs, actions


def _parse(tables: Any, section: str, kinds: Mapping[str, type[C]], problems: list[str]) -> dict[str, C]:
    configs: dict[str, C] = {}
    if not isinstance(tables, Mapping):
        problems.append(f"{section}: must be a table of tables, [{section}.NAME]")
        return configs
    for name, table in tables.items():
        path = f"{section}.{name}"
        if not isinstance(table, Mapping):
            problems.append(f"{path}: must be a table")
            continue
        kind = table.get("type")
        if not isinstance(kind, str) or kind not in kinds:
            said = "is missing" if kind is None else f"{kind!r} is unknown"
            problems.append(f"{path}.type: {said}; known are {', '.join(kinds)}{_suggest(kind, kinds)}")
            continue
        try:
            configs[name] = kinds[kind].model_validate({key: value for key, value in table.items() if key != "type"})
        except ValidationError as error:
            known = kinds[kind].model_fields
            problems.extend(_explain(path, known, problem) for problem in error.errors())
    return configs


def _explain(path: str, known: Collection[str], problem: Any) -> str:
    key = ".".join([path, *(str(part) for part in problem["loc"])])
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown; known are {', '.join(known)}{_suggest(str(problem['loc'][-1]), known)}"
    if problem["type"] == "missing":
        return f"{key}: is missing"
    return f"{key}: {problem['input']!r}: {problem['msg']}"


def _suggest(word: object, known: Collection[str]) -> str:
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


class Builder:
    """Makes stores as they are asked for. Handed to the Configs, which ask it for what they refer to."""

    def __init__(
        self,
        blobs: Mapping[str, BlobsConfig],
        actions: Mapping[str, ActionsConfig],
        opened: AsyncExitStack,
        metrics: StoreMetrics | None = None,
    ) -> None:
        self.opened = opened
        """Closes what a leaf opens, in the end."""
        self._metrics = metrics
        self._blob_configs = blobs
        self._action_configs = actions
        self._made: dict[str, Any] = {}
        self._making: list[str] = []

    async def blobs(self, reference: str, key: str) -> BlobStore:
        """Return the blob store of a name or URL; `key` is what refers to it, for errors."""
        if ":" in reference:
            return await _from_url(blobs_from_url(reference, self), self._path_of(key))
        config = self._look_up("blobs", self._blob_configs, reference, key)
        store: BlobStore = await self._make(f"blobs.{reference}", config, key)
        return store

    async def actions(self, reference: str, key: str) -> ActionCache:
        """Return the action cache of a name or URL; `key` is what refers to it, for errors."""
        if ":" in reference:
            return await _from_url(actions_from_url(reference, self), self._path_of(key))
        config = self._look_up("actions", self._action_configs, reference, key)
        store: ActionCache = await self._make(f"actions.{reference}", config, key)
        return store

    @property
    def metrics(self) -> StoreMetrics:
        """The metrics of all metered stores."""
        if self._metrics is None:
            self._metrics = StoreMetrics()
        return self._metrics

    @property
    def path(self) -> str:
        """The path of the table that is being made, as `blobs.main`."""
        return self._making[-1] if self._making else ""

    def _path_of(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def _look_up(self, section: str, configs: Mapping[str, C], reference: str, key: str) -> C:
        config = configs.get(reference)
        if config is None:
            path = self._path_of(key)
            known = ", ".join(configs) or "none"
            raise InvalidInput(
                f"{path}: there is no [{section}.{reference}]; there are: {known}{_suggest(reference, configs)}",
                field=path,
            )
        return config

    async def _make(self, path: str, config: BlobsConfig | ActionsConfig, key: str) -> Any:
        if path in self._made:
            return self._made[path]
        if path in self._making:
            circle = " → ".join([*self._making[self._making.index(path) :], path])
            raise InvalidInput(f"{self._path_of(key)}: stores refer to each other in a circle: {circle}", field=path)
        self._making.append(path)
        try:
            self._made[path] = await config.build(self)
        except InvalidInput as error:
            if path not in str(error):
                raise InvalidInput(f"{path}: {error}", field=error.field or path) from error
            raise
        finally:
            self._making.pop()
        return self._made[path]


async def _from_url(made: Awaitable[S], path: str) -> S:
    try:
        return await made
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}", field=path) from error


@asynccontextmanager
async def compose(document: Document, *, metrics: StoreMetrics | None = None) -> AsyncIterator[Composition]:
    """Make all stores that a document names, and close them in the end. `metrics` are those of metered stores:
    to be given by a process that makes stores more than once, since Prometheus takes each name once only.

    Raises InvalidInput for mistakes in the document, and what the stores raise when they cannot be opened.
    """
    blob_configs, action_configs = check_document(document)
    async with AsyncExitStack() as opened:
        builder = Builder(blob_configs, action_configs, opened, metrics)
        yield Composition(
            blobs={name: await builder.blobs(name, f"blobs.{name}") for name in blob_configs},
            actions={name: await builder.actions(name, f"actions.{name}") for name in action_configs},
        )


@asynccontextmanager
async def open_blobs(url: str) -> AsyncIterator[BlobStore]:
    """Open the blob store of a URL, for the command line and tests."""
    async with AsyncExitStack() as opened:
        yield await blobs_from_url(url, Builder({}, {}, opened))


def default_document(state_dir: Path) -> dict[str, Any]:
    """Return the composition of a server without configuration, on one state folder.

    Blobs: the disk store. Actions: complete( metered( cached in RAM( SQL ))).
    """
    return {
        "blobs": {"main": {"type": "disk", "path": str(state_dir / "cas")}},
        "actions": {
            "sql": {"type": "sql", "database": str(state_dir / "records.sqlite")},
            "cached": {"type": "cached", "inner": "sql", "generations": str(state_dir / "generations")},
            "metered": {"type": "metered", "inner": "cached", "name": "actions"},
            "main": {"type": "complete", "inner": "metered", "blobs": "main"},
        },
    }


@asynccontextmanager
async def default_stores(
    state_dir: Path, *, metrics: StoreMetrics | None = None
) -> AsyncIterator[tuple[BlobStore, ActionCache]]:
    """Open the blob store and the action cache of a state folder."""
    async with compose(default_document(state_dir), metrics=metrics) as composition:
        yield composition.blobs["main"], composition.actions["main"]
