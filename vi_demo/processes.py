"""Several processes as one run: how they find each other, and how each ends when one is lost.

JAX's coordination service, in the first process, knows them all. A process whose neighbour is gone
hears of it in its next collective; one whose first process is gone is ended by JAX itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import jax
from jax.experimental import multihost_utils

from vi_demo import mesh
from vi_demo.errors import InputError, text_of

HEARTBEAT = 15  # seconds without a word from a process, after which it is gone
BETWEEN = 5  # seconds between two times that all are asked
LOST = "Gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED"  # what JAX says of a process that is gone
_leaving = threading.Event()
AFTER = """
import sys
said = sys.stdin.buffer.read().decode(errors="replace")
aborted = "JAX distributed service detected fatal errors" in said
print(sys.argv[1] if aborted else said, end="", file=sys.stderr)
"""


def join(coordinator: str | None, processes: int | None, process: int | None) -> bool:
    """Make this process one of many, which a launcher knows of or these say; whether it is first.

    JAX reads Slurm's, Open MPI's and Kubernetes' environments. The first alone is heard: standard
    output of the processes' transport goes nowhere. Raises `InputError` where nothing says who the
    others are, or they do not come.
    """
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    jax.config.update("jax_enable_recoverability", True)  # else JAX ends all when one is gone
    jax.config.update("jax_enable_preemption_service", False)  # which would swallow SIGTERM
    try:
        jax.distributed.initialize(
            *(coordinator, processes, process),
            coordinator_bind_address=coordinator,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"no other processes were found ({text_of(error)}); start each with "
            "--coordinator HOST:PORT --processes N --process I, or under Slurm, MPI or Kubernetes."
        ) from error
    if not mesh.is_first():
        told_at_the_end(f"vi-demo: {gone([0])}\n")
    threading.Thread(target=watch, daemon=True).start()
    return mesh.is_first()


def told_at_the_end(line: str) -> None:
    """Have standard error told by another process at the end of this one: where JAX ends it by a
    dump, because the first is gone, the line instead.
    """
    teller = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", AFTER, line],
        **{"stdin": subprocess.PIPE, "start_new_session": True},
    )
    sys.stderr.flush()
    os.dup2(teller.stdin.fileno(), 2)
    os.close(teller.stdin.fileno())


def watch() -> None:
    """Ask who is there, again and again; when one is missing, say which, and end this process,
    which may be waiting for that one in a program.
    """
    everyone = set(range(jax.process_count()))
    begin = "\n" if os.isatty(2) else ""  # below a line of progress
    while True:
        try:
            with multihost_utils.live_devices(jax.devices()) as devices:
                missing = everyone - {device.process_index for device in devices}
        except multihost_utils.ProcessFailureError:  # just now: the next answer is without it
            continue
        if _leaving.is_set():
            return
        if missing:
            os.write(2, f"{begin}vi-demo: {gone(sorted(missing))}\n".encode())
            os._exit(1)  # to take leave of it would take minutes, and end in a dump
        time.sleep(BETWEEN)


def leave() -> None:
    """Wait until all processes of a run are done; the others then go before the first, which JAX
    would take for gone too early.
    """
    _leaving.set()
    multihost_utils.sync_global_devices("done")
    if not mesh.is_first():
        sys.stdout.flush()
        os._exit(0)


def wait_if_lost(error: Exception) -> None:
    """Where something went wrong since another process is gone, wait until `watch` says which."""
    if type(error).__name__ == "JaxRuntimeError" and any(word in str(error) for word in LOST):
        _leaving.wait(2 * HEARTBEAT)


def gone(processes: list[int]) -> str:
    """Which processes of a run are gone, in words."""
    numbers, several = ", ".join(map(str, processes)), len(processes) > 1
    which = (
        f"processes {numbers} of this run are" if several else f"process {numbers} of this run is"
    )
    return f"{which} gone, so this one stops; see what was said there."
