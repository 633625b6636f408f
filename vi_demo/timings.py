"""Where each second went: which phase it was, and whether something was traced and compiled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Span = tuple[float, float]  # begin and end, by `time.perf_counter`


@contextmanager
def compiling() -> Iterator[list[Span]]:
    """The spans, as they come, in which JAX traced or compiled; one may lie within another."""
    import jax

    spans: list[Span] = []

    def add(event: str, duration: float, **_):
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            spans.append((now - duration, now))

    jax.monitoring.register_event_duration_secs_listener(add)
    try:
        yield spans
    finally:
        jax.monitoring.unregister_event_duration_listener(add)


def covered(spans: list[Span], begin: float, end: float) -> float:
    """Seconds between two moments that lie in any of some spans."""
    total, counted = 0.0, begin
    for first, last in sorted(spans):
        total += max(min(last, end) - max(first, counted), 0.0)
        counted = max(counted, last)
    return total


class Timings:
    """When each phase began, told by the reports that go through it."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, float]] = []

    def watching(self, report: Callable[[str, float, str], None]) -> Callable:
        """The same report, whose phases are noted."""

        def noted(phase: str, share: float, text: str) -> None:
            if not self.marks or self.marks[-1][0] != phase:
                self.marks.append((phase, time.perf_counter()))
            report(phase, share, text)

        return noted

    def seconds(self, spans: list[Span]) -> dict[str, dict[str, float]]:
        """Of each phase until now, the seconds that compiling took of it, and the others."""
        found: dict[str, dict[str, float]] = {}
        ends = [began for _, began in self.marks[1:]] + [time.perf_counter()]
        for (phase, begin), end in zip(self.marks, ends, strict=True):
            one = found.setdefault(phase, {"compile": 0.0, "run": 0.0})
            compiled = covered(spans, begin, end)
            one["compile"] += compiled
            one["run"] += end - begin - compiled
        return found
