"""Checkpoints of a run: what is done of it, every few seconds, to go on from.

A checkpoint holds the stages of a run that are done, each by its name, and of each fit the state
between two chunks with the record of the way there. A run that goes on goes its whole way again,
and takes from the checkpoint what is in it; what is made quickly and follows from the rest, as
measuring and pictures do, is made anew. So it ends in the same bits.

Orbax keeps them: each is a folder that has another name until it is whole, and the newest few
stay. In it are the arrays, and JSON that says what they make up (see `packing`) with checksums of
both. One that does not add up is damaged, and the one before is taken.

Inside the block `with Checkpoints(folder): ...` every run keeps its own; elsewhere none does. Of
several processes the first writes and reads them, and tells the others what is in them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import math
import shutil
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vi_demo import mesh
from vi_demo.errors import InputError, Terminated, is_full, is_within, text_of
from vi_demo.packing import Packed, packed, unpacked

FOLDER = ".checkpoints"  # in that of the run
KEPT = 3
FORM = 1  # of what is written
HALF = "*.orbax-checkpoint-tmp*"
MOST_NAMED = 4  # differences
CHANGED = {
    "source": "the model's file has changed",
    "data": "the data have changed",
    "trusted": "the draws of the reference have changed",
    "density": "what the model computes has changed",
}

_current: ContextVar[Checkpoints | None] = ContextVar("checkpoints", default=None)


class Checkpoints:
    """The checkpoints of one run in a folder, the newest written every so many `seconds`.

    With `resume` the run goes on from the newest that is whole, or from its beginning where there
    is none. `tell` is called with what there is to say of that, a line each. On SIGTERM a last one
    is written, and `Terminated` raised.
    """

    def __init__(
        self,
        folder: str | Path,
        seconds: float = 60.0,
        resume: bool = False,
        tell: Callable[[str], Any] = warnings.warn,
    ):
        self.folder, self.seconds = Path(folder).absolute(), seconds
        self.resume, self.tell = resume, tell
        self.identity: dict | None = None
        self.parts: dict[str, Packed | Callable[[], Packed]] = {}
        self._counted: Counter = Counter()
        self._last, self._new, self._trouble = time.monotonic(), False, ""
        self._anew = self._writing = self._asked = self._main = False
        self._first = True

    def __enter__(self) -> Checkpoints:
        self._token = _current.set(self)
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._on_sigterm)
        return self

    def __exit__(self, kind, error, trace) -> None:
        _current.reset(self._token)
        try:
            if isinstance(error, Terminated) or is_within(error, Terminated):
                if self._main:  # a second one would come in the middle of it
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                raise Terminated(self._last_words()) from None
        finally:
            if self._main:
                signal.signal(signal.SIGTERM, self._before)

    def _on_sigterm(self, *_) -> None:
        if not self._writing:
            raise Terminated("terminated.")
        self._asked = True

    def _last_words(self) -> str:
        if self._new:
            self._write()
        if self._steps():
            return f"terminated; the same command with --resume goes on from {self.folder}."
        if not self._first:
            return "terminated; the first process keeps the checkpoint."
        return "terminated; there was nothing yet to keep in a checkpoint."

    # What runs tell

    def begin(self, identity: Mapping) -> None:
        """Begin the run that all these things make up, or go on with it.

        Raises `InputError` where the checkpoint there is of another one.
        """
        self.identity = json.loads(json.dumps({"form": FORM, **identity}))
        self.parts, self._counted, self._new = {}, Counter(), False
        self._first = mesh.is_first()
        steps = self._steps() if self._first else []
        self._anew = bool(steps) and not self.resume
        if self._anew:
            self.tell(f"beginning anew; --resume goes on from what {self.folder} still holds.")
        if self.resume:
            found = next(filter(None, map(self._read, reversed(steps))), None)
            words, numbers = map(mesh.told, found or (b"", b""))
            if words:
                self._take(json.loads(words), np.frombuffer(numbers, np.uint8))
            elif self._first:
                self.tell(f"beginning anew; no whole checkpoint is in {self.folder}.")
        self._last = time.monotonic()

    def _take(self, known: dict, numbers: np.ndarray) -> None:
        other = differences(known["identity"], self.identity)[:MOST_NAMED]
        if named := mesh.told("; ".join(other).encode()).decode():  # the first one's word
            raise InputError(
                f"{self.folder} holds a checkpoint of another run: {named}; run that one with "
                "--resume, or leave --resume out to begin this one anew."
            )
        arrays = cut(numbers, known["arrays"])
        self.parts = {
            name: Packed(described, list(itertools.islice(arrays, number)))
            for name, number, described in known["parts"]
        }
        if self._first:
            self.tell(f"going on from the checkpoint of {known['made']}.")

    def once(self, name: str, make: Callable[[], Any]):
        """What a stage has made: taken from the checkpoint, or made now and kept."""
        if isinstance(part := self.parts.get(name), Packed):
            with contextlib.suppress(ValueError):
                return unpacked(part)
        made = make()
        self.keep(name, lambda: packed(made))
        return made

    def of_fit(self, name: str) -> Track:
        """The track of the next fit of that name: fits come in the same order each time."""
        self._counted[name] += 1
        return Track(self, f"{name}, {self._counted[name]}")

    def keep(self, name: str, part: Callable[[], Packed]) -> None:
        """Have a part in the checkpoints from now on, and write one if it is time."""
        self.parts[name], self._new = part, self._first
        if self._first and time.monotonic() - self._last >= self.seconds:
            self._write()

    def remove(self) -> None:
        """Leave none behind: the run is saved."""
        if self._first:
            shutil.rmtree(self.folder, ignore_errors=True)

    # What is on the disk

    @functools.cached_property
    def _manager(self):
        import orbax.checkpoint as ocp  # takes half a second, and is not wanted elsewhere

        several = jax.process_count() > 1
        alone = ocp.options.MultiprocessingOptions(active_processes={0} if several else None)
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
            save_root_metadata=False,
            create=False,
            multiprocessing_options=alone,
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def _steps(self) -> list[int]:
        if not (self._first and self.folder.is_dir()):
            return []
        with hushed():
            return sorted(self._manager.all_steps())

    def _write(self) -> None:
        """Write one; where that fails, say so, and leave all as it was before."""
        self._writing = True
        try:
            with hushed():
                self._save()
            self._trouble, self._new = "", False
        except Exception as error:  # nothing says what all may come of a disk
            why = trouble(error)
            for half in self.folder.glob(HALF):
                shutil.rmtree(half, ignore_errors=True)
            self.__dict__.pop("_manager", None)
            if why != self._trouble:
                self.tell(f"no checkpoint could be written to {self.folder} ({why}); going on.")
            self._trouble = why
        finally:
            self._last, self._writing = time.monotonic(), False
        if self._asked:
            self._asked = False
            raise Terminated("terminated.")

    def _save(self) -> None:
        import orbax.checkpoint as ocp

        parts = {k: part() if callable(part) else part for k, part in self.parts.items()}
        others = self._manager.all_steps() if self._anew else []
        arrays = [x for part in parts.values() for x in part.arrays]
        # As one array: it is quicker than hundreds, and where one of these is damaged Orbax goes
        # away while the others are still being read, which is told on the terminal. None is empty.
        numbers = np.frombuffer(b"".join([*(x.tobytes() for x in arrays), b"."]), np.uint8)
        known = {
            "identity": self.identity,
            "made": time.strftime("%Y-%m-%d %H:%M:%S"),
            "parts": [[name, len(part.arrays), part.description] for name, part in parts.items()],
            "arrays": [[str(x.dtype), x.shape] for x in arrays],
            "sha256": hashlib.sha256(numbers).hexdigest(),
        }
        self._manager.save(
            (self._manager.latest_step() or 0) + 1,
            args=ocp.args.Composite(
                numbers=ocp.args.ArraySave(numbers),
                parts=ocp.args.JsonSave({"checkpoint": known, "sha256": checksum(known)}),
            ),
        )
        for step in others:  # only now: until then there was nothing else
            if step in self._manager.all_steps():
                self._manager.delete(step)
        self._anew = False

    def _read(self, step: int) -> tuple[bytes, bytes] | None:
        """The JSON and the bytes of all arrays in one of them; None if it is damaged."""
        import orbax.checkpoint as ocp

        try:
            with hushed():
                read = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        numbers=ocp.args.ArrayRestore(
                            restore_args=ocp.RestoreArgs(restore_type=np.ndarray)
                        ),
                        parts=ocp.args.JsonRestore(),
                    ),
                )
            known = read.parts["checkpoint"]
            if checksum(known) != read.parts["sha256"]:
                raise ValueError("its words are not those that were written")
            if hashlib.sha256(read.numbers).hexdigest() != known["sha256"]:
                raise ValueError("its numbers are not those that were written")
        except Exception as error:  # nothing says what all a damaged one can raise
            why = text_of(error).partition(". ")[0][:100]
            self.tell(f"the checkpoint {self.folder / str(step)} is damaged and left out ({why}).")
            return None
        return json.dumps(known).encode(), read.numbers.tobytes()


class Track:
    """Where one fit is: what the loop that drives it takes up, and tells between two chunks."""

    def __init__(self, kept: Checkpoints | None, name: str):
        self._kept, self._name = kept, name
        self._before: dict[str, float] = {}

    def taken_up(self, first) -> tuple[Any, list[dict]]:
        """The state to go on from and the record until there; the `first` where all begins."""
        part = self._kept.parts.get(self._name) if self._kept else None
        if isinstance(part, Packed):
            like = {"state": first, "record": None, "seconds": None}
            with contextlib.suppress(ValueError):
                found = unpacked(part, like)
                self._before = found["seconds"]
                return found["state"], [found["record"]]
        return first, []

    def in_all(self, seconds: dict[str, float]) -> dict[str, float]:
        """Those seconds and those that were spent before it was taken up."""
        return {k: v + self._before.get(k, 0.0) for k, v in seconds.items()}

    def keep(self, state, record: list[dict], seconds: dict[str, float]) -> None:
        """Keep where the fit is now, with its record so far."""
        if self._kept is None:
            return
        rows, seconds = tuple(record), self.in_all(seconds)

        def pack():
            joined = {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}
            return packed({"state": state, "record": joined, "seconds": seconds})

        self._kept.keep(self._name, pack)


def begin(identity: Callable[[], Mapping]) -> None:
    """Begin the run of this identity, or go on with it, where its checkpoints are kept."""
    if (here := _current.get()) is not None:
        here.begin(identity())


def kept() -> bool:
    """Whether checkpoints are kept here."""
    return _current.get() is not None


def once(name: str, make: Callable[[], Any]):
    """What a stage of that name makes: once in a run, however often that is interrupted."""
    return make() if (here := _current.get()) is None else here.once(name, make)


def of_fit(name: str) -> Track:
    """The track of a fit, which leads nowhere where no checkpoints are kept."""
    return Track(None, name) if (here := _current.get()) is None else here.of_fit(name)


# What makes a run the same


def differences(then: Mapping, now: Mapping) -> list[str]:
    """In what a run differs from another, in words."""
    said = []
    for name in {**now, **then}:
        old, new = then.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            said += differences(old, new)
        else:
            said.append(CHANGED.get(name, f"{name} was {shown(old)} and is {shown(new)}"))
    return said


def shown(value) -> str:
    """A setting as people write it."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not given" if value is None else str(value)


def cut(numbers: np.ndarray, arrays: list) -> Iterator[np.ndarray]:
    """The arrays of these types and shapes whose bytes follow each other."""
    begin = 0
    for name, shape in arrays:
        dtype = np.dtype(name)
        end = begin + dtype.itemsize * math.prod(shape)
        yield numbers[begin:end].copy().view(dtype).reshape(shape)
        begin = end


def checksum(known: Mapping) -> str:
    """A checksum of what JSON can say."""
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def trouble(error: Exception) -> str:
    """Why something could not be written, in a few words."""
    if is_full(error):
        return "no space left on the disk"
    return text_of(error).partition(". ")[0][:100]


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Orbax without what it logs and warns of: failures are told here, in a line."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
