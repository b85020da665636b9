"""Python's reader and C++'s say the same of every bundle and engine set, whole or not."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from make_corpus import Case, make_corpus
from rnp_deploy.bundle import open_bundle
from rnp_deploy.bundle.engine_set import is_engine_set, open_engine_set
from rnp_deploy.bundle.schema import engine_set_schema, manifest_schema
from rnp_deploy.canonical_json import parse_json
from rnp_deploy.errors import RnpError
from serving_build import built, environment
from tiny_packages import edit, resigned, signed, write_bundle, write_engine_set

#: The first test to need the C++ programs builds them.
pytestmark = pytest.mark.timeout(1500)

MUTATIONS = 400  # of each file, by value and by byte
SCHEMAS = {
    "manifest.json": jsonschema.Draft202012Validator(manifest_schema()),
    "engines.json": jsonschema.Draft202012Validator(engine_set_schema()),
}
WRITERS = {"manifest.json": write_bundle, "engines.json": write_engine_set}
#: What takes the place of a value: each is just inside or outside of what some field takes.
VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 3, 4, 5, -1, 2**31 - 1, 2**31, 2**40, 2**63 - 1, -(2**63), 0.0, -0.0, 0.5, 1.0, 2.0, -1.5,
    1e16, 5e-324, 1.7976931348623157e308, "", "x0", "images", "1.0", "float16", "int64", "weights.bin", "s1/1.onnx",
    "../x", "a//b", "0" * 64, [], {}, [0], [1], [1, 2], [2, 4], [1.0], [None], {"": ""}, {"x0": "x0"},
]  # fmt: skip
#: What comes between the bytes of a file, or replaces some.
TOKENS = [
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"0", b"-", b".", b"e", b"E9", b"1", b"99999999999999999999", b" ", b"\t",
    b"\n", b"\0", b"\x01", b"\x0b", b"\x7f", b"\x80", b"\xc3\xa9", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"null", b"true", b"NaN",
    b"\\u0041", b"\\ud800", b"\\udc00", b'"a":1,', b"/**/", b"'",
]  # fmt: skip


def python_verdict(path: Path) -> str:
    try:
        (open_engine_set if is_engine_set(path) else open_bundle)(path)
    except RnpError as err:
        return err.code
    return "ok"


def cpp_verdicts(paths: list[Path]) -> list[str]:
    """Of a program built with sanitizers: what they find is an exit code of its own."""
    done = subprocess.run(
        [built("asan") / "rnp_check", "--json", "-"],
        input="".join(f"{path}\n" for path in paths),
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        env=dict(environment("asan")),
        check=False,
    )
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == any(verdict["code"] != "ok" for verdict in verdicts), done.stderr
    assert [verdict["path"] for verdict in verdicts] == [str(path) for path in paths], done.stderr
    assert all(bool(verdict["message"]) == (verdict["code"] != "ok") for verdict in verdicts)
    return [verdict["code"] for verdict in verdicts]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def test_the_corpus_is_large_and_has_every_code(corpus):
    codes = Counter(case.code for case in corpus)
    assert codes["ok"] >= 12
    assert codes.total() - codes["ok"] >= 90
    assert set(codes) == {
        "ok", "missing", "unreadable", "json", "version", "values-hash", "path", "link", "fields", "file-missing",
        "file-size", "file-hash", "other-bundle", "plan",
    }  # fmt: skip
    assert len({case.name for case in corpus}) == len(corpus)


def test_python_says_of_each_case_what_it_should(corpus):
    found = [(case.name, case.code, python_verdict(case.path)) for case in corpus]
    assert [case for case in found if case[1] != case[2]] == []


def test_cpp_says_of_each_case_what_it_should(corpus):
    verdicts = cpp_verdicts([case.path for case in corpus])
    found = [(case.name, case.code, got) for case, got in zip(corpus, verdicts, strict=True)]
    assert [case for case in found if case[1] != case[2]] == []


def test_what_the_schemas_refuse_is_in_no_good_case(corpus):
    for case in (case for case in corpus if case.code == "ok"):
        for name, schema in SCHEMAS.items():
            file = case.path / name
            raw = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            if raw.get("format_version") == "1.0":
                schema.validate(raw)


@pytest.fixture(scope="module", params=WRITERS)
def originals(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Name of a JSON file, and a whole package with it."""
    folder = tmp_path_factory.mktemp("whole")
    WRITERS[request.param](folder)
    return request.param, folder


def copies(original: Path, root: Path, name: str, texts: list[bytes]) -> list[Path]:
    """The package once for each text of one of its files; what is not changed is not copied either."""
    paths = []
    for i, text in enumerate(texts):
        shutil.copytree(original, root / str(i), copy_function=os.link)
        (root / str(i) / name).unlink()
        (root / str(i) / name).write_bytes(text)
        paths.append(root / str(i))
    return paths


def assert_both_agree(paths: list[Path], texts: list[bytes], name: str) -> Counter[str]:
    """How often each code was said."""
    python = [python_verdict(path) for path in paths]
    differing = [
        (mine, other, text.decode("utf-8", "backslashreplace"))
        for mine, other, text in zip(python, cpp_verdicts(paths), texts, strict=True)
        if mine != other
    ]
    assert differing == []
    for code, text in zip(python, texts, strict=True):
        if code == "ok" and parse_json(text)["format_version"] == "1.0":
            SCHEMAS[name].validate(parse_json(text))
    return Counter(python)


def test_both_agree_on_values_changed_at_random(originals, tmp_path):
    name, folder = originals
    chance = random.Random(7)
    raw = json.loads((folder / name).read_text(encoding="utf-8"))
    texts = []
    while len(texts) < MUTATIONS:
        changed = json.loads(json.dumps(raw))
        for _ in range(chance.choice((1, 1, 1, 2))):
            change_a_value(changed, chance)
        texts.append(json.dumps(signed(changed, name)).encode())
    codes = assert_both_agree(copies(folder, tmp_path, name, texts), texts, name)
    assert {"ok", "fields", "version", "path"} <= set(codes)
    assert name == "manifest.json" or codes["plan"] > MUTATIONS / 20


def change_a_value(raw: dict[str, Any], chance: random.Random) -> None:
    """Somewhere inside: drop, replace, copy, rename, shorten or double."""
    places: list[tuple[Any, Any]] = []
    seen: list[Any] = [raw]
    while seen:
        holder = seen.pop()
        for key in holder if isinstance(holder, dict) else range(len(holder)):
            places.append((holder, key))
            if isinstance(holder[key], dict | list):
                seen.append(holder[key])
    holder, key = chance.choice(places)
    value = holder[key]
    kind = chance.choice(("drop", "replace", "replace", "replace", "copy", "near", "shape"))
    if kind == "drop":
        del holder[key]
    elif kind == "copy":
        other, place = chance.choice(places)
        holder[key] = json.loads(json.dumps(other[place]))
    elif kind == "near" and isinstance(value, int | float):
        holder[key] = chance.choice((value + 1, value - 1, -value, float(value), value * 2**16))
    elif kind == "shape" and isinstance(value, list) and value:
        holder[key] = chance.choice((value[:-1], value[1:], value * 2, value[::-1], [*value, value[0]]))
    elif kind == "shape" and isinstance(holder, dict):
        holder[chance.choice((key + "s", key.upper(), ""))] = holder.pop(key)
    else:
        holder[key] = json.loads(json.dumps(chance.choice(VALUES)))


def test_both_agree_on_bytes_changed_at_random(originals, tmp_path):
    """Mostly it is no JSON any more; where it is, the hash tells."""
    name, folder = originals
    chance = random.Random(11)
    original = (folder / name).read_bytes()
    texts = []
    while len(texts) < MUTATIONS:
        at = chance.randrange(len(original))
        end = at + chance.choice((0, 0, 1, 1, 2, 7))
        texts.append(original[:at] + chance.choice([*TOKENS, b""]) + original[end:])
    codes = assert_both_agree(copies(folder, tmp_path, name, texts), texts, name)
    assert {"ok", "json", "values-hash"} <= set(codes)


def a_double(chance: random.Random) -> float:
    """Any but infinities and NaN: of random bits, or near a power of two or ten."""
    while True:
        kind = chance.random()
        if kind < 0.5:
            value = struct.unpack("<d", chance.randbytes(8))[0]
        elif kind < 0.8:
            value = float(f"{chance.randrange(1, 10 ** chance.randint(1, 17))}e{chance.randint(-340, 300)}")
        else:
            value = chance.choice((2.0, 10.0)) ** chance.randint(-300, 300) * chance.choice(
                (1, -1, 1 + 2**-52, 0.1)
            )
        if math.isfinite(value):
            return value


def test_both_write_floats_the_same(tmp_path):
    """Their hash is of what they read back to: one digit otherwise, and it would be refused."""
    chance = random.Random(13)
    write_bundle(tmp_path)
    penalties = sorted({a_double(chance) for _ in range(4000)})
    points = [
        {"penalty": p, "accuracy": a_double(chance), "macs_share": a_double(chance), "option_counts": []}
        for p in penalties
    ]
    edit(tmp_path, "manifest.json", lambda raw: raw["calibration"].update(points=points))
    assert (python_verdict(tmp_path), cpp_verdicts([tmp_path])) == ("ok", ["ok"])


def in_a_newer_version(value: str) -> Callable[[str], str]:
    """A key that a later minor version may have, its value as it is written here."""

    def change(text: str) -> str:
        newer = text.replace('"format_version": "1.0"', '"format_version": "1.1"', 1)
        return newer.replace('"producer": ', f'"novelty": {value}, "producer": ', 1)

    return change


def a_number(chance: random.Random) -> str:
    """A float in any form that JSON has, rarely the shortest."""
    digits = "".join(chance.choices("0123456789", k=chance.randint(1, 40))).lstrip("0") or "0"
    point = f".{''.join(chance.choices('0123456789', k=chance.randint(1, 25)))}"
    exponent = f"{chance.choice('eE')}{chance.choice(('', '+', '-'))}{chance.randint(0, 260)}"
    return chance.choice("- ").strip() + digits + chance.choice((point, exponent, point + exponent))


def test_both_read_numbers_the_same_however_they_are_written(tmp_path):
    chance = random.Random(17)
    write_bundle(tmp_path)
    numbers = ", ".join(a_number(chance) for _ in range(4000))
    resigned(in_a_newer_version(f"[{numbers}]"))(tmp_path)
    assert (python_verdict(tmp_path), cpp_verdicts([tmp_path])) == ("ok", ["ok"])


def test_both_read_texts_the_same(tmp_path):
    chance = random.Random(19)
    ranges = ((0, 0x20), (0x20, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000))

    def text() -> str:
        made = "".join(chr(chance.randrange(*chance.choice(ranges))) for _ in range(chance.randint(0, 12)))
        return json.dumps(made, ensure_ascii=chance.random() < 0.5)

    write_bundle(tmp_path)
    keys = dict.fromkeys(json.loads(text()) for _ in range(1500))
    pairs = ", ".join(f"{json.dumps(key, ensure_ascii=chance.random() < 0.5)}: {text()}" for key in keys)
    resigned(in_a_newer_version(f"{{{pairs}}}"))(tmp_path)
    assert (python_verdict(tmp_path), cpp_verdicts([tmp_path])) == ("ok", ["ok"])


def test_real_ones_are_read_by_both(exported, engine_set):
    paths = [exported("chain").path, engine_set("chain")]
    assert [python_verdict(path) for path in paths] == cpp_verdicts(paths) == ["ok"] * 2
