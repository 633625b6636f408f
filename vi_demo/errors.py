"""The one error that is meant for people, and how other errors are told to them."""

from __future__ import annotations

import errno
import sysconfig
import traceback
from pathlib import Path

PACKAGE = Path(__file__).parent


class InputError(ValueError):
    """What is wrong, where, and the remedy, in one line; the command line exits with 2 on it."""


class Terminated(BaseException):
    """SIGTERM has come: all ends, and how to go on is said in a line."""


class MixedPrecision(InputError):
    """A model that mixes 32-bit numbers with 64-bit ones: in single precision it may run."""


def place_of(error: BaseException) -> str:
    """The last line of the user's own code that an exception went through, as file:line."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return f" at {Path(error.filename).name}:{error.lineno}"
    stdlib, packages = sysconfig.get_path("stdlib"), {"site-packages", "dist-packages"}
    theirs, installed = [], []
    for frame in traceback.extract_tb(error.__traceback__):
        if PACKAGE in Path(frame.filename).parents and "models" not in Path(frame.filename).parts:
            continue
        if packages & set(Path(frame.filename).parts):
            installed.append(frame)
        elif not frame.filename.startswith(("<", stdlib)):
            theirs.append(frame)
    # A model that is itself installed, a bundled one say, is the first of the installed files.
    frames = theirs or installed[:1]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def text_of(error: BaseException) -> str:
    """What an exception says, in one line."""
    text = (error.msg or "") if isinstance(error, SyntaxError) else str(error)
    return " ".join(text.split())[:300].rstrip(".;") or "no message"


def is_within(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether this came to code that JAX called, which makes an error of its own of it."""
    return type(error).__name__ == "JaxRuntimeError" and kind.__name__ in str(error)


def is_full(error: BaseException) -> bool:
    """Whether an error is that of a full disk, by its number or, where it has none, its words."""
    words = "No space left", "RESOURCE_EXHAUSTED"
    return getattr(error, "errno", None) == errno.ENOSPC or any(w in str(error) for w in words)
