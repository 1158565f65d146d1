from litereplica.ltx.checksum import page_checksum


def test_the_checksum_of_a_page_is_xxh3_64_seeded_with_its_number() -> None:
    # A change of hash or seed would part every log from its database.
    assert page_checksum(1, bytes(512)) != page_checksum(2, bytes(512))
    assert page_checksum(7, b"") == 0x913AE0873E9B7EB8


def test_views_and_bytes_have_one_checksum() -> None:
    page = bytes(range(256)) * 2
    assert page_checksum(3, page) == page_checksum(3, memoryview(page)) == page_checksum(3, bytearray(page))
