"""Models and data sets of the Hugging Face Hub, by name. Nothing else here knows `huggingface_hub`.

The driver resolves a name once, to a commit, and downloads that commit: from then on the setting is a path of the hub's
cache, `.../models--ORG--NAME/snapshots/COMMIT`, which holds the name and the pinned revision. A process on a node
without that path downloads the same commit into its own cache (`local_copy`).
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from actors.data.hub_files import choose_files
from actors.errors import DataError

Kind = Literal["model", "dataset"]
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""At the top of a repository: no code, no pickles, no second set of weights in a folder."""
FOLDERS = ("configs", "models", "checkpoints", "runs", "data", "weights", "export", "exports")
"""First parts of paths in a project, which are no owners of repositories."""
_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_SNAPSHOT = re.compile(r"(?P<root>.*/(?P<kind>model|dataset)s--(?P<id>[^/]+))/snapshots/(?P<commit>[0-9a-f]{40})/?")
SCHEMES = ("hf://", "https://huggingface.co/")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubName:
    """A repository at a revision, or a part of one."""

    kind: Kind
    id: str
    """`org/name`."""
    revision: str | None = None
    """Branch, tag or commit; None is the default branch."""
    part: str = ""
    """File, folder, pattern or split of a data set."""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.id}{revision}" if self.kind == "model" else f"hf://{self.id}{revision}"


def looks_like_hub_id(path: str) -> bool:
    """Whether a path may be meant as `org/name` or `org/name@revision`, rather than as a folder of the project."""
    return re.fullmatch(rf"{_NAME}(@.+)?", path) is not None and path.partition("/")[0] not in FOLDERS


def parse_name(kind: Kind, text: str) -> HubName | None:
    """The hub name in a setting: `hf://org/name[@revision][/part]` or, for a model, also `org/name[@revision]`.

    None for a path.

    Raises:
        ValueError: it begins as one but is none, or names a repository of another kind.
    """
    is_bare = kind == "model" and not Path(text).exists() and looks_like_hub_id(text)
    if not is_bare and not text.startswith(SCHEMES):
        return None
    from huggingface_hub import parse_hf_uri

    named = parse_hf_uri(f"hf://{text}" if is_bare else text)
    says_kind = re.match(r"(hf://|https://huggingface\.co/)(models|datasets|spaces|kernels|buckets)/", text) is not None
    if says_kind and named.type != kind:
        raise ValueError(f"{text!r} is invalid: names a {named.type}; give a {kind}, as in hf://{kind}s/ORG/NAME")
    if kind == "model" and named.path_in_repo:
        raise ValueError(f"{text!r} is invalid: names a part of a model; give hf://{named.id}")
    return HubName(kind=kind, id=named.id, revision=named.revision, part=named.path_in_repo)


def snapshot_of(path: str) -> HubName | None:
    """The repository and commit that a path of the hub's cache belongs to, on whatever machine; None for others."""
    found = _SNAPSHOT.match(path)
    if found is None:
        return None
    kind: Kind = "model" if found["kind"] == "model" else "dataset"
    name = found["id"].replace("--", "/")
    return HubName(kind=kind, id=name, revision=found["commit"], part=path[found.end() :])


def model_name(path: str) -> str:
    """What people call the model at a path: `org/name` of one in the hub's cache, else the name of its folder."""
    found = snapshot_of(path)
    return found.id if found else Path(path).name


def blobs_of(folder: Path) -> Path | None:
    """Where the files of a snapshot in the hub's cache lie, to which it has links; None for other folders."""
    found = _SNAPSHOT.match(f"{folder}/")
    return Path(found["root"]) / "blobs" if found else None


def local_copy(path: str) -> str:
    """The path itself; of the hub's cache, the same commit, complete: what this machine lacks of it is downloaded.

    Raises:
        DataError: it cannot be had.
    """
    found, name = _SNAPSHOT.match(path), snapshot_of(path)
    if found is None or name is None:
        return path
    if not Path(path).exists() and not glob.glob(path):
        return download(name)
    cache = Path(found["root"]).parent
    # Older versions of the library keep no list of a repository's files: then nobody can tell what is missing.
    has_list = (Path(found["root"]) / "trees" / f"{name.revision}.json").is_file()
    return download(name, cache=cache) if has_list else path


def pin(name: HubName, paths: Sequence[str]) -> HubName:
    """The name at the commit that one of these paths has of it, where it asks for no revision."""
    known = (snapshot_of(path) for path in paths)
    same = (found.revision for found in known if found and (found.kind, found.id) == (name.kind, name.id))
    return name if name.revision else replace(name, revision=next(same, None))


def download(name: HubName, *, out: Path | None = None, cache: Path | None = None) -> str:
    """Download a model or one split of a data set, or find it in the cache.

    Args:
        out: folder for plain files, instead of the cache.
        cache: the cache, unless it is that of this machine's settings.

    Returns:
        Its folder, or the path for `Dataset.open`; with the commit in it, unless `out` is given.

    Raises:
        DataError: in one line, what is wrong and how to get it.
    """
    from huggingface_hub import HfApi, snapshot_download

    with _in_one_line(name), _without_bars(cache is not None or not sys.stderr.isatty()):
        commit = HfApi().resolve_revision(name.id, repo_type=name.kind, revision=name.revision, cache_dir=cache)
        wanted, unwanted, part = list(MODEL_FILES), ["*/*"], ""
        if name.kind == "dataset":
            chosen = choose_files(str(name), _list_files(name, commit.resolved, cache), name.part.strip("/"))
            wanted, unwanted, part = [glob.escape(file) for file in chosen.files], [], chosen.path
        folder = snapshot_download(
            name.id,
            repo_type=name.kind,
            revision=commit,
            allow_patterns=wanted,
            ignore_patterns=unwanted,
            local_dir=out,
            cache_dir=cache,
        )
    return os.path.join(folder, part) if part else str(folder)


def _list_files(name: HubName, commit: str, cache: Path | None) -> list[str]:
    """Paths of all files of a data set."""
    from huggingface_hub import HfApi, RepoFile, get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        kept = get_cached_repo_tree(name.id, repo_type=name.kind, revision=commit, cache_dir=cache)
    except CachedRepoTreeNotFoundError:
        tree = HfApi().list_repo_tree(name.id, recursive=True, revision=commit, repo_type=name.kind)
        kept = [file for file in tree if isinstance(file, RepoFile)]
    return [file.path for file in kept]


@contextlib.contextmanager
def _without_bars(is_quiet: bool) -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if not is_quiet or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextlib.contextmanager
def _in_one_line(name: HubName) -> Iterator[None]:
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{'datasets/' if name.kind == 'dataset' else ''}{name.id}"
    again = "give the command again: it goes on where it stopped"
    try:
        yield
    except errors.GatedRepoError as error:
        raise DataError(f"{name} is gated: accept its terms at {page}, then `hf auth login` or set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(
            f"{name} is no {name.kind} that you can read at {constants.ENDPOINT}: check the name; if it is private, "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(f"{name.id} has no revision {name.revision!r}: {page}/commits/main lists them") from error
    except (errors.RevisionResolutionError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise DataError(f"{name} {_not_here(name)}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise DataError(f"{name} was refused by {constants.ENDPOINT} (HTTP {status}): {again}") from error
    except errors.HTTPError as error:  # type: ignore[attr-defined]
        raise DataError(f"the download of {name} broke ({error or type(error).__name__}): {again}") from error
    except OSError as error:
        raise DataError(f"{name} cannot be downloaded: {' '.join(str(error).split())}; {again}") from error


def _not_here(name: HubName) -> str:
    """Why a repository is neither in the cache nor to be had."""
    from huggingface_hub import constants

    kind = "--repo-type dataset " if name.kind == "dataset" else ""
    revision = f" --revision {name.revision}" if name.revision else ""
    where = f"is not, or not completely, in the cache {constants.HF_HUB_CACHE}"
    if constants.is_offline_mode():
        remedy = f"unset it, or run `hf download {kind}{name.id}{revision}` first"
        return f"{where}, and HF_HUB_OFFLINE is set: {remedy}"
    return f"{where}, and {constants.ENDPOINT} cannot be reached: check the network or HF_ENDPOINT"
