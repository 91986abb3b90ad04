from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.task_context import Scripted, document

from llmtasks import task_types
from llmtasks.errors import OutputInvalid
from llmtasks.text import tokens

TEXT = (
    "Ingrid Solheim built the lighthouse for the Northern\nCoast Authority in May 1931.\n"
    "Mr. O’Brien of Hansen & Daughters saw it; Ingrid  Solheim did not. 北京大学的王小明来自上海。"  # noqa: RUF001
)
EXTRACT = task_types.get("extract")
DEFAULT = task_types.parse_options("extract", {})


def accept(answer, text=TEXT, options=DEFAULT):
    return EXTRACT.accept(answer, document(text), options)["entities"]


def entities(*pairs):
    return json.dumps({"entities": [{"text": text, "type": kind} for text, kind in pairs]})


GOOD = entities(("Ingrid Solheim", "person"), ("May 1931", "date"))


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}```",
        f"Here are the entities you asked for:\n\n{GOOD}\n\nLet me know if {{this}} helps!",
        json.dumps(json.loads(GOOD), indent=4),
        GOOD.replace('"type"', '"confidence": 0.9, "type"'),
        f"The form is {{}} or {{braces}}, so: {GOOD}",
    ],
)
def test_json_is_found_in_fences_and_in_a_little_prose(answer):
    assert accept(answer) == json.loads(GOOD)["entities"]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("I found Ingrid Solheim.", "not valid JSON"),
        ("", "no JSON object"),
        (GOOD[:-10], "not valid JSON"),
        ('[{"text": "x", "type": "person"}]', "does not follow the schema"),
        ('{"entities": [{"text": "x"}]}', "missing required field `type`"),
        ('{"entities": null}', "does not follow the schema"),
        ('{"a":' * 100_000, "nested too deeply|not valid JSON"),
        ("{" * 100_000, "not valid JSON"),
    ],
)
def test_what_is_not_json_of_the_form_is_refused(answer, complaint):
    with pytest.raises(OutputInvalid, match=complaint):
        accept(answer)


@pytest.mark.parametrize(
    "name",
    [
        "Northern Coast Authority",  # over a line break
        "northern coast authority",
        "O'Brien",  # straight for typographic quote
        "Hansen & Daughters",
        "北京大学",  # no spaces around it
        "王小明",
        " May 1931 ",
    ],
)
def test_a_name_that_the_document_holds_in_other_spelling_is_kept(name):
    assert accept(entities((name, "organization"))) == [
        {"text": " ".join(name.split()), "type": "organization"}
    ]


def test_unicode_forms_do_not_matter():
    text = unicodedata.normalize("NFD", "Tomás met Zoë in Malmö.")
    for name in ("Tomás", "Zoë", "Malmö"):
        assert accept(entities((name, "person")), text) == [{"text": name, "type": "person"}]
        decomposed = unicodedata.normalize("NFD", name)
        assert accept(entities((decomposed, "person")), "Tomás met Zoë in Malmö.")


def test_what_is_not_in_the_document_or_not_asked_for_is_dropped_and_counted():
    answer = entities(
        ("Ingrid Solheim", "person"),
        ("Napoleon", "person"),
        ("", "person"),
        ("lighthouse", "building"),
    )
    context = Scripted("extract", [answer])
    output = EXTRACT.run(document(TEXT), DEFAULT, context)
    assert output == {"entities": [{"text": "Ingrid Solheim", "type": "person"}]}
    assert context.reported == [
        "extract: dropped 3 of 4 entities: 2 not in the document, 1 of a type not asked for"
    ]


def test_repeated_entities_are_merged_in_order():
    answer = entities(
        ("May 1931", "date"), ("Ingrid Solheim", "Person"), ("INGRID  SOLHEIM", "person"),
        ("Ingrid Solheim", "organization"),
    )  # fmt: skip
    assert accept(answer) == [
        {"text": "May 1931", "type": "date"},
        {"text": "Ingrid Solheim", "type": "person"},
        {"text": "Ingrid Solheim", "type": "organization"},
    ]


def test_no_more_than_asked_for():
    options = task_types.parse_options("extract", {"max_entities": 1})
    assert len(accept(GOOD, options=options)) == 1


@given(st.text(max_size=60))
def test_any_part_of_a_document_is_grounded_in_it(text):
    whole = f"Before it {text} and after."
    kept = accept(entities((text, "date")), whole)
    assert bool(kept) == bool(
        text.translate(dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\ufeff"))).split()
    )


def test_the_schema_is_what_strict_modes_take():
    options = task_types.parse_options("extract", {"types": "person,date", "max_entities": 5})
    schema = EXTRACT.output_schema(options)
    assert schema == {
        "type": "object",
        "properties": {
            "entities": {
                "type": "array",
                "maxItems": 5,
                "items": {
                    "type": "object",
                    "properties": {
                        "text": {"type": "string"},
                        "type": {"type": "string", "enum": ["person", "date"]},
                    },
                    "required": ["text", "type"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["entities"],
        "additionalProperties": False,
    }
    assert EXTRACT.output_schema(DEFAULT)["properties"]["entities"]["maxItems"] == 100


def test_the_limit_is_tight_but_holds_the_entities_of_rich_prose():
    paragraph = (
        "On 12 March 2023 Mira Okafor of the Lake District Council met Daniel Kessler, Aiko Tanaka and"
        " Ruth Adeyemi of Hansen & Daughters in Malmoren. "
    )
    names = [
        "12 March 2023",
        "Mira Okafor",
        "Lake District Council",
        "Daniel Kessler",
        "Aiko Tanaka",
    ]
    names += ["Ruth Adeyemi", "Hansen & Daughters", "Malmoren"]
    for times in (1, 4, 16):
        text = " ".join(paragraph.replace("Mira", f"Mira{n}") for n in range(times))
        honest = entities(*((name, "organization") for name in names), *(
            (f"Mira{n} Okafor", "person") for n in range(times)
        ))  # fmt: skip
        limit = EXTRACT.max_output_tokens(document(text), DEFAULT)
        assert 1.2 * tokens.estimate(honest) < limit <= 256 + 1.3 * tokens.estimate(text)
    assert EXTRACT.max_output_tokens(document("word " * 100_000), DEFAULT) <= 4096
