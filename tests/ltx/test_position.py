import pytest
from hypothesis import given

from litereplica.errors import Corrupt
from litereplica.ltx.position import TXID, Position, format_txid
from tests.ltx.records import u64


def test_a_position_is_printed_as_litefs_prints_it() -> None:
    assert str(Position(0x1A, 0xF0F0)) == "000000000000001a/000000000000f0f0"
    assert format_txid(TXID(255)) == "00000000000000ff"
    assert str(Position.ZERO) == "0" * 16 + "/" + "0" * 16


@given(u64, u64)
def test_every_position_is_read_back_from_its_text(txid: int, checksum: int) -> None:
    assert Position.parse(str(Position(txid, checksum))) == Position(txid, checksum)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "1/2",
        "000000000000001a",
        "000000000000001a/000000000000f0f0\n",
        " 000000000000001a/000000000000f0f0",
        "000000000000001A/000000000000f0f0",
        "00000000000001_a/000000000000f0f0",
        "+00000000000001a/000000000000f0f0",
        "000000000000001a-000000000000f0f0",
        "000000000000001a/000000000000f0f00",
        "٠00000000000001a/000000000000f0f0",
        "x" * 10_000,
    ],
)
def test_anything_else_is_no_position(text: str) -> None:
    with pytest.raises(Corrupt) as raised:
        Position.parse(text)
    assert len(raised.value.message) < 300
