import math
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from autoclip.lab.yaml_source import MAX_BYTES, MAX_DEPTH, dump, read_document

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab<=~:- 1'", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads a text as the file `x.yaml`."""
    monkeypatch.chdir(tmp_path)

    def read_text(text, *overrides):
        path = Path("x.yaml")
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_document(path, overrides)

    return read_text


def faults(document):
    return [str(fault) for fault in document.faults]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-3", 0.001),
        ("1e5", 1e5),
        ("-1.5E+2", -150.0),
        (".5", 0.5),
        ("5.", 5.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("-3", -3),
        ("9223372036854775807", 2**63 - 1),
        ("no", "no"),
        ("off", "off"),
        ("Yes", "Yes"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("inf", "inf"),
        ("=", "="),
        ("~", None),
        ("", None),
        ("Null", None),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
    ],
)
def test_scalars_follow_the_core_schema(read, written, meant):
    document = read(f"a: {written}\n")
    assert document.faults == []
    assert document.values == {"a": meant}
    assert type(document.values["a"]) is type(meant)


def test_every_value_and_key_knows_its_place(read):
    document = read("a:\n  b: [1, {c: 2}]\n")
    assert str(document.places[()]) == "x.yaml:1:1"
    assert str(document.places["a",]) == "x.yaml:2:3"
    assert str(document.keys["a",]) == "x.yaml:1:1"
    assert str(document.places["a", "b", 1, "c"]) == "x.yaml:2:14"
    assert str(document.keys["a", "b", 1, "c"]) == "x.yaml:2:11"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "x.yaml: must be a mapping of keys to values, got an empty file"),
        ("# nothing\n", "x.yaml: must be a mapping of keys to values, got an empty file"),
        ("- a\n", "x.yaml:1:1: must be a mapping of keys to values, got a list"),
        ("\n word\n", "x.yaml:2:2: must be a mapping of keys to values, got a single value"),
        ("a: b: c\n", "x.yaml:1:5: must be valid YAML: mapping values are not allowed here"),
        (
            "a:\n\tb: 1\n",
            "x.yaml:2:1: must be valid YAML: while scanning for the next token, found character '\\t' that cannot "
            "start any token; use spaces, not tabs",
        ),
        (
            "a: [1, 2",
            "x.yaml:1:9: must be valid YAML: while parsing a flow sequence, expected ',' or ']', but got "
            "'<stream end>'",
        ),
        (
            "a: 1\n---\nb: 2\n",
            "x.yaml:2:1: must be valid YAML: expected a single document in the stream, but found another document",
        ),
        (
            "a: &x [1, 1]\nb: *x\n",
            "x.yaml:2:4: must be valid YAML: aliases (*name) are not supported, write the value out",
        ),
        ("a: \x00", "x.yaml:1:4: must be printable text, got the character U+0000"),
        (b"a: 1\nb: \xff\xfe", "x.yaml:2:4: must be UTF-8 text, got the byte 0xff"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "x.yaml:1:1: must be UTF-8 text, got the byte 0x89"),
        ("a: " + "x" * MAX_BYTES, "x.yaml: must be at most 1,000,000 bytes long, got more"),
        ("a: " + "[" * 60 + "]" * 60, "x.yaml:1:53: must be valid YAML: nested deeper than 50 levels"),
        ("a: " + "[" * 100_000, "x.yaml:1:53: must be valid YAML: nested deeper than 50 levels"),
    ],
)
def test_a_file_that_cannot_be_read_has_one_fault(read, text, line):
    document = read(text)
    assert faults(document) == [line]
    assert document.values is None


def test_an_alias_bomb_is_refused_at_its_first_alias(read):
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]
    assert faults(read("\n".join(lines))) == [
        "x.yaml:2:10: must be valid YAML: aliases (*name) are not supported, write the value out"
    ]


def test_the_deepest_allowed_nesting_is_read(read):
    brackets = MAX_DEPTH - 1  # the mapping around them is a level too
    value = read("a: " + "[" * brackets + "]" * brackets).values["a"]
    for _ in range(brackets - 1):
        (value,) = value
    assert value == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("nope.yaml", "nope.yaml: must be a YAML file, got nothing: there is no such file"),
        (".", ".: must be a YAML file, got a directory"),
        ("x.yaml/y", "x.yaml/y: must be a readable YAML file, got an error: Not a directory"),
    ],
)
def test_a_path_without_a_file(read, path, line):
    read("a: 1")
    assert faults(read_document(Path(path))) == [line]


def test_faults_inside_a_file_are_all_reported_and_the_rest_is_read(read):
    document = read(
        "a: 1\n"
        "b: 99999999999999999999\n"
        "a: 2\n"
        "c: !!python/object/apply:os.system [echo]\n"
        "1: one\n"
        "d: {x: .nan, y: 1e999, <<: {z: 1}, w: !!int five}\n"
        'e: "\\ud800"\n'
        "? [k]\n: 1\n"
        f"f: {'9' * 10_000}\n"
    )
    assert faults(document) == [
        "x.yaml:2:4: b: must be a whole number of at most 64 bits, got 99999999999999999999",
        "x.yaml:3:1: a: must be given once, got it again (first at x.yaml:1:1)",
        "x.yaml:4:4: c: must be a plain value, list or mapping, got the tag !!python/object/apply:os.system",
        "x.yaml:5:1: must have words as keys, got '1' (put it in quotes)",
        "x.yaml:6:8: d.x: must be a number that a float can hold, got .nan",
        "x.yaml:6:17: d.y: must be a number that a float can hold, got 1e999",
        "x.yaml:6:24: d.<<: must be written out, got a merge key",
        "x.yaml:6:39: d.w: must be a value of the tag !!int, got 'five'",
        "x.yaml:7:4: e: must be valid Unicode, got half of a surrogate pair in '\\ud800'",
        "x.yaml:8:3: must have words as keys, got a list or mapping (put it in quotes)",
        f"x.yaml:10:4: f: must be a whole number of at most 64 bits, got {'9' * 37}...",
    ]
    assert document.values["a"] == 1


def test_a_byte_order_mark_is_no_content(read):
    assert read(b"\xef\xbb\xbfa: 1").values == {"a": 1}


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("a.b=2", {"a": {"b": 2, "c": [1, 2]}}),
        ("a={d: 1}", {"a": {"d": 1}}),
        ("a.c.0=x", {"a": {"b": 1, "c": ["x", 2]}}),
        ("a.c=[]", {"a": {"b": 1, "c": []}}),
        ("new.deep.key=1e-3", {"a": {"b": 1, "c": [1, 2]}, "new": {"deep": {"key": 0.001}}}),
        ("a.b=", {"a": {"b": None, "c": [1, 2]}}),
        ("a.b=x=y", {"a": {"b": "x=y", "c": [1, 2]}}),
        ("a.b=no", {"a": {"b": "no", "c": [1, 2]}}),
    ],
)
def test_overrides_replace_or_add(read, override, values):
    document = read("a: {b: 1, c: [1, 2]}", override)
    assert document.faults == []
    assert document.values == values


def test_later_overrides_win_and_run_through_earlier_ones_and_null(read):
    document = read("a: null", "a.b=1", "a.b=2", "a.c=3")
    assert document.values == {"a": {"b": 2, "c": 3}}
    assert str(document.places["a", "b"]) == "command line: a.b=2"
    assert str(document.places["a",]) == "command line: a.b=1"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("word", "command line: word: must be KEY=VALUE with dots in the key, as in optimizer.lr=0.1, got 'word'"),
        ("=5", "command line: =5: must be KEY=VALUE with dots in the key, as in optimizer.lr=0.1, got '=5'"),
        (
            "a..b=5",
            "command line: a..b=5: must be KEY=VALUE with dots in the key, as in optimizer.lr=0.1, got 'a..b=5'",
        ),
        ("a.b.c=5", "command line: a.b.c=5: a.b.c: must run through mappings, got a.b, which holds 1"),
        (
            "a.c.2=5",
            "command line: a.c.2=5: a.c.2: must run through existing keys, got '2' where a.c holds a list with the "
            "indices 0 to 1",
        ),
        (
            "a.c.x=5",
            "command line: a.c.x=5: a.c.x: must run through existing keys, got 'x' where a.c holds a list with the "
            "indices 0 to 1",
        ),
        (
            "a.b=[1, 2",
            "command line: a.b=[1, 2: a.b: must be valid YAML: while parsing a flow sequence, expected ',' or ']', "
            "but got '<stream end>' (character 6 of the value)",
        ),
        (
            "a={x: 1, x: 2}",
            "command line: a={x: 1, x: 2}: a.x: must be given once, got it again (first at command line: "
            "a={x: 1, x: 2})",
        ),
        ("a.b=!foo 1", "command line: a.b=!foo 1: a.b: must be a plain value, list or mapping, got the tag !foo"),
    ],
)
def test_a_fault_in_an_override_names_the_override(read, override, line):
    assert faults(read("a: {b: 1, c: [1, 2]}", override)) == [line]


def test_an_override_of_many_levels_is_refused(read):
    (line,) = faults(read("a: 1", ".".join("a" * 1000) + "=1"))
    assert line.startswith("command line: a.a.a.")
    assert "must be KEY=VALUE" in line
    assert len(line) < 400


def test_a_fault_is_one_line_whatever_the_key_holds(read):
    document = read('"a\\nb": !foo 1\n', "c\n=1\n2: 3: 4")
    assert all("\n" not in line for line in faults(document))
    assert faults(document)[0].startswith("x.yaml:1:9: 'a\\nb': must be a plain value")


@given(st.dictionaries(st.text("abc.-_ ", min_size=1), PLAIN, max_size=4))
def test_what_is_dumped_reads_back_equal(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(dump(values), encoding="utf-8", newline="")
    document = read_document(path)
    assert faults(document) == []
    assert document.values == values


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
@example("\x85")
@example(" \u2028\ufeff")
def test_a_dumped_text_stays_a_text_for_readers_of_yaml_1_1_too(text):
    assert yaml.safe_load(dump({"a": text})) == {"a": text}


def test_a_value_that_occurs_twice_is_written_twice():
    shared = [1]
    assert dump({"a": shared, "b": shared}) == "a: [1]\nb: [1]\n"
