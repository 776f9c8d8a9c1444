"""Templates: parsing, rejection and filling. Values of rows are never parsed as templates."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from federated.task import Cloze, TaskDefinition, TextTemplate, columns_read
from federated.templates import TemplateInvalid, parse
from tests.support.bad_texts import TEMPLATES

PIECES = st.sampled_from(
    ["{", "}", "{{", "}}", "{mask}", "{text}", "{a b}", "{0}", "{a!r}", "{a:{a}}", "{a.b}", "x", " "]
)
TEXTS = st.text(max_size=64) | st.lists(PIECES, max_size=24).map("".join)
VALUES = st.text(max_size=32) | st.lists(PIECES, max_size=8).map("".join)


@given(text=TEXTS, values=st.lists(VALUES, min_size=64, max_size=64))
@example(text="{{{mask}}} {text}", values=["{mask} {text:>9}"] * 64)
def test_any_text_is_refused_or_filled_with_any_row(text: str, values: list[str]) -> None:
    try:
        made = TextTemplate(prompt=text).prompt
    except ValidationError:
        return
    template = parse(made)
    row = dict(zip(template.columns, values, strict=False))
    filled = template.fill(row)
    put_in = [row[name] for name in template.fields]
    assert len(filled) <= len(text) + sum(map(len, put_in))
    assert all(value in filled for value in put_in)


@given(text=TEXTS)
def test_a_cloze_is_refused_or_has_one_gap(text: str) -> None:
    try:
        made = Cloze(template=text, words=("a", "b"))
    except ValidationError:
        return
    assert parse(made.template).fields.count("mask") == 1


@pytest.mark.parametrize("text", TEMPLATES.values(), ids=list(TEMPLATES))
def test_what_is_no_template_is_refused(text: str) -> None:
    with pytest.raises(TemplateInvalid):
        parse(text + "{mask}" if text == TEMPLATES["many columns"] else text)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ('{{"q": "{question}"}}', '{"q": "{a} and {{b}}"}'),
        ("{{{question}}}", "{{a} and {{b}}}"),
        ("{_x}-{día 1}-{प्रश्न}-{質問}", "1-2-3-4"),
        ("{{question}}", "{question}"),
        ("", ""),
    ],
)
def test_braces_are_written_twice_and_values_are_put_in_as_they_are(text: str, filled: str) -> None:
    row = {"question": "{a} and {{b}}", "_x": "1", "día 1": "2", "प्रश्न": "3", "質問": "4"}
    assert parse(text).fill(row) == filled


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        ({"task": "sequence_classification", "labels": ["a", "b"]}, ("text", "label")),
        ({"task": "causal_lm"}, ("instruction", "input", "output")),
        ({"task": "causal_lm", "template": {"prompt": "{{x}} {q} {q}", "response": "{a} {q}"}}, ("q", "a")),
        (
            {
                "task": "sequence_classification",
                "labels": ["a", "b"],
                "cloze": {"template": "{head} {mask} {body}", "words": ["x", "y"]},
            },
            ("head", "body", "label"),
        ),
    ],
)
def test_a_task_says_which_columns_it_reads(task: dict[str, object], columns: tuple[str, ...]) -> None:
    assert columns_read(TaskDefinition.model_validate(task)) == columns
