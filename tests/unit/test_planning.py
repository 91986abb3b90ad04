"""What a job asks, and what it will cost, without asking."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtasks import estimates, task_types
from llmtasks.documents.pool import pool
from llmtasks.documents.reading import Text, read_one
from llmtasks.errors import ConfigurationError
from llmtasks.planning import Plan, plan
from llmtasks.settings import Provider, Settings, Task
from llmtasks.store.documents import NewDocument
from llmtasks.store.engine import Database
from llmtasks.task_types import Document
from llmtasks.text.keys import request_key
from llmtasks.text.tokens import request_tokens

WORDS = ("the", "a", "ship", "harbour", "left", "Bergen", "1921", ",", ".")
MINI = Provider(name="mini", kind="openai", model="gpt-4o-mini", api_key_env="K")
HAIKU = Provider(name="haiku", kind="anthropic", model="claude-haiku-4-5", api_key_env="K")


def document(name: str, text: str = "The ship left the harbour at noon. " * 20) -> NewDocument:
    return NewDocument(document_id=name, text=text, content_hash=f"hash of {text}")


def planned(*providers: Provider, task: str = "summarize", **options: object) -> Plan:
    return plan(Settings(providers=providers), task, options)


@pytest.fixture
def empty(tmp_path: Path, sqlite_file: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{shutil.copy(sqlite_file, tmp_path / 'jobs.sqlite3')}")
    yield database
    database.close()


def estimated(db: Database, asked: Plan, *documents: NewDocument) -> estimates.Estimate:
    estimator = estimates.Estimator(asked, db)
    estimator.add(documents)
    return estimator.estimate()


def test_no_provider_for_a_task_type_is_one_clear_error() -> None:
    with pytest.raises(ConfigurationError, match="no provider is configured for summarize"):
        planned()


def test_tokens_are_exact_where_all_models_have_one_known_vocabulary() -> None:
    assert planned(MINI).exact
    assert planned(MINI, served_by("gpt-4.1")).exact
    assert not planned(HAIKU).exact
    assert not planned(MINI, HAIKU).exact


def test_any_change_of_the_question_changes_its_name() -> None:
    names = {
        planned(MINI).answer_key("default", "h"),
        planned(MINI).answer_key("other", "h"),
        planned(MINI).answer_key("default", "h2"),
        planned(MINI, max_words=50).answer_key("default", "h"),
        planned(MINI, HAIKU).answer_key("default", "h"),
        planned(served_by("gpt-4o")).answer_key("default", "h"),
        planned(MINI, task="extract").answer_key("default", "h"),
    }
    assert len(names) == 7
    assert planned(MINI, HAIKU).answer_key("d", "h") == planned(HAIKU, MINI).answer_key("d", "h")


#: One word of it is replaced; the last ones are long past what an embedding would look at.
LETTER = (
    "On 12 March Ms Doe paid 1,250 EUR to Harbour Bank and did agree to the terms. "
    + "The rest of the letter is about the weather. " * 120
    + "It was signed by Mr Lee of 4 Elm Street."
)
#: Digit, name, negation, currency, letter case, white space, and each of them at the far end.
NEAR = [
    ("12", "13"),
    ("1,250", "1,260"),
    ("Doe", "Dow"),
    ("did agree", "did not agree"),
    ("EUR", "USD"),
    ("Harbour Bank", "harbour bank"),
    ("paid 1", "paid  1"),
    ("letter is", "letter isn't"),
    ("Lee", "Leo"),
    ("4 Elm", "5 Elm"),
    ("Street.", "Street"),
]


def texts(*files: str) -> list[Text]:
    """The texts of such files."""
    with pool() as converters:
        return [read_one(file.encode(), 1_000_000, converters) for file in files]


def test_questions_that_differ_in_one_sign_never_share_an_answer() -> None:
    """Documents, tenants, languages and options: every combination has a name of its own."""
    letters = texts(LETTER, *(LETTER.replace(old, new) for old, new in NEAR))
    plans = [
        planned(MINI),
        planned(MINI, max_words=100),
        planned(MINI, max_words=101),
        *(planned(MINI, task="translate", target_language=to) for to in ("es", "pt", "pt-BR")),
    ]
    tenants = ("default", "Default", "default ", "defau1t")
    asked = list(itertools.product(tenants, letters, plans))
    answers = {one.answer_key(tenant, letter.content_hash) for tenant, letter, one in asked}
    requests = {
        request_key(tenant, one.models, one.request(Document("d", letter.text)))
        for tenant, letter, one in asked
    }
    assert len(asked) == len(answers) == len(requests)


def test_one_question_in_another_spelling_has_the_same_name() -> None:
    letter = "Ms Doe\nof Málaga\n"
    spelled = texts(*(letter.replace("\n", end) for end in ("\n", "\r\n", "\r")))
    options = {"target_language": "es", "source_language": "en"}
    names = {
        planned(*ours, task="translate", **dict(given)).answer_key("default", text.content_hash)
        for given in itertools.permutations(options.items())
        for ours in ((MINI, HAIKU), (HAIKU, MINI))
        for text in spelled
    }
    assert len(names) == 1


def served_by(model: str) -> Provider:
    return Provider(name="mini", kind="openai", model=model, api_key_env="K")


def test_answers_at_a_high_temperature_have_no_name() -> None:
    settings = Settings(providers=(MINI,), tasks={"summarize": Task(temperature=0.9)})
    assert plan(settings, "summarize", {}).answer_key("default", "h") is None


def test_input_tokens_are_those_of_the_very_question(empty: Database) -> None:
    new = document("a")
    asked = planned(MINI)
    request = asked.request(Document("a", new.text))
    assert estimated(empty, asked, new).input_tokens == request_tokens(request, "gpt-4o-mini")


def test_the_same_text_twice_is_one_call(empty: Database) -> None:
    found = estimated(empty, planned(MINI), document("a"), document("b"), document("c", "Other."))
    assert (found.documents, found.calls, found.repeated) == (3, 2, 1)


def test_an_unknown_price_is_unknown_and_not_zero(empty: Database) -> None:
    own = Provider(name="own", kind="openai", model="my-model", base_url="http://127.0.0.1:1/v1")
    found = estimated(empty, planned(own), document("a"))
    assert found.cost_usd is None
    assert found.most_cost_usd is None
    # One unknown price makes the sum unknown.
    assert estimated(empty, planned(own, MINI), document("a")).cost_usd is None


def test_nothing_to_ask_costs_nothing(empty: Database) -> None:
    found = estimated(empty, planned(MINI))
    assert (found.calls, found.cost_usd, found.seconds) == (0, 0, None)


def test_a_document_that_fits_no_provider_is_named_with_its_reason(empty: Database) -> None:
    small = Provider(
        name="small", kind="openai", model="m", base_url="http://127.0.0.1:1/v1", context_window=800
    )
    found = estimated(empty, planned(small), document("a"), document("long", "word " * 5_000))
    assert found.calls == 1
    assert list(found.unfit) == ["long"]
    assert "context window 800" in found.unfit["long"]


def weighted(name: str, weight: float, **limits: float) -> Provider:
    return Provider(
        name=name, kind="openai", model="gpt-4o-mini", api_key_env="K", weight=weight, **limits
    )


def split(db: Database, *providers: Provider, count: int = 8) -> dict[str, float]:
    documents = (document(f"d{n}", f"Text number {n}.") for n in range(count))
    found = estimated(db, planned(*providers), *documents)
    return {share.provider: share.calls for share in found.shares}


def test_without_limits_calls_are_split_by_weight_and_a_standby_gets_none(empty: Database) -> None:
    providers = weighted("a", 3.0), weighted("b", 1.0), weighted("standby", 0.0)
    assert split(empty, *providers) == {"a": 6.0, "b": 2.0}


def test_within_limits_everybody_is_as_busy_as_its_own_allow(empty: Database) -> None:
    slow = weighted("slow", 1.0, requests_per_minute=10)
    fast = weighted("fast", 1.0, requests_per_minute=70)
    assert split(empty, slow, fast) == pytest.approx({"slow": 1.0, "fast": 7.0})


def test_the_limits_together_say_how_long_it_takes_at_the_least(empty: Database) -> None:
    documents = [document(f"d{n}", f"Text number {n}.") for n in range(10)]
    slow = weighted("slow", 1.0, requests_per_minute=30, tokens_per_minute=1_000_000)
    assert estimated(empty, planned(slow), *documents).seconds == pytest.approx(20.0)
    twice = weighted("twice", 1.0, requests_per_minute=30)
    assert estimated(empty, planned(slow, twice), *documents).seconds == pytest.approx(10.0)
    assert estimated(empty, planned(slow, weighted("any", 1.0)), *documents).seconds is None


def test_the_longest_answers_are_priced_at_the_dearest_provider(empty: Database) -> None:
    dear = Provider(name="dear", kind="openai", model="gpt-4o", api_key_env="K")
    alone = estimated(empty, planned(dear), document("a"))
    both = estimated(empty, planned(MINI, dear), document("a"))
    assert both.most_cost_usd == alone.most_cost_usd
    assert both.cost_usd is not None
    assert alone.cost_usd is not None
    assert both.cost_usd < alone.cost_usd < both.most_cost_usd


def test_a_task_type_that_asks_in_its_own_way_has_no_known_cost(
    empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = task_types.get("summarize")
    monkeypatch.setattr(type(kind), "run", lambda *_: "own way", raising=False)
    found = estimated(empty, planned(MINI), document("a"))
    assert (found.foreseen, found.calls, found.cost_usd) == (False, 1, None)


@given(
    words=st.lists(
        st.sampled_from(WORDS),
        min_size=1,
    ),
    name=st.sampled_from(["summarize", "extract", "translate"]),
)
def test_what_is_likely_is_never_more_than_what_is_allowed(words: list[str], name: str) -> None:
    kind = task_types.get(name)
    options = task_types.parse_options(name, {"target_language": "es"} if name[0] == "t" else {})
    text = Document("d", " ".join(words))
    likely = kind.expected_output_tokens(text, options)
    assert 0 < likely <= kind.max_output_tokens(text, options)
