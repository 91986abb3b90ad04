"""How fast a batch goes and when it may end. Pure: values in, numbers out.

Two clocks are kept apart. The rate that is shown is of the wall clock, so that a batch that stands
still is seen to. The estimate goes by the time in which the batch could move: a minute spent waiting
for a provider says nothing of how fast the rest will go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

#: Seconds that a rate looks back.
WINDOW_S = 30.0
#: Slow batches need more: it looks back further until so many jobs have ended...
ENOUGH = 10
#: ...or so many seconds, after which observations are forgotten.
LONGEST_S = 300.0
#: Seconds that must lie between two observations before they make a rate.
SHORTEST_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A batch at one moment. `at` is in seconds on any clock that only goes forward.

    `ended` counts the jobs that have ended in whatever way, `worked` those that were completed by
    calls of their own, `running` those at work now.
    """

    at: float
    total: int
    ended: int
    worked: int
    running: int


@dataclass(frozen=True, slots=True)
class Point:
    """An observation as it is kept: `moving_s` is the clock that stands while nothing can move."""

    at: float
    moving_s: float
    seen: Observation


@dataclass(frozen=True, slots=True)
class Pace:
    """What the observations so far say. A new one is made by `after`."""

    points: tuple[Point, ...] = ()
    #: Where on the moving clock the first job was completed by calls of its own.
    working_since: float | None = None

    def after(self, seen: Observation) -> Pace:
        """With one more observation, made later than the others."""
        last = self.points[-1] if self.points else None
        if last is None or seen.ended < last.seen.ended:  # jobs were queued again: another race
            return Pace((Point(seen.at, 0.0, seen),), 0.0 if seen.worked else None)
        moving_s = last.moving_s + (0.0 if _still(last.seen, seen) else seen.at - last.at)
        since = self.working_since
        if since is None and seen.worked:
            since = moving_s
        kept = tuple(point for point in self.points if point.at >= seen.at - LONGEST_S)
        # One older than all of that is kept after a long silence: a rate needs two.
        return replace(
            self, points=(*(kept or (last,)), Point(seen.at, moving_s, seen)), working_since=since
        )

    def per_second(self) -> float | None:
        """Jobs that ended per second of late; None when it is too early to say."""
        return _rate([(point.at, point.seen.ended) for point in self.points])

    def eta_s(self) -> float | None:
        """Seconds until all jobs have ended, if the rest goes like the last; None when unknown.

        Answers from the store come in a burst before the first call returns, and must not promise
        the rest at their speed: the estimate starts with the first job that was worked on, and
        believes in stored answers alone when a whole window has seen nothing else.
        """
        if not self.points:
            return None
        last = self.points[-1]
        left = last.seen.total - last.seen.ended
        if left <= 0:
            return 0.0
        if len(self.points) > 1 and _still(self.points[-2].seen, last.seen):
            return None
        since = self.working_since
        if since is None:
            since = 0.0
            if last.moving_s - self.points[0].moving_s < WINDOW_S:
                return None
        rate = _rate(
            [(point.moving_s, point.seen.ended) for point in self.points if point.moving_s >= since]
        )
        return left / rate if rate else None


def _still(before: Observation, after: Observation) -> bool:
    """Whether nothing could move between two observations."""
    return after.ended == before.ended and not before.running and not after.running


def _rate(track: Sequence[tuple[float, int]]) -> float | None:
    """Ended jobs per second over the last window of a track of (seconds, ended)."""
    if not track:
        return None
    now, ended = track[-1]
    found = None
    for at, before in reversed(track):
        found = (now - at, ended - before)
        if now - at >= WINDOW_S and ended - before >= ENOUGH:
            break
    seconds, count = found or (0.0, 0)
    return count / seconds if seconds >= SHORTEST_S else None
