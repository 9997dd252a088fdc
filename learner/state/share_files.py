"""Shares of the learner's state as files of a checkpoint: safetensors that any number of ranks reads in parts.

learner.json                      counters, shapes, and which elements lie in which file (written last, by the driver)
learner-00001-00000.safetensors   rank 1: weight, exp_avg and exp_avg_sq, float32 [n] each, a range of its part
learner-00001-rng.safetensors     rank 1: its random generators by device, uint8

Files are of bounded size, so that whoever needs a part of a share reads and verifies little more than that.

Legend: N elements of a rank's part, n of them in one file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from actors.errors import CheckpointError
from learner.state.checkpoint import WrittenFile, hashed_file, read_json, read_manifest, read_verified, write_json
from learner.state.snapshot import ROWS, Counters, Piece, Shapes, Share, check_shapes, copy_rows, plan_copies
from learner.state.storage import Storage

LEARNER, FORMAT = "learner.json", 2
FILE_BYTES = 1 << 29
DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.uint8): "U8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareFile:
    """A range of a share's elements in a file."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenShare:
    """What a rank reports of the share that it wrote."""

    rank: int
    counters: Counters
    shapes: Shapes
    pieces: tuple[Piece, ...]
    files: tuple[ShareFile, ...]
    rng: str
    """File with the rank's random generators."""
    written: Mapping[str, WrittenFile]
    """Size and hash of each file."""


def write_share(share: Share, storage: Storage, folder: str) -> WrittenShare:
    """Write a share into the folder of a checkpoint in progress.

    Raises:
        CheckpointError: a file could not be written.
    """
    num_elements = share.state_3N.shape[1]
    per_file = FILE_BYTES // (len(ROWS) * share.state_3N.itemsize)
    files, written = [], {}
    for index, start in enumerate(range(0, num_elements, per_file)):
        file = ShareFile(
            name=f"learner-{share.rank:05d}-{index:05d}.safetensors",
            start=start,
            stop=min(start + per_file, num_elements),
        )
        tensors = {kind: row[file.start : file.stop] for kind, row in zip(ROWS, share.state_3N, strict=True)}
        written[file.name] = _write_safetensors(storage, f"{folder}/{file.name}", tensors)
        files.append(file)
    rng = f"learner-{share.rank:05d}-rng.safetensors"
    written[rng] = _write_safetensors(storage, f"{folder}/{rng}", share.rng)
    return WrittenShare(
        rank=share.rank,
        counters=share.counters,
        shapes=share.shapes,
        pieces=share.pieces,
        files=tuple(files),
        rng=rng,
        written=written,
    )


def complete_state(shares: Sequence[WrittenShare], storage: Storage, folder: str) -> dict[str, WrittenFile]:
    """Write learner.json beside the shares of all ranks; returns all files of the learner's state.

    Raises:
        CheckpointError: the shares are of different steps, elements are missing, or the file could not be written.
    """
    shares = sorted(shares, key=lambda share: share.rank)
    first = shares[0]
    if any(share.counters != first.counters for share in shares):
        steps = {share.rank: share.counters.optimizer_step for share in shares}
        raise CheckpointError(f"the ranks wrote states of different steps: {steps}")
    wanted = [Piece(name=name, start=0, stop=_size(shape), offset=0) for name, shape in first.shapes.items()]
    plan_copies(wanted, [share.pieces for share in shares])
    description = {
        "format": FORMAT,
        "counters": asdict(first.counters),
        "shapes": first.shapes,
        "shares": [
            {
                "rank": share.rank,
                "rng": share.rng,
                "files": [asdict(file) for file in share.files],
                "pieces": [[piece.name, piece.start, piece.stop, piece.offset] for piece in share.pieces],
            }
            for share in shares
        ],
    }
    written = {name: file for share in shares for name, file in share.written.items()}
    return written | {LEARNER: write_json(storage, f"{folder}/{LEARNER}", description)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedFile:
    """A file of a saved share, and what is in it."""

    name: str
    pieces: tuple[Piece, ...]
    """With offsets in this file's rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedLearner:
    """A learner's state in a checkpoint."""

    storage: Storage
    folder: str
    counters: Counters
    shapes: Shapes
    files: tuple[SavedFile, ...]
    rng_files: Mapping[int, str]
    """By the rank that wrote it."""

    @classmethod
    def open(cls, storage: Storage, folder: str) -> SavedLearner:
        """Read the description of a saved state.

        Raises:
            CheckpointError: there is none, it is damaged, or of another format.
        """
        saved = read_json(storage, folder, LEARNER)
        if saved["format"] != FORMAT:
            raise CheckpointError(f"{LEARNER} has format {saved['format']}, this version reads {FORMAT}")
        return cls(
            storage=storage,
            folder=folder,
            counters=Counters(**saved["counters"]),
            shapes={name: tuple(shape) for name, shape in saved["shapes"].items()},
            files=tuple(_saved_files(saved["shares"])),
            rng_files={share["rank"]: share["rng"] for share in saved["shares"]},
        )

    def fill(self, target_3N: NDArray[np.float32], wanted: Sequence[Piece], shapes: Shapes) -> None:
        """Read the wanted pieces, verifying every file that holds some of them, and no other.

        Args:
            shapes: of the trained parameters of this model.

        Raises:
            CheckpointError: elements are missing, a file is damaged, or the state is another model's.
        """
        check_shapes(self.shapes, shapes)
        manifest = read_manifest(self.storage, self.folder)
        for file, copies in zip(self.files, plan_copies(wanted, [file.pieces for file in self.files]), strict=True):
            if copies:
                tensors = self._read(file.name, manifest)
                for kind, row in zip(ROWS, target_3N, strict=True):
                    copy_rows(copies, tensors[kind][None], row[None])

    def rng(self, rank: int) -> dict[str, NDArray[np.uint8]]:
        """The generators of this rank, or of the first one where more ranks read than wrote.

        Raises:
            CheckpointError: a file is damaged.
        """
        file = self.rng_files.get(rank, self.rng_files[min(self.rng_files)])
        return self._read(file, read_manifest(self.storage, self.folder))

    def weights(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """(name, whole float32 weight) of each trained parameter, of a checkpoint that has been verified."""
        begins = {file.name: self._begin_of_weights(file.name) for file in self.files}
        for name, shape in self.shapes.items():
            whole = np.empty(_size(shape), np.float32)
            plan = plan_copies(
                [Piece(name=name, start=0, stop=whole.size, offset=0)], [file.pieces for file in self.files]
            )
            for file, copies in zip(self.files, plan, strict=True):
                for copy in copies:
                    begin = begins[file.name] + copy.source * whole.itemsize
                    content = self.storage.read_range(
                        f"{self.folder}/{file.name}", begin, begin + copy.num_elements * whole.itemsize
                    )
                    whole[copy.target : copy.target + copy.num_elements] = np.frombuffer(content, np.float32)
            yield name, whole.reshape(shape)

    def _read(self, name: str, manifest: Mapping[str, WrittenFile]) -> dict[str, NDArray[Any]]:
        if name not in manifest:
            raise CheckpointError(f"its manifest lacks {name}")
        tensors: dict[str, NDArray[Any]] = load(read_verified(self.storage, self.folder, name, manifest[name]))
        return tensors

    def _begin_of_weights(self, name: str) -> int:
        """Offset in a file, in bytes, of the weights in it."""
        path = f"{self.folder}/{name}"
        length = int.from_bytes(self.storage.read_range(path, 0, 8), "little")
        header = json.loads(self.storage.read_range(path, 8, 8 + length))
        return 8 + length + int(header[ROWS[0]]["data_offsets"][0])


def _saved_files(shares: Iterable[Mapping[str, Any]]) -> Iterator[SavedFile]:
    for share in shares:
        pieces = [Piece(name=name, start=a, stop=b, offset=offset) for name, a, b, offset in share["pieces"]]
        for file in share["files"]:
            inside = (_cut(piece, file["start"], file["stop"]) for piece in pieces)
            yield SavedFile(name=file["name"], pieces=tuple(piece for piece in inside if piece is not None))


def _cut(piece: Piece, start: int, stop: int) -> Piece | None:
    """The part of a piece that lies in columns `start` to `stop`, with its offset from `start`."""
    begin, end = max(piece.offset, start), min(piece.offset + piece.num_elements, stop)
    if begin >= end:
        return None
    first = piece.start + begin - piece.offset
    return Piece(name=piece.name, start=first, stop=first + end - begin, offset=begin - start)


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _write_safetensors(storage: Storage, path: str, tensors: Mapping[str, NDArray[Any]]) -> WrittenFile:
    """Write vectors in the safetensors format, without a copy of them in memory."""
    header, begin = {}, 0
    for key, tensor in tensors.items():
        end = begin + tensor.nbytes
        header[key] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with hashed_file(storage, path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.data.cast("B"))
    return file.written
