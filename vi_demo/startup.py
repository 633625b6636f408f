"""Before a command works: precision, caches, and the processes and devices it runs on."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

from vi_demo.errors import MixedPrecision, Terminated

CACHE_SWITCH = "VI_DEMO_CACHE"
AGAIN = 0.05  # seconds until a signal that was dropped is sent again


def heed_signals() -> None:
    """Ctrl-C and SIGTERM come again where they came to code whose errors Python drops.

    That is a callback of the garbage collector, JAX's among them, or a finaliser.
    """
    meant = {KeyboardInterrupt: signal.SIGINT, Terminated: signal.SIGTERM}

    def hook(dropped, before=sys.unraisablehook):
        if number := meant.get(dropped.exc_type):
            main = threading.main_thread().ident
            threading.Timer(AGAIN, signal.pthread_kill, [main, number]).start()
        else:
            before(dropped)

    sys.unraisablehook = hook


def ask_for_double() -> None:
    """Double precision for what the user's file makes as it is imported, before JAX is here."""
    os.environ.setdefault("JAX_ENABLE_X64", "1")


def cache_folder(name: str) -> Path | None:
    """A folder for what need not be made anew by each command; none with `VI_DEMO_CACHE=off`."""
    import platformdirs

    if os.environ.get(CACHE_SWITCH, "").lower() in ("off", "0", "no", "false"):
        return None
    return platformdirs.user_cache_path("vi-demo") / name


def keep_bytecode() -> None:
    """Keep the bytecode of modules where Python may keep none beside them, as containers ask.

    Compiling JAX, xarray and Matplotlib anew takes up to five seconds of each command.
    """
    numpyro = importlib.util.find_spec("numpyro")
    if sys.dont_write_bytecode and not Path(numpyro.cached).exists() and cache_folder("bytecode"):
        sys.pycache_prefix, sys.dont_write_bytecode = str(cache_folder("bytecode")), False


def prepare() -> None:
    """Set JAX up as the command line does: in double precision, and with compiled programs kept
    in the user's cache folder, so that what was run once starts faster the next time.

    To be called before JAX's first computation. `VI_DEMO_CACHE=off` turns the cache off; JAX's own
    `JAX_COMPILATION_CACHE_DIR` moves it.
    """
    import jax

    jax.config.update("jax_enable_x64", True)
    folder = cache_folder("jax")
    if not folder:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # A program that cannot be kept, or a folder that cannot be written, costs time and no more.
    warnings.filterwarnings("ignore", message="Error (writing|reading) persistent compilation")


def joined(*others) -> bool:
    """Make this process one of many; whether it is the first, which alone is heard."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # of what it does for us it would warn
    prepare()
    from vi_demo import processes

    return processes.join(*others)


def mesh_of_all(loaded) -> str:
    """All devices of all processes, along the rows where these stay on the disk."""
    import jax

    from vi_demo.streamed import table_of

    on_disk = isinstance(loaded, tuple) and table_of(loaded.data)
    return f"rows={jax.device_count()}" if on_disk else "auto"


def in_either_precision(tell: Callable[[str], object], work: Callable, *arguments, **settings):
    """The work done in double precision; in single, as it `tell`s, where a model asks for it."""
    import jax

    try:
        return work(*arguments, **settings)
    except MixedPrecision as error:
        tell(f"{str(error).partition(';')[0]}: everything is computed in single precision.")
        jax.config.update("jax_enable_x64", False)
        warnings.filterwarnings("ignore", message="Explicitly requested dtype float64")
        return work(*arguments, **settings)
