"Records of bytes, JSON, tables and logs: a damaged row costs no other row."

import os
import json

import pytest

from personal_llm.base.core import InputError
from personal_llm.data.records import parse_json_rows
from personal_llm.data.records import read_records, read_text


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_encodings(tmp_path, name):
    "PowerShell's > writes UTF-16 with a mark."
    marks = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}
    path = write(tmp_path / "a.jsonl", marks.get(name, b"") + '{"a": "é"}\r\n{"a": 2}\r\n'.encode(name))
    assert [row for _, row in read_records(path)[1]] == [dict(a="é"), dict(a=2)]


def test_missing_files_and_folders(tmp_path):
    for path, words in ((tmp_path / "none.jsonl", "no such file"), (tmp_path, "cannot be read")):
        with pytest.raises(InputError, match=words):
            read_text(path)


@pytest.mark.parametrize("depth", [100, 900, 2_000, 100_000])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("closed", [True, False])
def test_deep_nesting_is_one_line(tmp_path, depth, opening, name, closed):
    closing = "]" if opening == "[" else "}"
    text = opening * depth + "1" + closing * depth if closed else opening * depth
    try:
        _, records, errors = read_records(write(tmp_path / name, text))
    except InputError as error:
        records, errors = [], [(1, error)]
    assert len(errors) == 1 and not records and "\n" not in str(errors[0][1])


def test_lines_end_at_line_feeds_only(tmp_path):
    text = '{"a": "x\u2028y\u0085z"}\r\n{"b": 1}'
    assert parse_json_rows(text, False)[1] == [(1, {"a": "x\u2028y\u0085z"}), (2, {"b": 1})]
    assert read_text(write(tmp_path / "a.csv", b"a\rb\rc")) == "a\nb\nc"


ROWS = [dict(prompt="Hi", response="Hello"), dict(prompt="Bye", response="See you")]
TALKS = [[dict(role="user", content="Hi"), dict(role="assistant", content=text)] for text in ("Hello", "Yo")]
FORMS = {  # the ways in which people save rows
    "lines": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    "list": json.dumps,
    "list over lines": lambda rows: json.dumps(rows, indent=1),
    "list with a row a line": lambda rows: "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n",
    "values over lines": lambda rows: "\n".join(json.dumps(row, indent=2) for row in rows),
}


@pytest.mark.parametrize("rows", [ROWS, TALKS, [dict(messages=TALKS[0])] * 3], ids=["rows", "talks", "messages"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", ["json", "jsonl", "ndjson", "txt"])
def test_the_same_rows_under_any_ending(tmp_path, rows, form, ending):
    if rows is TALKS and form == "values over lines":
        pytest.skip("lists one after the other are no file that people have")
    _, records, errors = read_records(write(tmp_path / f"a.{ending}", FORMS[form](rows)))
    assert [row for _, row in records] == rows and not errors


@pytest.mark.parametrize("text", ['[\n{"a": 1},\n{"b": }\n]', '{\n"a": 1\n}\n{\n"b": \n}'])
def test_a_mistake_in_a_value_over_lines_names_its_line(tmp_path, text):
    with pytest.raises(InputError, match="broken JSON at line [36]"):
        read_records(write(tmp_path / "a.jsonl", text))


def test_an_unclosed_quote_names_the_line_where_it_begins(tmp_path):
    rows = [f"question {i},answer {i}" for i in range(25)]
    for tail in ([], ['"said ""so""",yes'], ['"a","b"']):
        text = "\n".join(["prompt,response", "before,fine", 'Hi,"Hello', *rows, *tail])
        with pytest.raises(InputError, match="a.csv: broken CSV at line 3"):
            read_records(write(tmp_path / "a.csv", text))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="a pipe or a device"):
        read_text(tmp_path / "pipe")
