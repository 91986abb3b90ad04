"""What breaks, and when: drawn from a seed, so that a run can be repeated. Pure; times are seconds."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Break:
    """At `at` seconds `kind` happens to a `target` (`worker`, `redis`, `sql`, a provider's name) for `lasts`
    seconds; `which` tells workers apart.
    """

    at: float
    target: str
    kind: str
    lasts: float
    which: int

    def __str__(self) -> str:
        name = f"{self.target} {self.which}" if self.target == "worker" else self.target
        return f"{self.at:6.2f} s  {name}: {self.kind} for {self.lasts:.1f} s"


#: What may happen to whom, and between how many seconds it lasts. Several of the same weigh more.
KINDS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "worker": {
        "kill": (0.2, 3.0),  # SIGKILL; another one is started afterwards
        "kill, back soon": (0.2, 1.0),
        "stop": (1.0, 8.0),  # SIGSTOP, for less and for more than its lease
        "terminate": (0.1, 1.0),  # a rolling restart
    },
    "redis": {
        "restart": (0.2, 5.0),  # killed; comes back with its data
        "restart empty": (0.2, 4.0),
        "flush": (0.0, 0.0),
        "pause": (0.5, 8.0),
        "full": (1.0, 5.0),
        "cut": (0.0, 0.0),
        "freeze": (1.0, 8.0),
        "abandon": (0.0, 0.0),  # every connection is half open from now on
        "lose a reply": (0.0, 0.0),
    },
    "sql": {
        "crash": (0.2, 4.0),
        "cut": (0.0, 0.0),
        "refuse": (1.0, 8.0),
        "freeze": (1.0, 8.0),
        "lose a commit's reply": (0.0, 0.0),
    },
    "provider": {
        "cut": (0.0, 0.0),
        "refuse": (1.0, 6.0),
        "freeze": (1.0, 8.0),
        "429": (2.0, 8.0),
        "500": (1.0, 5.0),
        "529": (1.0, 5.0),
        "hang": (0.0, 0.0),
        "reset": (0.0, 0.0),
        "cut_json": (0.0, 0.0),
        "bad_json": (0.0, 0.0),
        "slow": (0.0, 0.0),
    },
}


def drawn(
    seed: int,
    seconds: float,
    *,
    every_s: float,
    targets: Sequence[str],
    workers: int,
    only: Collection[str] = (),
) -> list[Break]:
    """A break about every `every_s` seconds, on whom and of what kind the seed says.

    `targets` are `worker`, `redis`, `sql` and the names of providers; one named twice is hit twice as often.
    `only`: of these kinds. A target that is still broken is left alone until it is whole again.
    """
    dice = random.Random(seed)
    breaks: list[Break] = []
    whole_at: dict[tuple[str, int], float] = {}
    now = dice.uniform(0.5, every_s)
    while now < seconds:
        target = dice.choice(targets)
        which = dice.randrange(workers) if target == "worker" else 0
        kinds = KINDS.get(target, KINDS["provider"])
        kind = dice.choice([name for name in kinds if not only or name in only])
        lasts = dice.uniform(*kinds[kind])
        if whole_at.get((target, which), 0.0) <= now:
            breaks.append(Break(round(now, 2), target, kind, round(lasts, 2), which))
            whole_at[target, which] = now + lasts + 0.5
        now += dice.expovariate(1.0 / every_s)
    return breaks
