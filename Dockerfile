# syntax=docker/dockerfile:1
# The image of workers, of the API, of Flower and of every command: `docker run llmtasks --help`.

FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY llmtasks llmtasks
COPY workers workers
COPY migrations migrations
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --wheel-dir /wheels .
# An environment without a pip of its own: nothing in the end image needs one.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/llmtasks \
    && pip --python /opt/llmtasks/bin/python install "$(echo /wheels/*.whl)[api,postgres,documents]"

FROM python:3.12-slim
# Task types, sources and sinks of your own: a Dockerfile that begins with `FROM llmtasks:local`, says
# USER root, and runs `pip --python /opt/llmtasks/bin/python install yours`, then USER 10001:10001 again.
ENV PATH=/opt/llmtasks/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
RUN groupadd --gid 10001 llmtasks \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/llmtasks --create-home --shell /usr/sbin/nologin llmtasks
COPY --from=build /opt/llmtasks /opt/llmtasks
USER 10001:10001
WORKDIR /var/lib/llmtasks
# A worker drains on it.
STOPSIGNAL SIGTERM
ENTRYPOINT ["llmtasks"]
CMD ["worker"]
