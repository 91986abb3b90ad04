"""Errors travel: through SQL as a name, through Celery's JSON as a class and its arguments."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from celery.backends.base import Backend

import llmtasks
from llmtasks import errors, settings
from llmtasks.celery_app import app

ALL = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.LLMTasksError)
]


@pytest.mark.parametrize("cls", ALL)
def test_every_error_is_rebuilt_from_its_name_and_message(cls):
    rebuilt = errors.by_name(cls.__name__)("what happened")
    assert type(rebuilt) is cls
    assert str(rebuilt) == "what happened"


@pytest.mark.parametrize("cls", ALL)
def test_every_error_survives_celerys_result_backend(cls):
    backend = Backend(app=app, serializer="json", url="memory://")
    back = backend.exception_to_python(backend.prepare_exception(cls("what happened")))
    assert type(back) is cls
    assert str(back) == "what happened"


def test_a_wrong_setting_carries_its_key_and_what_is_said_of_it():
    error = errors.ConfigurationError("is too small: 5", key="cache.ttl_s")
    assert (str(error), error.key, error.says) == (
        "cache.ttl_s: is too small: 5",
        "cache.ttl_s",
        "is too small: 5",
    )
    error = settings.Origin(path=Path("/f.toml")).located(error)
    assert str(error) == "/f.toml: cache.ttl_s: is too small: 5"
    without = errors.ConfigurationError("what: happened")
    assert settings.Origin(path=Path("/f.toml")).located(without) is without


@pytest.mark.parametrize("cls", ALL)
def test_the_tree_in_the_docstring_is_whole(cls):
    assert cls.__name__ in (errors.__doc__ or "")


def test_an_error_of_another_version_is_still_an_error():
    assert errors.by_name("WrittenByANewerVersion") is errors.JobError
    assert errors.by_name("annotations") is errors.JobError


def test_the_public_names_are_these():
    assert llmtasks.__all__ == [
        "Batch",
        "JobResult",
        "LLMTasksError",
        "add_document",
        "cancel",
        "get_result",
        "process_document",
        "results",
        "retry",
        "status",
        "submit_batch",
    ]
    for name in llmtasks.__all__:
        assert getattr(llmtasks, name) is not None
    with pytest.raises(AttributeError):
        _ = llmtasks.no_such_name
