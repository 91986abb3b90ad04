"""The composition of a server: routes, guards, and what it owns while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from fastapi import FastAPI

from llmtasks import __version__
from llmtasks.api import errors
from llmtasks.api.callers import TokenWanted
from llmtasks.api.guards import BodyLimit, SameSite
from llmtasks.api.resources import Resources, opened
from llmtasks.api.routes import batches, chat, documents, jobs, operations
from llmtasks.settings import Settings

_ABOUT = """Summaries, entities and translations of a mountain of documents.

Store documents, submit jobs or batches of them, watch, collect. Errors are
`{"error": {"type", "message"}}`. Servers keep nothing between requests.
"""


def create_app(settings: Settings, keys: Mapping[str, str | None]) -> FastAPI:
    """The application of these settings; `keys` are the providers' API keys by name."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opened(settings, keys) as resources:
            app.state.resources = resources
            yield

    app = FastAPI(
        title="llmtasks",
        version=__version__,
        description=_ABOUT,
        lifespan=lifespan,
        docs_url=None,  # its pages would load scripts from a stranger's server
        redoc_url=None,
    )
    app.state.settings = settings
    errors.install(app)
    for module in (documents, jobs, batches, chat, operations):
        app.include_router(module.router)
    app.add_middleware(BodyLimit, most=settings.api.max_body_bytes)
    if settings.api.tokens:
        app.add_middleware(TokenWanted, tokens=settings.api.tokens)
    app.add_middleware(SameSite, loopback_only=not settings.api.tokens)
    return app


def stop_streams(app: FastAPI) -> None:
    """End the streams that can be resumed elsewhere: the server is about to stop."""
    resources: Resources | None = getattr(app.state, "resources", None)
    if resources is not None:
        resources.room.stopping.set()
