"""What we install with us: it is there, fits together, is bounded below, and may be passed on."""

from __future__ import annotations

import re
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

#: Extras of ours that CI installs; the others bring one package each.
EXTRAS = ("documents", "embedded", "postgres")

#: Words of the licences that allow to use and pass on a library beside code under another licence.
ALLOWED = re.compile(
    r"\b(MIT|BSD|0BSD|Apache|ISC|PSF|Python Software Foundation|MPL|LGPL|Unlicense|CC0|Zlib|HPND)\b",
    re.IGNORECASE,
)


def needed_by(name: str, extras: tuple[str, ...] = ()) -> list[Requirement]:
    """The requirements of an installed package that hold here."""
    found = map(Requirement, metadata.requires(name) or ())
    wanted = [{"extra": extra} for extra in ("", *extras)]
    return [one for one in found if not one.marker or any(map(one.marker.evaluate, wanted))]


def closure() -> dict[str, list[Requirement]]:
    """Everything that comes with us, by name, with what is required of it by whom."""
    found: dict[str, list[Requirement]] = {}
    todo = needed_by("llmtasks", EXTRAS)
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        one = todo.pop()
        name = str(canonicalize_name(one.name))
        found.setdefault(name, []).append(one)
        key = (name, frozenset(one.extras))
        if key not in seen:
            seen.add(key)
            todo += needed_by(name, tuple(one.extras))
    return found


NEEDED = closure()


def licence(name: str) -> str:
    """What a package says of its licence, in any of the ways there are."""
    about = metadata.metadata(name)
    classified = [one for one in about.get_all("Classifier", []) if one.startswith("License ::")]
    said = [about.get("License-Expression"), *classified, (about.get("License") or "")[:200]]
    return "; ".join(filter(None, said))


def test_all_that_is_needed_is_installed_and_fits_together():
    wrong = [
        f"{one} is required, {metadata.version(name)} is installed"
        for name, required in NEEDED.items()
        for one in required
        if not one.specifier.contains(metadata.version(name), prereleases=True)
    ]
    assert wrong == []
    assert len(NEEDED) > 30


@pytest.mark.parametrize("one", needed_by("llmtasks", EXTRAS), ids=str)
def test_each_dependency_of_ours_says_the_oldest_version_that_works(one):
    assert [bound.operator for bound in one.specifier if bound.operator in (">=", "==", "~=")]
    assert one.url is None


def test_each_licence_allows_to_be_used_and_passed_on():
    refused = {name: licence(name) for name in NEEDED if not ALLOWED.search(licence(name))}
    assert refused == {}
    strict = {n for n in NEEDED if re.search(r"(?<!L)\b(A?GPL|SSPL)", licence(n))}
    assert strict == set()
