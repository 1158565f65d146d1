import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen.checkers import bank as checker
from jepsen.checkers.result import Result
from jepsen.history import Malformed
from tests.jepsen.making import Making


def kinds(result: Result) -> set[str]:
    return {anomaly.kind for anomaly in result.anomalies}


@pytest.mark.parametrize(
    ("balances", "expected"),
    [
        ({"0": 4, "1": 6}, set()),
        ({"0": 0, "1": 10}, set()),
        ({"0": 4, "1": 5}, {"wrong-total"}),
        ({"0": 11, "1": -1}, {"negative"}),
        ({"0": 12, "1": -1}, {"negative", "wrong-total"}),
        ({"0": 10}, {"wrong-accounts"}),
        ({"0": 4, "1": 6, "2": 0}, {"wrong-accounts"}),
    ],
)
def test_every_read_is_looked_at(balances: dict[str, int], expected: set[str]) -> None:
    making = Making()
    making.did(0, "transfer", {"from": 0, "to": 1, "amount": 1})
    making.did(1, "read", None, balances, node="b")
    result = checker.check(making.calls(), total=10, accounts=["0", "1"])
    assert kinds(result) == expected
    assert result.valid is (not expected)
    assert checker.check(making.calls(), total=10, negative=True).valid is (sum(balances.values()) == 10)


def test_without_a_read_nothing_is_known() -> None:
    assert checker.check((), total=10).valid == "unknown"


@pytest.mark.parametrize("value", [None, [1], {"0": None}, {"0": 1.5}, {"0": True}])
def test_what_is_no_bank_is_an_error(value: object) -> None:
    making = Making()
    making.did(0, "read", value)
    with pytest.raises(Malformed, match="operation 1"):
        checker.check(making.calls(), total=10)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9))
def test_transfers_keep_the_total_and_half_a_transfer_does_not(seed: int, amount: int) -> None:
    numbers = random.Random(seed)
    making = Making()
    balances = {str(account): 10 for account in range(5)}
    for _ in range(100):
        one, two = numbers.sample(sorted(balances), 2)
        if balances[one] >= amount:
            balances[one] -= amount
            balances[two] += amount
        making.did(0, "read", None, dict(balances))
    assert checker.check(making.calls(), total=50, accounts=balances).valid is True
    torn = {**balances, "0": balances["0"] + amount}
    making.did(0, "read", None, torn)
    assert kinds(checker.check(making.calls(), total=50, accounts=balances)) == {"wrong-total"}
