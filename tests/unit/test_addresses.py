"""A server's address has one form for Celery and one for redis-py, and both are the same server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtasks.addresses import for_celery, for_client


@pytest.mark.parametrize(
    ("client", "celery"),
    [
        ("unix:///run/v.sock?db=1", "redis+socket:///run/v.sock?virtual_host=1"),
        ("unix:///run/adb=2/v.sock", "redis+socket:///run/adb=2/v.sock"),
        ("unix:///v.sock?a=b&db=3", "redis+socket:///v.sock?a=b&virtual_host=3"),
        ("redis://:db=1@h:6379/0", "redis://:db=1@h:6379/0"),
    ],
)
def test_the_two_forms(client, celery):
    assert for_celery(client) == celery
    assert for_client(celery) == client


@given(st.from_regex(r"unix:///[a-z./=]{0,9}(\?(db=\d|[a-z]=x&db=\d))?", fullmatch=True))
def test_there_and_back_is_the_same_address(url):
    assert for_client(for_celery(url)) == url
