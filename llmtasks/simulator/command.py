"""The `simulator` command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from llmtasks.simulator.config import Config
    from llmtasks.simulator.server import Urls

_PER_MINUTE = click.FloatRange(min=0, min_open=True)
_SECONDS = click.FloatRange(min=0)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=0,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0: any free one.",
)
@click.option("--requests-per-minute", type=_PER_MINUTE, help="Limit of each account.")
@click.option("--tokens-per-minute", type=_PER_MINUTE, help="Limit of each account.")
@click.option("--input-tokens-per-minute", type=_PER_MINUTE, help="Limit of each account.")
@click.option("--output-tokens-per-minute", type=_PER_MINUTE, help="Limit of each account.")
@click.option(
    "--burst",
    "burst_s",
    default=1.0,
    show_default=True,
    type=_PER_MINUTE,
    help="Seconds of a limit that may be spent at once.",
)
@click.option(
    "--latency",
    "latency_s",
    default=0.0,
    show_default=True,
    type=_SECONDS,
    help="Seconds an answer takes.",
)
@click.option(
    "--jitter",
    "jitter_s",
    default=0.0,
    show_default=True,
    type=_SECONDS,
    help="At most so many seconds more, at random.",
)
@click.option(
    "--per-token",
    "per_token_s",
    default=0.0,
    show_default=True,
    type=_SECONDS,
    help="Seconds more for each token of the answer.",
)
@click.option(
    "--first-token",
    "first_token_s",
    type=_SECONDS,
    help="Seconds to a stream's first token.  [default: --latency]",
)
@click.option(
    "--chars-per-token",
    default=4.0,
    show_default=True,
    type=_PER_MINUTE,
    help="Characters counted as one token.",
)
@click.option(
    "--limit-headers/--no-limit-headers",
    default=True,
    show_default=True,
    help="Whether responses state the limits.",
)
@click.option("--seed", default=0, show_default=True, help="Makes everything random repeatable.")
@click.option("--log", type=click.Path(dir_okay=False), help="File that gets a line per request.")
@click.option(
    "--faults",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON file with a fault or a list of them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the URLs as one line of JSON.")
def simulator(host: str, port: int, *, as_json: bool, **options: Any) -> None:
    """Run a simulated provider that speaks OpenAI and Anthropic.

    It answers at once or after --latency, enforces the limits for each API key, and can be told at
    /_sim/ to fail. It stops on SIGTERM or Ctrl-C.
    """
    from llmtasks.simulator.server import run

    def ready(urls: Urls) -> None:
        click.echo(_line(urls, as_json=as_json))

    config = _config(options)
    try:
        run(config, host, port, ready)
    except OSError as error:
        raise click.ClickException(str(error)) from error


def _config(options: Mapping[str, Any]) -> Config:
    from llmtasks.simulator.config import Config, Latency, Quota, read_faults

    limits = {name: options[name] for name in Quota.__struct_fields__ if name.endswith("_minute")}
    quota = Quota(**limits, burst_s=options["burst_s"])
    latency = Latency(
        latency_s=options["latency_s"],
        jitter_s=options["jitter_s"],
        per_token_s=options["per_token_s"],
        first_token_s=options["first_token_s"],
    )
    faults = options["faults"]
    try:
        planned = read_faults(faults.read_bytes()) if faults else ()
    except ValueError as error:
        raise click.UsageError(f"{faults}: {error}") from error
    return Config(
        quotas=(quota,) if any(limits.values()) else (),
        latencies=(latency,),
        faults=planned,
        seed=options["seed"],
        chars_per_token=options["chars_per_token"],
        limit_headers=options["limit_headers"],
        log=options["log"],
    )


def _line(urls: Urls, *, as_json: bool) -> str:
    if as_json:
        return json.dumps(
            {
                "url": urls.url,
                "openai_base_url": urls.openai_base_url,
                "anthropic_base_url": urls.anthropic_base_url,
            }
        )
    return (
        f"simulator ready: OpenAI at {urls.openai_base_url}, "
        f"Anthropic at {urls.anthropic_base_url}, control at {urls.url}/_sim/"
    )
