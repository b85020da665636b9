"""JSON is parsed strictly, and hashed by its values alone."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnp_deploy import canonical_json
from rnp_deploy.canonical_json import canonical_sha256, dump_json, parse_json, read_json_bytes

texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=10)
objects = st.dictionaries(texts, values, max_size=5)


@given(objects)
def test_what_is_dumped_is_parsed(value):
    assert parse_json(dump_json(value).encode("utf-8")) == value


@given(objects)
def test_the_hash_survives_a_round_trip_and_another_key_order(value):
    again = parse_json(dump_json(dict(reversed(value.items()))).encode("utf-8"))
    assert canonical_sha256(again, without="x") == canonical_sha256(value, without="x")


def test_the_hash_is_that_of_sorted_compact_utf8():
    value = {"b": [1, 2.5, None], "é": {"z": True, "y": "\n"}, "a": "ß", "sha": "left out"}
    canonical = '{"a":"ß","b":[1,2.5,null],"é":{"y":"\\n","z":true}}'
    assert canonical_sha256(value, without="sha") == hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def test_only_the_outermost_key_is_left_out_of_the_hash():
    inner = [
        canonical_sha256({"a": {"sha": n}, "sha": m}, without="sha") for n, m in ((1, 1), (1, 2), (2, 1))
    ]
    assert inner[0] == inner[1] != inner[2]


def test_dumped_json_is_for_people():
    assert dump_json({"b": [1], "a": "é"}) == '{\n  "b": [\n    1\n  ],\n  "a": "é"\n}\n'


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_no_file_is_written_that_could_not_be_read(number):
    for call in (dump_json, lambda value: canonical_sha256(value, without="")):
        with pytest.raises(ValueError, match="JSON"):
            call({"a": number})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": [-Infinity]}', "-Infinity is not JSON"),
        (b'{"a": 1e999}', "[a-z]"),
        (b'{"a": "\\ud800"}', "[a-z]"),
        (b'{"a": 1, "a": 1}', "key stands twice"),
        (b'{"a": [{"b": 1, "c": 2, "b": 3}]}', "key stands twice"),
        (b"[1]", "top level is not an object"),
        (b"null", "top level is not an object"),
        (b'"text"', "top level is not an object"),
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b'{"a": 1} {"b": 2}', "Extra data"),
        (b"{'a': 1}", "property name"),
        (b'{"a": 1,}', "property name"),
        (b'{"a": "\xff"}', "utf-8"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        ('{"a": 1}'.encode("utf-16"), "utf-8"),
        (b'{"a": ' + b"1" * 5000 + b"}", "1… is out of range"),
        (b'{"a": 9223372036854775808}', "9223372036854775808 is out of range"),
        (b'{"a": -9223372036854775809}', "-9223372036854775809 is out of range"),
        (b'{"a": "\0"}', "control character"),
        (b'{"a": 1}\0', "Extra data"),
        (b'{"a": "\xc0\xaf"}', "utf-8"),
        (b'{"a": "\xed\xa0\x80"}', "utf-8"),
        (b'{"a": "\\ud83d\\ud83d\\ude00"}', "surrogates"),
        (b'{"a": 1, "\\u0061": 1}', "key stands twice"),
        (b'{"a":' + b"[" * 32 + b"]" * 32 + b"}", "nested too deeply: more than 32 levels"),
        (b'{"a":' * 32 + b"{}" + b"}" * 32, "nested too deeply: more than 32 levels"),
        (b'{"a": ' + b"[" * 10**6, "nested too deeply"),
        (b'{"a":' * 10**5 + b"1" + b"}" * 10**5, "nested too deeply"),
    ],
    ids=lambda item: str(item[:20]),
)  # fmt: skip
def test_what_is_not_strict_json_is_refused(data, words):
    with pytest.raises(ValueError, match=words):
        parse_json(data)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-0", 0),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("-0.0", -0.0),
        ("1E2", 100.0),
        ("1e-400", 0.0),
        ('"\\ud83d\\ude00"', "\N{GRINNING FACE}"),
        ('"\\u0000\x7f\\/"', "\0\x7f/"),
        ("[" * 31 + "]" * 31, None),
    ],
)
def test_what_is_just_allowed(text, value):
    parsed = parse_json(f' \t\r\n{{"a" : {text}}}\n'.encode())["a"]
    if value is not None:
        assert repr(parsed) == repr(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e16, "1e+16"),
        (9999999999999998.0, "9999999999999998.0"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (5e-324, "5e-324"),
        (-0.0, "-0.0"),
        (1.5e300, "1.5e+300"),
        ('\x00\x1f\x7f"\\\n\r\t\f\b/\u2028é', '"\\u0000\\u001f\x7f\\"\\\\\\n\\r\\t\\f\\b/\u2028é"'),
    ],
)
def test_the_hash_is_of_numbers_and_texts_in_one_form(value, text):
    expected = hashlib.sha256(f'{{"a":{text}}}'.encode()).hexdigest()
    assert canonical_sha256({"a": value}, without="x") == expected


def test_a_file_is_read_up_to_the_limit(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    file.write_bytes(b"x" * 10)
    monkeypatch.setattr(canonical_json, "MAX_BYTES", 10)
    assert read_json_bytes(file) == b"x" * 10
    monkeypatch.setattr(canonical_json, "MAX_BYTES", 9)
    with pytest.raises(ValueError, match="10 bytes; at most 9"):
        read_json_bytes(file)
    with pytest.raises(FileNotFoundError):
        read_json_bytes(tmp_path / "b.json")
