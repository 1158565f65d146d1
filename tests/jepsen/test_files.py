import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepsen import edn, edn_history, lines
from jepsen.description import Description
from jepsen.edn import Keyword, Symbol
from jepsen.ending import DatabaseEnd, Ending, Kept, LogLine, NodeEnd, RoleChange
from jepsen.history import Malformed, Operation
from jepsen.lines import Record
from tests.jepsen.making import Making, append, read

ENDING = Ending(
    (NodeEnd("a", (DatabaseEnd("d", 1, "0a", "0a", "f", 4096),), (Kept("1", "d", 1, 2, 3, (4,)),), "hung"),),
    (0, 2),
    (RoleChange(1, "a", "primary", 3),),
    (LogLine(1, "a", "warning", "x", "x y"),),
)
DESCRIPTION = Description("append", ("a", "b"), ("kill",), 7, replication="sync", accounts=("0",))


def written(record: Record) -> bytes:
    stream = io.StringIO()
    lines.write(record, stream)
    return stream.getvalue().encode()


def some() -> Record:
    making = Making()
    making.did(0, "txn", [["append", "x", 1], ["r", "x", None]], [append("x", 1), read("x", 1)], node="a")
    making.nemesis("start-kill", {"node": "a", "how": ["kill", 9]})
    making.begin(1, "read", None)
    making.end(1, "info", error="timeout")
    making.observed("status", {"node": "a", "lag_s": 0.5})
    return Record(tuple(making.operations), DESCRIPTION, ENDING)


# --------------------------------------------------------------------------------------------------------- JSON lines
def test_a_record_is_read_as_it_was_written() -> None:
    assert lines.read(written(some())) == some()
    assert lines.read(b"") == Record(())


def test_a_history_that_was_cut_off_anywhere_is_read_up_to_its_last_whole_line() -> None:
    record = Record(some().operations, DESCRIPTION)
    content = written(record)
    ends = [at for at in range(len(content)) if content[at : at + 1] == b"\n"]
    for length in range(len(content) + 1):
        found = lines.read(content[:length])
        # The last line is whole without its end of line.
        whole = sum(at <= length for at in ends)
        assert len(found.operations) == max(0, whole - 1)
        assert found.torn is (length not in {0, *ends, *(at + 1 for at in ends)})


def test_a_broken_line_in_the_middle_is_an_error_with_its_number() -> None:
    content = written(some()).splitlines(keepends=True)
    content[3] = content[3][:-5] + b"\n"
    with pytest.raises(Malformed, match="line 4 is not JSON"):
        lines.read(b"".join(content))


GOOD = {"index": 0, "time": 0, "process": 0, "type": "invoke", "f": "add", "value": 1}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "not an object"),
        ({**GOOD, "indeks": 1}, "indeks: no such key"),
        ({**GOOD, "index": -1}, "from 0 up"),
        ({**GOOD, "index": True}, "from 0 up"),
        ({**GOOD, "time": 1.5}, "from 0 up"),
        ({**GOOD, "f": 1}, "not a text"),
        ({**GOOD, "node": None}, "not a text"),
        ({**GOOD, "process": 1.0}, "neither a number nor a name"),
        ({**GOOD, "process": "me"}, "no process 'me'"),
        ({**GOOD, "type": "maybe"}, "type is 'maybe'"),
        ({**GOOD, "type": ["ok"]}, "which is not one of"),
        ({key: GOOD[key] for key in GOOD if key != "f"}, "f is missing"),
        ({"test": {"workload": "append", "sead": 7}}, "sead"),
        ({"test": {"workload": 7}}, "workload"),
        ({"test": {}}, "workload"),
        ({"test": {"workload": "append"}, "index": 1}, "nothing else belongs"),
        ({"ending": {"nodes": [{"node": "a", "databases": [{"name": "d"}]}]}}, "required"),
        ({"ending": {"roles": [{"time_ns": 0, "node": "a", "role": "king", "epoch": 1}]}}, "king"),
    ],
)
def test_a_line_of_another_form_is_an_error(document: object, said: str) -> None:
    with pytest.raises(Malformed, match=said):
        lines.read(json.dumps(document).encode() + b"\n")


def test_test_and_ending_have_their_places() -> None:
    one, test, ending = json.dumps(GOOD), json.dumps({"test": {"workload": "x"}}), json.dumps({"ending": {}})
    for content, said in (
        ([one, test], "first line"),
        ([ending, ending], "one ending"),
        ([ending, one], "after the ending"),
    ):
        with pytest.raises(Malformed, match=said):
            lines.read("\n".join([*content, ""]).encode())


def test_operations_in_the_wrong_order_are_an_error() -> None:
    with pytest.raises(Malformed, match="stands after"):
        lines.read((json.dumps(GOOD) + "\n").encode() * 2)


# ----------------------------------------------------------------------------------------------------------------- EDN
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nil true false", [None, True, False]),
        ("1 -2 +3 4N 1.5 -2e3 1.0M", [1, -2, 3, 4, 1.5, -2000.0, 1.0]),
        (':a :a/b-c? "x\\n\\"\\u0041"', [Keyword("a"), Keyword("a/b-c?"), 'x\n"A']),
        ("[1, [2] ()] {:a 1, 2 nil} #{1 2}", [[1, [2], []], {"a": 1, 2: None}, frozenset({1, 2})]),
        ("; nothing\n#_ [1 2] 3 #_#_ 4 5 6", [3, 6]),
        ("[1 #_2]", [[1]]),
        ('#inst "2026" #jepsen.history.Op{:index 1}', ["2026", {"index": 1}]),
        ("\\a \\newline \\u0041", ["a", "\n", "A"]),
        ("foo/bar", [Symbol("foo/bar")]),
        ("", []),
        ("  , ; end", []),
    ],
)
def test_the_grammar(text: str, expected: list[object]) -> None:
    assert list(edn.read_all(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "[1",
        "]",
        "[1)",
        "{1}",
        "{1 2 1 3}",
        '"abc',
        '"\\q"',
        "#",
        "012",
        ":",
        "1x",
        "[" * 200,
        "#_",
        "#inst",
        "\\abc",
        "{",
        "9" * 5000,
    ],
)
def test_what_is_no_edn_is_an_error(text: str) -> None:
    with pytest.raises(Malformed, match="line 1"):
        list(edn.read_all(text))


def test_what_has_no_form_is_not_written() -> None:
    for value in (float("nan"), float("inf"), object()):
        with pytest.raises(Malformed, match="no form"):
            edn.write(value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.just("12"), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_edn_is_read_as_it_was_written(value: object) -> None:
    assert list(edn.read_all(edn.write(value))) == [value]


def test_an_operation_has_the_form_that_other_checkers_read() -> None:
    one = Operation(3, 12, 0, "ok", "txn", [append(1, 2), read(1, 2)], "a", "x")
    assert edn_history.write_operation(one) == (
        '{:index 3, :time 12, :type :ok, :process 0, :f :txn, :value [[:append 1 2] [:r 1 [2]]], :node "a", :error "x"}'
    )
    two = Operation(4, 13, "nemesis", "info", "start-kill", {"0": 10, "from": "n1"})
    assert edn_history.write_operation(two) == (
        '{:index 4, :time 13, :type :info, :process :nemesis, :f :start-kill, :value {0 10, :from "n1"}}'
    )


@st.composite
def histories(draw: st.DrawFn) -> tuple[Operation, ...]:
    making = Making()
    for process in range(draw(st.integers(0, 5))):
        making.did(process, draw(st.sampled_from(["add", "txn", "a-b", "x y"])), draw(VALUES), draw(VALUES))
        making.observed("status", draw(VALUES))
    return tuple(making.operations)


@given(histories())
def test_histories_come_back_from_edn_and_from_json(operations: tuple[Operation, ...]) -> None:
    stream = io.StringIO()
    edn_history.write_history(operations, stream)
    assert edn_history.read_history(stream.getvalue()) == operations
    assert lines.read(written(Record(operations))).operations == operations


def test_a_history_for_others_has_clients_only() -> None:
    stream = io.StringIO()
    edn_history.write_history(some().operations, stream, clients_only=True)
    assert [each.process for each in edn_history.read_history(stream.getvalue())] == [0, 0, 1, 1]


def test_histories_of_others_are_read() -> None:
    text = """[#jepsen.history.Op{:type :invoke, :f :read, :value nil, :process 0, :time 1, :index 0, :debug {:x 1}}
     {:type :info, :f :read, :value nil, :process 0, :time 2, :index 1, :error [:timeout "a"]}
     {:type :info, :f :start, :value #{"n1" "n2"}, :process :nemesis, :time 3, :index 2}]"""
    first, second, third = edn_history.read_history(text)
    assert (first.type, first.f, first.index) == ("invoke", "read", 0)
    assert second.error == '[:timeout "a"]'
    assert third.value == ["n1", "n2"]
    without = edn_history.read_history(
        "{:type :invoke :f :read :process 0 :time 0}\n{:type :ok :f :read :process 0 :time 0}"
    )
    assert [each.index for each in without] == [0, 1]


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "[5]",
        "{:type :ok}",
        "{:type :huh :f :a :process 0 :time 0}",
        "{:type :ok :f :a :process nil :time 0}",
        "{1 2",
    ],
)
def test_what_is_no_history_is_an_error(text: str) -> None:
    with pytest.raises(Malformed):
        edn_history.read_history(text)


def test_values_of_any_depth_are_refused_and_not_a_crash() -> None:
    deep: Any = "[" * 100_000
    with pytest.raises(Malformed):
        lines.read(deep.encode() + b"\n")
    with pytest.raises(Malformed):
        edn_history.read_history(deep)
