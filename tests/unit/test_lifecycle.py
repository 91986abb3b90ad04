"""What a worker process sets up for its slots."""

from __future__ import annotations

from celery import Celery
from support.rows import at_once

from workers import lifecycle


def test_all_slots_may_write_results_at_once_over_one_client(monkeypatch, valkey):
    app = Celery(backend=valkey.url, set_as_current=False)
    monkeypatch.setattr(lifecycle, "app", app)
    lifecycle._share_results(1_000)
    backends = at_once([lambda: app.backend] * 8)
    assert app.backend in backends
    assert at_once([lambda: app.backend] * 8) == [app.backend] * 8
    assert app.backend.client.connection_pool.max_connections > 1_000
