"""Gets what a config names of the Hugging Face Hub, once, on the driver."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from actors.errors import DataError
from actors.hub import HubName, Kind, download, local_copy, parse_name, pin, snapshot_of
from configs.schema import Config

NAMES = ("model.path", "data.train", "data.heldout")
"""Settings that may name something of the hub."""


def name_in(key: str, kind: Kind, path: str) -> HubName | None:
    """The name of the Hub in a setting; None for a path. ValueError with the setting where it is malformed."""
    try:
        return parse_name(kind, path)
    except ValueError as error:
        raise ValueError(f"{key}={error}") from error


def fetch_named(
    config: Config, *, keys: Collection[str] = NAMES, earlier: Config | None = None, say: Callable[[str], None]
) -> Config:
    """The config with model and data sets as paths of this machine; names of the hub are downloaded.

    A path of the hub's cache holds the commit: a config that was saved with it goes on with the same commit anywhere.

    Args:
        config: with resolved paths.
        keys: what the command needs; nothing else is downloaded.
        earlier: the saved config of the run that is resumed: a name without a revision stands for the commit in it.

    Raises:
        DataError: in one line, what cannot be had and how to get it.
        ValueError: a name is malformed. Both name the setting.
    """

    def fetched(key: str, kind: Kind, path: str, pinned: tuple[str, ...]) -> str:
        if key not in keys:
            return path
        name = name_in(key, kind, path)
        try:
            if name is None:
                return local_copy(path)
            found = download(pin(name, pinned))
        except DataError as error:
            raise DataError(f"{key}={path!r}: {error}") from error
        commit = snapshot_of(found)
        say(f"{key}: {path} is commit {commit.revision if commit else 'unknown'} in {found}")
        return found

    models = (earlier.model.path,) if earlier else ()
    sets = (earlier.data.train, earlier.data.heldout) if earlier else ()
    data = config.data
    return replace(
        config,
        model=replace(config.model, path=fetched("model.path", "model", config.model.path, models)),
        data=replace(
            data,
            train=fetched("data.train", "dataset", data.train, sets),
            heldout=fetched("data.heldout", "dataset", data.heldout, sets),
        ),
    )
