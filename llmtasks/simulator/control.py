"""`/_sim/`: what the simulator has seen, and how it is to behave from now on. JSON only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from llmtasks.simulator.config import Latency, Quota, read, read_faults, replaced
from llmtasks.simulator.faults import ActiveFault
from llmtasks.simulator.server import Simulator

_JSON: Final = "application/json"
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def add_control(app: web.Application, simulator: Simulator) -> None:
    """Adds the control routes to an application."""
    control = _Control(simulator)
    app.router.add_get("/_sim/stats", control.stats)
    app.router.add_get("/_sim/log", _checked(control.log))
    app.router.add_get("/_sim/faults", control.faults)
    app.router.add_post("/_sim/faults", _checked(control.add_faults))
    app.router.add_delete("/_sim/faults", _checked(control.remove_faults))
    app.router.add_get("/_sim/quota", control.quota)
    app.router.add_post("/_sim/quota", _checked(control.set_quota))
    app.router.add_get("/_sim/latency", control.latency)
    app.router.add_post("/_sim/latency", _checked(control.set_latency))
    app.router.add_post("/_sim/reset", control.reset)


def _checked(handler: _Handler) -> _Handler:
    """Bad input is a 400 with one clear line."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except ValueError as error:
            return _json({"error": str(error)}, status=400)

    return guarded


class _Control:
    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def stats(self, request: web.Request) -> web.StreamResponse:  # noqa: ARG002
        simulator = self._simulator
        return _json(
            {
                **simulator.journal.counts(),
                "in_flight": simulator.in_flight,
                "max_in_flight": simulator.max_in_flight,
                "since": simulator.started_at,
                "now": simulator.now(),
            }
        )

    async def log(self, request: web.Request) -> web.StreamResponse:
        last = _number(request, "last")
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        for page in self._simulator.journal.pages(last):
            await response.write(page)
        await response.write_eof()
        return response

    async def faults(self, request: web.Request) -> web.StreamResponse:  # noqa: ARG002
        return _json({"faults": [_shown(one) for one in self._simulator.plan.active]})

    async def add_faults(self, request: web.Request) -> web.StreamResponse:
        faults = read_faults(await request.read())
        simulator = self._simulator
        return _json(
            {"faults": [_shown(one) for one in simulator.plan.add(faults, simulator.now())]}
        )

    async def remove_faults(self, request: web.Request) -> web.StreamResponse:
        return _json({"removed": self._simulator.plan.remove(_number(request, "id"))})

    async def quota(self, request: web.Request) -> web.StreamResponse:  # noqa: ARG002
        return _json({"quotas": self._simulator.quotas})

    async def set_quota(self, request: web.Request) -> web.StreamResponse:
        new = read(await request.read(), Quota)
        self._simulator.set_quotas(replaced(self._simulator.quotas, new))
        return _json({"quotas": self._simulator.quotas})

    async def latency(self, request: web.Request) -> web.StreamResponse:  # noqa: ARG002
        return _json({"latencies": self._simulator.latencies})

    async def set_latency(self, request: web.Request) -> web.StreamResponse:
        new = read(await request.read(), Latency)
        self._simulator.latencies = replaced(self._simulator.latencies, new)
        return _json({"latencies": self._simulator.latencies})

    async def reset(self, request: web.Request) -> web.StreamResponse:  # noqa: ARG002
        self._simulator.reset()
        return _json({"reset": True})


def _json(data: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(data), content_type=_JSON)


def _number(request: web.Request, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"{name}: must be a whole number, not {text[:40]!r}")
    return int(text)


def _shown(one: ActiveFault) -> dict[str, Any]:
    return {"id": one.fault_id, "struck": one.struck, **msgspec.to_builtins(one.fault)}
