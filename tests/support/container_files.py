"""What the container files say: the Dockerfile's instructions, and Compose's own reading of its file."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in their order: their names with what follows, on one line."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def said(name: str) -> list[str]:
    """What all instructions of this name say."""
    return [text for one, text in instructions() if one == name]


def copied() -> list[Path]:
    """What the Dockerfile copies from the checkout."""
    names = [text.split()[:-1] for text in said("COPY") if not text.startswith("--from")]
    return [ROOT / name for words in names for name in words]


def run_words(command: str) -> list[str]:
    """The words of the RUN line that holds this command, without its mounts."""
    (line,) = [text for text in said("RUN") if command in text]
    return [word for word in shlex.split(line) if not word.startswith("--mount")]


def is_sent(path: Path) -> bool:
    """Whether .dockerignore lets this path into a build."""
    name, sent = path.relative_to(ROOT), True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#") and _matches(name, pattern):
            sent = line.startswith("!")
    return sent


def _matches(name: Path, pattern: str) -> bool:
    parts = [name, *name.parents][:-1]
    if pattern.startswith("**/"):
        return any(fnmatch.fnmatch(part.name, pattern[3:]) for part in parts)
    return any(fnmatch.fnmatch(str(part), pattern) for part in parts)


def build_context(target: Path) -> Path:
    """A directory with exactly what the first stage of the Dockerfile sees."""
    for source in copied():
        assert source.exists(), f"the Dockerfile copies {source.name}, which does not exist"
        for file in _files(source):
            if is_sent(file):
                place = target / file.relative_to(ROOT)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, place)
    return target


def _files(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
    else:
        yield from (file for file in source.rglob("*") if file.is_file())


def tool(name: str) -> Path:
    """A command that the dependency group `package` installs beside this Python."""
    return Path(sys.executable).with_name(name)


def compose(directory: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run the real Docker Compose, which needs no container engine to read its file."""
    return subprocess.run(
        [str(tool("docker-compose")), *argv],
        cwd=directory,
        env={"PATH": "/usr/bin:/bin", "HOME": str(directory)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def deployment(directory: Path) -> Path:
    """A copy of what Compose reads, with a filled-in .env."""
    for name in ("docker-compose.yml", "Dockerfile", ".env.example"):
        shutil.copy2(ROOT / name, directory)
    shutil.copytree(ROOT / "deploy", directory / "deploy")
    example = (directory / ".env.example").read_text()
    (directory / ".env").write_text(
        re.sub(r"^([A-Z_]+)=$", r"\1=given-\1", example, flags=re.MULTILINE).replace(
            "given-API_TOKENS", "acme:given-API_TOKENS"
        )
    )
    return directory


def services(directory: Path) -> dict[str, dict[str, Any]]:
    """The services of the composition, all of its profiles, as Compose understands them."""
    done = compose(directory, "--profile", "*", "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)["services"]
    return found


def read_yaml(path: str) -> Any:
    """A YAML file of the checkout."""
    import yaml  # of the dependency group `package`, which collecting the other tests needs not

    return yaml.safe_load((ROOT / path).read_text())
