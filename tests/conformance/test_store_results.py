"""Results and paid calls in both databases."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from support.rows import claimed, new_call, new_job, new_result

from llmtasks.messages import Usage
from llmtasks.store import batches, calls, jobs, results
from llmtasks.store.tables import provider_calls
from llmtasks.store.tables import results as results_table


def test_a_result_comes_back_as_it_was_stored(db):
    output = {"entities": [{"name": "Zoë \x00 \ud800 漢"}], "n": 1.5, "none": None}
    given = new_result(output=output, cost_usd=None, cached=True, answer_key=None)
    jobs.complete(db, claimed(db, tenant="acme"), given)
    found = results.get(db, "job")
    for name in given.__slots__:
        assert getattr(found, name) == getattr(given, name)
    assert (found.job_id, found.tenant) == ("job", "acme")


@pytest.mark.parametrize("nothing", [None, False, 0, "", [], {}], ids=repr)
def test_an_empty_output_is_still_a_result(db, nothing):
    jobs.complete(db, claimed(db), new_result(output=nothing))
    assert results.get(db, "job").output == nothing
    assert next(results.rows(db, job_id="job")).output == nothing


def test_a_result_without_a_model_call_is_stored(db):
    given = new_result(provider=None, model=None, prompt_hash=None, usage=Usage())
    assert jobs.complete(db, claimed(db), given)
    assert results.get(db, "job").provider is None


def test_the_newest_answer_of_a_question_is_found_for_its_tenant_only(db):
    for number, tenant in enumerate(["a", "a", "b"]):
        job = claimed(db, str(number), tenant=tenant)
        jobs.complete(db, job, new_result(output=number))
        with db.write() as connection:
            connection.execute(
                sa.update(results_table)
                .where(results_table.c.job_id == str(number))
                .values(created_at=float(number))
            )
    assert results.find(db, "a", "key").output == 1
    assert results.find(db, "b", "key").output == 2
    assert results.find(db, "c", "key") is None
    assert results.find(db, "a", "another key") is None


def test_an_answer_without_a_key_is_given_to_nobody(db):
    jobs.complete(db, claimed(db), new_result(answer_key=None))
    assert results.find(db, "default", "key") is None


def test_rows_have_every_job_once_in_arrival_order_with_its_outcome(db, monkeypatch):
    monkeypatch.setattr(results, "PAGE", 3)
    names = [f"job-{n}" for n in reversed(range(10))]
    rows = [new_job(name, batch_id="batch", direct=False) for name in names]
    batches.create(db, "batch", "default", "summarize", {}, rows)
    jobs.complete(db, jobs.claim(db, "job-3", "worker"), new_result(output="three"))
    jobs.fail(db, jobs.claim(db, "job-4", "worker"), "OutputInvalid", "no")
    found = list(results.rows(db, batch_id="batch"))
    assert [row.job_id for row in found] == names
    by_id = {row.job_id: row for row in found}
    assert (by_id["job-3"].output, by_id["job-3"].usage.input_tokens) == ("three", 10)
    assert (by_id["job-3"].cost_usd, by_id["job-3"].seconds) == (0.5, 1.5)
    assert (by_id["job-4"].error_type, by_id["job-4"].error_message) == ("OutputInvalid", "no")
    assert (by_id["job-4"].cost_usd, by_id["job-4"].usage) == (0.0, Usage())  # it made no call
    assert by_id["job-5"].state == "queued"


def test_rows_hold_no_transaction_open_between_pages(db, monkeypatch):
    monkeypatch.setattr(results, "PAGE", 1)
    for name in "abc":
        jobs.insert(db, [new_job(name, batch_id="batch")], sent=True)
    stream = results.rows(db, batch_id="batch")
    assert next(stream).state == "queued"
    jobs.cancel(db, "b")
    assert next(stream).state == "cancelled"


def test_rows_of_a_document_are_those_of_its_tenant(db):
    for job_id, tenant, document_id in (("a", "t", "d"), ("b", "u", "d"), ("c", "t", "e")):
        jobs.insert(db, [new_job(job_id, tenant=tenant, document_id=document_id)], sent=True)
    assert [row.job_id for row in results.rows(db, document_id="d", tenant="t")] == ["a"]
    assert [row.job_id for row in results.rows(db, job_id="b")] == ["b"]
    assert list(results.rows(db, batch_id="nothing")) == []
    assert list(results.rows(db, batch_id="a\x00")) == []
    with pytest.raises(ValueError, match="name a batch"):
        results.rows(db)


def test_a_resumed_job_gets_back_the_whole_answers_it_paid_for(db):
    job = claimed(db)
    odd = "an \x00 answer \ud800 of 漢字"
    calls.record(
        db,
        job,
        [
            new_call("1", answer_key="one", answer=odd),
            new_call("2", answer_key="two", outcome="OutputTruncated", answer="cut"),
            new_call("3", answer_key="three", outcome="ProviderTimeout", answer=None, usage=None),
        ],
    )
    found = calls.answers(db, "job")
    assert set(found) == {"one"}
    assert found["one"].answer == odd
    assert found["one"].usage == Usage(input_tokens=10, output_tokens=2, cached_input_tokens=1)
    assert (found["one"].latency_s, found["one"].request_id) == (0.5, "request")
    assert calls.answers(db, "other") == {}


def test_a_call_recorded_again_is_paid_once(db):
    job = claimed(db)
    calls.record(db, job, [new_call("1"), new_call("2", cost_usd=0.5)])
    calls.record(db, job, [new_call("1"), new_call("2", cost_usd=0.5)])
    calls.record(db, job, [])
    usage, cost = calls.spent(db, "job")
    assert usage == Usage(input_tokens=20, output_tokens=4, cached_input_tokens=2)
    assert cost == 0.75


def test_what_was_spent_is_unknown_as_soon_as_one_call_is(db):
    job = claimed(db)
    assert calls.spent(db, "job") == (Usage(), 0.0)
    calls.record(db, job, [new_call("1"), new_call("2", usage=None, cost_usd=None)])
    assert calls.spent(db, "job")[1] is None


def test_a_call_is_recorded_also_when_the_job_is_held_by_another(db):
    job = claimed(db)
    jobs.cancel(db, "job")
    calls.record(db, job, [new_call()])
    assert calls.spent(db, "job")[1] == 0.25


def test_only_old_answers_of_ended_jobs_are_forgotten_and_their_numbers_stay(db, monkeypatch):
    monkeypatch.setattr(calls, "CHUNK", 2)
    for name in ("ended", "open", "young"):
        job = claimed(db, name)
        calls.record(db, job, [new_call(f"{name}-{n}", answer_key=str(n)) for n in range(3)])
        if name != "open":
            jobs.complete(db, job, new_result())
    with db.write() as connection:
        connection.execute(
            sa.update(provider_calls)
            .where(provider_calls.c.job_id != "young")
            .values(created_at=provider_calls.c.created_at - 1000)
        )
    assert sum(calls.forget_answers(db, 500.0)) == 3
    assert [len(calls.answers(db, name)) for name in ("ended", "open", "young")] == [0, 3, 3]
    assert calls.spent(db, "ended")[1] == 0.75
