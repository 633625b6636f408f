"""Rows of a table that stay on the disk: read in pieces when they are wanted, and ahead of that.

A table is a number of pieces in order, such as the row groups of a Parquet file. Full looks walk
through its rows; minibatches take whole pieces in an order that each epoch shuffles. Grain reads
what comes next while this is computed with.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LARGE = 2**30  # bytes of numbers that are still held in memory, unless told otherwise
PIECE = 2**17  # rows that are read together, where the file leaves that open
HEAD = 2**16  # rows that stand for the others where a model is looked at
MOST = 2**26  # bytes of a batch, more only where one piece has more
AHEAD = 1  # pieces that are read ahead
LOOKED_INTO, ENDS = 16, 2**16  # files of a table, and bytes at both ends, that tell it from others
EPOCHS = 2**20  # without end, as it were: Python counts no longer lengths


@dataclass(frozen=True)
class Table:
    """Rows on the disk: `ends` of the pieces, and what reads one of them.

    `read(begin, end, piece)` gives arrays by argument, checked, of the rows of that piece.
    """

    name: str
    ends: np.ndarray
    read: Callable[[int, int, int], dict[str, np.ndarray]]
    stamp: str  # of the file: another one has another

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __repr__(self) -> str:
        return f"Table({self.name}, {len(self)} rows, {self.stamp})"

    def piece(self, k: int) -> dict[str, np.ndarray]:
        """The rows of one piece."""
        return self.read(int(self.ends[k - 1]) if k else 0, int(self.ends[k]), k)

    def pieces(self, begin: int, end: int) -> range:
        """The pieces that some rows are in."""
        first, last = np.searchsorted(self.ends, [begin, end - 1], side="right")
        return range(int(first), int(last) + 1)

    @cached_property
    def head(self) -> dict[str, np.ndarray]:
        """The first rows."""
        end = min(HEAD, len(self))
        return self.joined({k: self.piece(k) for k in self.pieces(0, end)}, 0, end)

    def joined(self, held: Mapping[int, dict], begin: int, end: int) -> dict[str, np.ndarray]:
        """Some rows, of the pieces that they are in."""
        parts = []
        for k, piece in held.items():
            first = int(self.ends[k - 1]) if k else 0
            rows = slice(max(begin - first, 0), max(end - first, 0))
            parts.append({name: v[rows] for name, v in piece.items()})
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    @property
    def row_bytes(self) -> int:
        """Bytes of the numbers of one row."""
        return sum(v.nbytes // len(v) for v in self.head.values())

    def together(self, rows: int, ranges: list[tuple[int, int]]) -> int:
        """How many pieces make up a batch of about so many rows, of any of these ranges."""
        rows = min(rows, MOST // self.row_bytes)
        fewest = min(len(self.pieces(begin, end)) for begin, end in ranges)
        return min(max(1, rows // self.longest), fewest)

    @property
    def longest(self) -> int:
        """How many rows the longest piece has."""
        return int(np.diff(self.ends, prepend=0).max())

    def check(self, first: int = 0, step: int = 1) -> None:
        """Read pieces once, for what is wrong with a row to be told before it is computed with."""
        for k in range(first, len(self.ends), step):
            self.piece(k)


@dataclass(frozen=True)
class Column:
    """One argument of a model that has a row for each row of a table."""

    table: Table
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """All rows, and the shape of each."""
        return (len(self.table), *self.table.head[self.name].shape[1:])

    def __len__(self) -> int:
        return len(self.table)


def wanted(rows: int, size: int, stream: bool | None) -> bool:
    """Whether rows stay on the disk, of so many bytes: as asked for, or where they are large."""
    return rows > HEAD and (size > LARGE if stream is None else stream)


def stamp(file: Path) -> str:
    """What tells a file from others, and from what it was before."""
    files = [file] if file.is_file() else sorted(p for p in file.rglob("*") if p.is_file())
    told = hashlib.sha256(
        repr([(str(p.relative_to(file)), p.stat().st_size) for p in files]).encode()
    )
    for some in files[:: max(1, len(files) // LOOKED_INTO)]:
        with some.open("rb") as opened:
            told.update(opened.read(ENDS))
            opened.seek(max(0, some.stat().st_size - ENDS))
            told.update(opened.read(ENDS))
    return told.hexdigest()


def columns(table: Table) -> dict[str, Column]:
    """The arguments that a table gives."""
    return {name: Column(table, name) for name in table.head}


def table_of(data: Mapping[str, Any]) -> Table | None:
    """The table that arguments of a model are columns of, if there is one."""
    return next((v.table for v in data.values() if isinstance(v, Column)), None)


class Walk:
    """Rows of a range in parts, one after another, while the next pieces are being read.

    A part that is out of order is read all the same. Several threads may ask.
    """

    def __init__(self, table: Table, begin: int, end: int):
        self._table, self._pieces = table, table.pieces(begin, end)
        self._held: dict[int, dict[str, np.ndarray]] = {}
        self._next = -1
        self._lock = threading.Lock()

    def __call__(self, begin: int, end: int) -> dict[str, np.ndarray]:
        """The rows from begin to end."""
        with self._lock:
            wanted = {k: self._piece(k) for k in self._table.pieces(begin, end)}
            # The one before stays: a device that reads the same may not be that far.
            self._held = {k: v for k, v in self._held.items() if k == min(wanted) - 1} | wanted
            return self._table.joined(wanted, begin, end)

    def _piece(self, k: int) -> dict[str, np.ndarray]:
        if k in self._held:
            return self._held[k]
        if k != self._next:
            self._coming = ahead(self._table, self._pieces, k - self._pieces[0])
        self._next = k + 1 if k + 1 in self._pieces else self._pieces[0]
        return next(self._coming)


class Batch(NamedTuple):
    """Rows that some steps take theirs from: arrays of one length, of which `number` count.

    Batches of one epoch are not equally long: `share` is their length by the mean.
    """

    rows: dict[str, np.ndarray]
    number: np.ndarray
    share: np.ndarray


class Batches:
    """Batches of a range of a table, so many pieces `together`, by their place in the order.

    Each epoch has all pieces in an order of its own, which the seed decides. The one at 0, before
    all epochs, is of the longest pieces.
    """

    def __init__(self, table: Table, begin: int, end: int, together: int, seed: int):
        self._pieces = table.pieces(begin, end)
        self._length, self._table, self._together = together * table.longest, table, together
        self._range = begin, end
        self._mean = (end - begin) * together / len(self._pieces)
        order = pieces(table, self._pieces, self._cut).seed(seed).shuffle().repeat(EPOCHS)
        self._coming = iter(prefetched(order.batch(together, batch_fn=self._joined), 1))
        self._next = 1

    def __call__(self, i: int) -> Batch:
        """The i-th batch of all epochs, from 1 on."""
        if i == 0:
            lengths = np.diff(np.clip(self._table.ends, *self._range), prepend=self._range[0])
            longest = sorted(self._pieces, key=lambda k: -lengths[k])[: self._together]
            return self._joined([*map(self._cut, longest)])
        if i != self._next:
            self._coming.set_state({"next_index": i - 1})
        self._next = i + 1
        return next(self._coming)

    def _cut(self, k: int) -> dict[str, np.ndarray]:
        """Those rows of a piece that are in the range."""
        return self._table.joined({k: self._table.piece(k)}, *self._range)

    def _joined(self, parts) -> Batch:
        number = sum(map(rows_of, parts))

        def whole(arrays):
            joined = np.empty((self._length, *arrays[0].shape[1:]), arrays[0].dtype)
            np.concatenate(arrays, out=joined[:number])
            joined[number:] = arrays[0][0]
            return joined

        rows = {name: whole([part[name] for part in parts]) for name in parts[0]}
        return Batch(rows, np.array([number]), np.array([number / self._mean]))


def rows_of(part: Mapping[str, np.ndarray]) -> int:
    """How many rows there are."""
    return len(next(iter(part.values())))


class Source:
    """What Grain reads pieces from."""

    def __init__(self, numbers: range, read: Callable[[int], dict[str, np.ndarray]]):
        self._numbers, self._read = numbers, read

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, i) -> dict[str, np.ndarray]:
        return self._read(self._numbers[int(i)])


def pieces(table: Table, numbers: range, read: Callable | None = None):
    """Grain's data set of some pieces of a table."""
    import grain  # takes a while, and is not wanted elsewhere

    return grain.MapDataset.source(Source(numbers, read or table.piece))


def prefetched(dataset, number: int):
    """A data set that is read ahead."""
    import grain

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=number)
    return dataset.to_iter_dataset(options)


def ahead(table: Table, numbers: range, first: int):
    """Pieces in order for ever, from the first on, read ahead."""
    coming = iter(prefetched(pieces(table, numbers).repeat(EPOCHS), AHEAD))
    coming.set_state({"next_index": first})
    return coming
