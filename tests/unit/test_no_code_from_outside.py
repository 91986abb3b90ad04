"""No module of ours has what makes code of data."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path
    for folder in ("llmtasks", "workers", "migrations")
    for path in (ROOT / folder).rglob("*.py")
)
MODULES = frozenset(
    {
        "pickle",
        "_pickle",
        "cPickle",
        "marshal",
        "shelve",
        "dill",
        "cloudpickle",
        "jsonpickle",
        "yaml",
        "code",
    }
)
BUILT_IN = frozenset({"eval", "exec", "compile", "__import__"})


def suspects(source: str) -> Iterator[str]:
    """What in a module loads or runs code that came as data."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (one.name for one in names if one.name.partition(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in MODULES:
                yield module
            case ast.Call(func=ast.Name(id=name)) if name in BUILT_IN:
                yield name
            case ast.keyword(arg="shell", value=ast.Constant(value=True)):
                yield "shell=True"
            case ast.Attribute(value=ast.Name(id="os"), attr="system" | "popen"):
                yield "os.system"


def test_no_module_makes_code_of_data():
    found = {str(path.relative_to(ROOT)): list(suspects(path.read_text())) for path in FILES}
    assert len(found) > 100
    assert {file: what for file, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from marshal import loads",
        "import yaml",
        "eval(x)",
        "exec(x)",
        "f(shell=True)",
        "os.system(x)",
    ],
)
def test_each_of_them_would_be_seen(source):
    assert list(suspects(source))
