from collections.abc import Iterable

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.delivery import Delivery, Packer, Parcel, decode_lines, decode_message, encode_message
from engine.reservation import Reservation
from engine.sale import Sale
from engine.tests.orders import make_terms, reserve, to_line

SALE = Sale(sale_id=3, terms=make_terms(stock=10, product_id=2, quantity=4))
LINES = [to_line(r).encode() for r in reserve(SALE, 2, key='a"\\null')]


def test_an_entry_holds_one_reservation_a_line() -> None:
    batch = [*reserve(SALE, 2), *reserve(SALE, 1, key='k"\\{}~!')]
    expected = [msgspec.structs.replace(r, accepted_ms=1_700_000_000_000) for r in batch]
    text = "\n".join(map(to_line, batch)).encode()
    assert decode_lines(text, 1_700_000_000_000) == (expected, [])


def test_a_message_brings_back_what_was_sent() -> None:
    batch = [*reserve(SALE, 2), *reserve(SALE, 1, key='k"\\{}~!')]
    assert decode_message(encode_message(batch)) == (batch, [])


def test_bad_lines_are_poison_and_their_neighbours_are_not() -> None:
    order = LINES[0].split()[0]
    bad = [
        b"",
        b"nonsense",
        b"\xff\xfe",
        order + b" 1 2 3",
        order + b" 1 2 3 0",
        order + b" x 2 3 1",
        order + b" 1 2 3 1 a key",
        b"00000000-0000-4000-8000-000000000000 1 2 3 1",
        order + b" 1 2 9223372036854775808 1",
    ]
    for line in bad:
        good, poison = decode_lines(b"\n".join((LINES[0], line, LINES[1])), 0)
        assert [r.order_id.encode() for r in good] == [each.split()[0] for each in LINES]
        assert [record.body for record in poison] == [line]
        assert poison[0].reason


def test_bad_records_of_a_message_are_poison_and_their_neighbours_are_not() -> None:
    batch = reserve(SALE, 2)
    records = [msgspec.json.encode(r) for r in batch]
    for bad in (b"null", b"{}", b'"x"', records[0].replace(b'"quantity":4', b'"quantity":-1')):
        good, poison = decode_message(b"[" + b",".join((records[0], bad, records[1])) + b"]")
        assert good == batch
        assert [record.body for record in poison] == [bad]


def test_a_message_that_is_no_list_is_poison_as_a_whole() -> None:
    for body in (b"", b"{}", b"\xff", b"[1,"):
        good, poison = decode_message(body)
        assert good == []
        assert [record.body for record in poison] == [body]


@given(size=st.integers(1, 7), lengths=st.lists(st.integers(0, 20), max_size=12))
def test_parcels_are_full_and_finish_their_deliveries_once(size: int, lengths: list[int]) -> None:
    deliveries = [
        Delivery(tag=tag, reservations=reserve(SALE, length), poison=[], repeated=False)
        for tag, length in enumerate(lengths)
    ]
    packer = Packer(size)
    parcels = [parcel for delivery in deliveries for parcel in packer.add(delivery)]
    assert all(len(parcel.reservations) == size for parcel in parcels)
    parcels += packer.flush()
    assert packer.empty
    assert ids(r for parcel in parcels for r in parcel.reservations) == ids(
        r for delivery in deliveries for r in delivery.reservations
    )
    # Parcels may be done in any order; a delivery is finished with the last one that holds some of it.
    finished: list[Delivery] = []
    for position, parcel in reversed(list(enumerate(parcels))):
        done = parcel.finish()
        assert all(holds_none(parcels[:position], delivery) for delivery in done)
        finished += done
    assert sorted(delivery.tag for delivery in finished) == list(range(len(lengths)))


def test_a_parcel_tells_whether_some_of_it_was_seen_before() -> None:
    packer = Packer(3)
    fresh = Delivery(tag=1, reservations=reserve(SALE, 2), poison=[], repeated=False)
    again = Delivery(tag=2, reservations=reserve(SALE, 2), poison=[], repeated=True)
    assert [p.repeated for p in [*packer.add(fresh), *packer.add(again), *packer.flush()]] == [True, True]
    assert [p.repeated for p in [*packer.add(fresh), *packer.flush()]] == [False]


def ids(reservations: Iterable[Reservation]) -> list[str]:
    return [r.order_id for r in reservations]


def holds_none(parcels: list[Parcel], delivery: Delivery) -> bool:
    return all(delivery not in parcel.deliveries for parcel in parcels)
