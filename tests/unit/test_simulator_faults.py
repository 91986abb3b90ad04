"""Which fault strikes whom, and which answers the simulator gives."""

from __future__ import annotations

import hashlib
import json

import pytest

from llmtasks.simulator.answers import answer, document, target_language
from llmtasks.simulator.config import Fault, Quota, read, read_faults
from llmtasks.simulator.faults import FaultPlan
from llmtasks.simulator.journal import Entry, Journal
from llmtasks.simulator.protocol import Ask, digest
from llmtasks.simulator.server import account_of

NOW = 1_700_000_000.0


def ask(prompt: str = "The cat sat. It was grey.", *, system: str = "Summarize.", **given) -> Ask:
    texts = [system, prompt]
    values = {
        "api": "openai",
        "model": "m",
        "texts": texts,
        "digest": digest(texts),
        "input_tokens": 10,
        "max_tokens": 1_000,
    }
    return Ask(**{**values, **given})


def plan(*faults: Fault, seed: int = 0) -> FaultPlan:
    made = FaultPlan(seed=seed)
    made.add(faults, NOW)
    return made


def strikes(of: FaultPlan, times: int = 1, *, now: float = NOW, question: Ask | None = None):
    found = []
    for _ in range(times):
        chosen = of.choose(question or ask(), "key", now)
        if chosen is not None:
            chosen.struck += 1
        found.append(chosen.kind if chosen else None)
    return found


def test_next_strikes_so_many_and_then_the_following_fault_has_its_turn():
    faults = plan(Fault(kind="500", next=2), Fault(kind="529", next=1))
    assert strikes(faults, 4) == ["500", "500", "529", None]


def test_a_fault_that_was_chosen_but_did_not_strike_is_not_used_up():
    faults = plan(Fault(kind="500", next=1))
    assert faults.choose(ask(), "key", NOW).kind == "500"
    assert strikes(faults, 2) == ["500", None]


def test_a_rate_is_kept_and_the_same_seed_strikes_the_same_requests():
    first, second, other = (
        strikes(plan(Fault(kind="503", rate=0.25), seed=seed), 2_000) for seed in (1, 1, 2)
    )
    assert first == second != other
    assert 400 < first.count("503") < 600


def test_one_document_can_be_poisoned():
    faults = plan(Fault(kind="refusal", match="POISON"))
    assert strikes(faults, question=ask("a POISON document")) == ["refusal"]
    assert strikes(faults, question=ask("a good document")) == [None]


def test_a_time_window_begins_and_ends():
    faults = plan(Fault(kind="503", after_s=10, for_s=5))
    assert [strikes(faults, now=NOW + at)[0] for at in (0, 9.9, 10, 14.9, 15)] == [
        None,
        None,
        "503",
        "503",
        None,
    ]


def test_scope_narrows_to_api_model_and_account():
    assert strikes(plan(Fault(kind="500", api="anthropic"))) == [None]
    assert strikes(plan(Fault(kind="500", model="other"))) == [None]
    assert strikes(plan(Fault(kind="500", account="other"))) == [None]
    assert strikes(plan(Fault(kind="500", api="openai", model="m", account="key"))) == ["500"]


def test_conditions_must_all_hold():
    faults = plan(Fault(kind="500", match="cat", next=1, model="m"))
    assert strikes(faults, question=ask("a dog")) == [None]
    assert strikes(faults, 2) == ["500", None]


def test_stream_faults_leave_other_requests_alone():
    faults = plan(Fault(kind="cut_stream"))
    assert strikes(faults) == [None]
    assert strikes(faults, question=ask(stream=True)) == ["cut_stream"]


def test_faults_can_be_removed_one_by_one():
    faults = plan(Fault(kind="500"), Fault(kind="503"))
    assert faults.remove(1) == 1
    assert strikes(faults) == ["503"]
    assert (faults.remove(99), faults.remove()) == (0, 1)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"{", "not JSON"),
        (b'{"kind": "explode"}', "$.kind"),
        (b'{"kind": "500", "rate": 2}', "$.rate"),
        (b'{"kind": "500", "chance": 1}', "chance"),
        (b'{"next": 1}', "kind"),
        (b'[{"kind": 500}, 7]', "fault"),
    ],
)
def test_a_bad_fault_is_one_clear_line(body, line):
    with pytest.raises(ValueError, match=r".") as caught:
        read_faults(body)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_faults_are_read_singly_and_in_lists_and_with_numbers_for_kinds():
    assert read_faults(b'{"kind": 429, "next": 2}') == (Fault(kind="429", next=2),)
    assert len(read_faults(b'[{"kind": "hang"}, {"kind": "slow", "seconds": 1}]')) == 2


def test_a_quota_must_be_positive():
    with pytest.raises(ValueError, match="requests_per_minute"):
        read(b'{"requests_per_minute": 0}', Quota)


# -- answers --------------------------------------------------------------------------------------


def test_a_summary_is_the_same_for_the_same_question_and_another_for_another():
    first, again, other = (
        answer(ask(prompt), 4.0).text for prompt in ("A cat sat.", "A cat sat.", "A dog sat.")
    )
    assert first == again != other
    assert first.startswith("A cat sat. [")


def test_documents_that_begin_alike_get_different_answers():
    texts = {answer(ask(f"The same first sentence. {n}" + " x" * 500), 4.0).text for n in range(50)}
    assert len(texts) == 50


def test_no_answer_is_longer_than_allowed():
    for allowed in (1, 2, 5, 50):
        said = answer(ask("A long first sentence, and more of it. " * 9, max_tokens=allowed), 4.0)
        assert len(said.text) <= allowed * 4
        assert said.output_tokens <= allowed
        assert said.finish == ("length" if allowed < 50 else "stop")


def test_the_document_is_what_the_first_tag_encloses():
    assert document('Read this.\n<doc id="1">\nA <b>cat</b>.\n</doc>\nNow.') == "A <b>cat</b>."
    assert document("1 < 2 and <unclosed> text") == "1 < 2 and <unclosed> text"


def test_a_translation_is_an_echo_marked_with_the_language():
    question = ask("<document>\n# A cat\n\n- sat\n</document>", system="Translate it into French.")
    assert answer(question, 4.0).text == "# [French] A cat\n\n- sat"


def test_a_document_about_translations_is_no_instruction():
    prompt = f"<document>{'x' * 100} He translated it to French.</document>"
    assert target_language(["Summarize.", prompt]) is None
    assert target_language(["Translate to Spanish: the cat"]) == "Spanish"


def test_refs_unions_limits_and_enums_of_a_schema_are_obeyed():
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["a", "b"]},
            "fixed": {"const": 7},
            "who": {"type": "array", "minItems": 2, "items": {"$ref": "#/$defs/Person"}},
            "none": {"type": "array", "maxItems": 0, "items": {"type": "string"}},
            "maybe": {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 3}]},
            "score": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "short": {"type": "string", "maxLength": 2},
            "long": {"type": "string", "minLength": 200},
            "sure": {"type": ["boolean", "null"]},
        },
        "$defs": {
            "Person": {
                "allOf": [{"properties": {"name": {"type": "string"}}, "required": ["name"]}],
                "properties": {"friend": {"anyOf": [{"$ref": "#/$defs/Person"}, {"type": "null"}]}},
            }
        },
    }
    made = json.loads(answer(ask("Alice met Robert in Lisbon.", schema=schema), 4.0).text)
    assert made["kind"] in ("a", "b")
    assert made["fixed"] == 7
    assert {who["name"] for who in made["who"]} <= {"Alice", "Robert", "Lisbon"}
    assert made["none"] == []
    assert made["maybe"] == 3
    assert 0 < made["score"] <= 1
    assert len(made["short"]) <= 2
    assert len(made["long"]) >= 200
    assert made["sure"] is True


def test_a_bad_answer_is_not_of_the_schema():
    question = ask(schema={"type": "object", "properties": {}})
    assert not isinstance(json.loads(answer(question, 4.0, "bad_answer").text), dict)
    assert answer(ask(), 4.0, "bad_answer").text == ""


# -- journal and accounts -------------------------------------------------------------------------


def entry(seq: int) -> Entry:
    return Entry(
        seq=seq,
        request_id=f"r{seq}",
        at=NOW,
        account="a",
        model="m",
        path="/v1/messages",
        tag="",
        status=200,
        prompt=hashlib.sha256(b"x").digest(),
        input_tokens=3,
        max_tokens=9,
        output_tokens=2,
        granted=True,
        whole=True,
        stream=False,
        fault="",
        duration_s=0.1,
    )


def test_the_log_keeps_only_its_size_and_the_counts_keep_all():
    journal = Journal(size=10, file=None)
    for seq in range(2_000):
        journal.note(entry(seq))
    lines = b"".join(journal.pages()).splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(1_990, 2_000))
    assert len(b"".join(journal.pages(last=3)).splitlines()) == 3
    assert b"".join(journal.pages(last=0)) == b""
    assert journal.counts()["requests"] == 2_000
    assert journal.counts()["tokens"] == {"input": 6_000, "output": 4_000}


def test_a_long_key_is_never_shown():
    key = "sk-" + "x" * 60
    shown = account_of({"Authorization": f"Bearer {key}"})
    assert shown.startswith("sha256:")
    assert "xxx" not in shown
    assert account_of({"x-api-key": "short"}) == "short"
    assert account_of({}) == "anonymous"
