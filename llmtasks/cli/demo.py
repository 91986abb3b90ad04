"""`make demo`: the whole way of the data, for real, on this machine, in a minute.

Starts an embedded Valkey, SQLite, a worker, and, where no provider is configured, a small real model behind
HTTP; runs the three task types over the sample texts; prints what came out; stops all it started.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtasks import processes
from llmtasks.cli import INTERRUPTED
from llmtasks.errors import ConfigurationError, JobError, LLMTasksError
from llmtasks.jobs import ENDED, JobState
from llmtasks.settings import load, origin

if TYPE_CHECKING:
    from llmtasks.client import JobResult

#: Task types with the options the demo shows them with.
TASKS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("summarize", {"max_words": 60}),
    ("extract", {}),
    ("translate", {"target_language": "es"}),
)

#: Seconds after which the demo gives up on its jobs. A 2-core machine needs about one minute.
PATIENCE_S = 600.0

_HOME = "llmtasks-demo-"

_CONFIG = """\
[local]
data_dir = {data_dir}

[worker]
concurrency = 4
drain_s = 1

[metrics]
port = 0
"""

_LOCAL_MODEL = """
[[providers]]
name = "local-tryout"
kind = "openai"
model = {model}
base_url = {base_url}
max_concurrency = 2
context_window = 4096
timeout_s = 300
"""


def main() -> int:
    """Run the demo; 0 when every job was completed."""
    if sys.argv[1:2] == ["--follow"]:  # make's process id: started by it, the demo ends with it
        processes.follow_parent(int(sys.argv[2]))
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with contextlib.ExitStack() as stack:
            return _run(stack)
    except KeyboardInterrupt:
        print("\nstopped; nothing is left behind")
        return INTERRUPTED
    except LLMTasksError as error:
        print(f"llmtasks: {error}", file=sys.stderr)
        return 2


def _run(stack: contextlib.ExitStack) -> int:
    _sweep()
    home = Path(tempfile.mkdtemp(prefix=f"{_HOME}{os.getpid()}-"))
    stack.callback(shutil.rmtree, home, ignore_errors=True)
    _configure(stack, home)
    print("starting a worker, with its embedded Valkey and SQLite ...", flush=True)
    log = home / "worker.log"
    worker = stack.enter_context(
        processes.child([sys.executable, "-m", "llmtasks", "worker"], log=log)
    )

    from llmtasks import client

    samples = list(_samples())
    for document_id, text in samples:
        client.add_document(text, document_id)
    ids = [document_id for document_id, _ in samples]
    print(f"{len(ids)} sample texts, {len(TASKS)} task types\n", flush=True)
    batches = [client.submit_batch(ids, name, **options) for name, options in TASKS]
    failed = sum(_show(batch.batch_id, worker, log) for batch in batches)

    print("The same question again is answered from the store, and paid once:\n")
    again = client.submit_batch(ids, TASKS[0][0], **TASKS[0][1])
    failed += _show(again.batch_id, worker, log, outputs=False)
    total = sum(batch.jobs for batch in [*batches, again])
    print(f"{total - failed} of {total} jobs completed.")
    print("Next: your own documents and your own keys, see README.md.")
    return 1 if failed else 0


def _sweep() -> None:
    """Remove the directories of demos that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_HOME}*"):
        pid = left.name.removeprefix(_HOME).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)


def _configure(stack: contextlib.ExitStack, home: Path) -> None:
    """Point this process and its worker at a private directory; add the local model where it is needed."""
    config = _CONFIG.format(data_dir=json.dumps(str(home / "data")))
    own = load()
    # A key that merely stands in the environment is not to be spent by a try-out.
    if own.providers and not origin().assumed:
        print(
            "using the providers of your configuration: " + ", ".join(p.name for p in own.providers)
        )
        os.environ["LLMTASKS_LOCAL__DATA_DIR"] = str(home / "data")
        return
    url, model = _local_model(stack)
    config += _LOCAL_MODEL.format(model=json.dumps(model), base_url=json.dumps(url))
    path = home / "llmtasks.toml"
    path.write_text(config, encoding="utf-8")
    os.environ["LLMTASKS_CONFIG"] = str(path)


def _local_model(stack: contextlib.ExitStack) -> tuple[str, str]:
    """Start the try-out model; its base URL and its name."""
    print("no provider is configured: starting a small local model.")
    print("It is real, has 135 million parameters, and is for trying out, not for work.\n")
    child = stack.enter_context(
        processes.child([sys.executable, "-m", "llmtasks.local_model", "--port", "0"], pipe=True)
    )
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise ConfigurationError("the local model did not start; its message is above")
    ready = json.loads(line)
    return ready["url"], ready["model"]


def _samples() -> Iterator[tuple[str, str]]:
    for file in sorted(
        importlib.resources.files("llmtasks.samples").iterdir(), key=lambda item: item.name
    ):
        if file.name.endswith(".txt"):
            yield file.name, file.read_text(encoding="utf-8")


def _show(batch_id: str, worker: subprocess.Popen[str], log: Path, *, outputs: bool = True) -> int:
    """Print each result of a batch when it is there; how many of its jobs failed."""
    from llmtasks import client

    deadline = time.monotonic() + PATIENCE_S
    shown: set[str] = set()
    failed = 0
    while len(shown) < client.status(batch_id).total:
        for row in client.results(batch_id=batch_id):
            if row.state in ENDED and row.job_id not in shown:
                shown.add(row.job_id)
                failed += row.state != JobState.COMPLETED
                _print(row, outputs=outputs)
        if worker.poll() is not None or time.monotonic() > deadline:
            raise JobError(f"the worker did not finish; its last lines:\n{_tail(log)}")
        time.sleep(0.1)
    return failed


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _print(row: JobResult, *, outputs: bool) -> None:
    from llmtasks.cli.output import money

    print(f"{row.task_type} {row.document_id}: {row.state}")
    if row.error_type:
        print(f"    {row.error_type}: {row.error_message}\n", flush=True)
        return
    print(
        f"    {row.provider} · {row.model} · {row.usage.input_tokens} + {row.usage.output_tokens}"
        f" tokens · {row.seconds:.1f} s · {money(row.cost_usd)}"
        f" · cached: {'yes' if row.cached else 'no'}"
    )
    if outputs:
        text = (
            row.output
            if isinstance(row.output, str)
            else json.dumps(row.output, ensure_ascii=False)
        )
        print(textwrap.indent(textwrap.fill(text, 96), "    "))
    print(flush=True)


def _interrupt(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
