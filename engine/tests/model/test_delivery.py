from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engine.model.delivery import Delivery, Packer, Parcel, decode_lines, encode_lines, make_messages
from engine.model.lot import Reservation
from engine.model.order_id import make_stem
from engine.model.sale import Sale
from engine.tests.orders import make_terms, reserve, unpack

SALE = Sale(sale_id=3, terms=make_terms(stock=10, product_id=2, quantity=4))
LINES = [encode_lines([r]) for r in reserve(SALE, 2, key='a"\\null')]


def test_lines_bring_back_what_was_written() -> None:
    batch = [*reserve(SALE, 2), *reserve(SALE, 1, key='k"\\{}~!')]
    assert decode_lines(encode_lines(batch)) == (batch, [])


def test_a_lot_holds_purchases_whose_places_follow_one_another() -> None:
    stem = make_stem()
    lot = b'["%b",7,2,3,4,1700000000000,[11,12,13],[null,"k",null]]' % stem.encode()
    reservations, poison = decode_lines(lot)
    assert not poison
    assert [(r.order_id, r.user_id, r.key) for r in reservations] == [
        (stem + "007", 11, None),
        (stem + "008", 12, "k"),
        (stem + "009", 13, None),
    ]
    assert {(r.product_id, r.sale_id, r.quantity, r.accepted_ms) for r in reservations} == {
        (2, 3, 4, 1_700_000_000_000)
    }


def test_bad_lines_are_poison_and_their_neighbours_are_not() -> None:
    stem = LINES[0][:35].decode()
    bad = [
        "nonsense",
        "null",
        "{}",
        "[]",
        f"{stem},0,1,2,3,1]",
        f"{stem},0,1,2,3,1,[]]",
        f"{stem},0,1,2,0,1,[4]]",
        f"{stem},-1,1,2,3,1,[4]]",
        f"{stem},4096,1,2,3,1,[4]]",
        f"{stem},4095,1,2,3,1,[4,5]]",
        f'{stem},0,1,2,3,1,["x"]]',
        f"{stem},0,1,2,3,1,[4],[]]",
        f"{stem},0,1,2,3,1,[4],[null,null]]",
        f'{stem},0,1,2,3,1,[4],["a key"]]',
        f"{stem},0,1,9223372036854775808,1,4,[5]]",
        '["00000000-0000-4000-8000-000000000",0,1,2,3,1,[4]]',
        '["00000000-0000-7000-0000-000000000",0,1,2,3,1,[4]]',
        '["00000000-0000-7000-8000-00000000A",0,1,2,3,1,[4]]',
        '["0000000-00000-7000-8000-000000000",0,1,2,3,1,[4]]',
        '["00000000-0000-7000-8000-0000000000",0,1,2,3,1,[4]]',
        '["00000000-0000-7000-8000-00000000é",0,1,2,3,1,[4]]',
        '["",0,1,2,3,1,[4]]',
    ]
    for line in [*(text.encode() for text in bad), b"\xff\xfe"]:
        good, poison = decode_lines(b"\n".join((LINES[0], line, LINES[1])))
        assert encode_lines(good) == b"\n".join(LINES)
        assert [record.body for record in poison] == [line]
        assert poison[0].reason


@given(size=st.integers(1, 20), lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12))
def test_messages_hold_whole_deliveries_in_order_and_as_many_as_fit(size: int, lengths: list[int]) -> None:
    batches = [reserve(SALE, length) for length in lengths]
    messages = make_messages([make_delivery(batch) for batch in batches], size)
    read = [decode_lines(lines)[0] for lines in messages]
    assert ids(r for batch in read for r in batch) == ids(r for batch in batches for r in batch)
    assert all(len(batch) <= size or len(batch) in lengths for batch in read)
    firsts = {batch[0].order_id: len(batch) for batch in batches}
    for batch, following in pairwise(read):
        assert len(batch) + firsts[following[0].order_id] > size


@given(size=st.integers(1, 7), lengths=st.lists(st.integers(0, 20), max_size=12))
def test_parcels_are_full_and_finish_their_deliveries_once(size: int, lengths: list[int]) -> None:
    deliveries = [make_delivery(reserve(SALE, length), tag=tag) for tag, length in enumerate(lengths)]
    packer = Packer(size)
    parcels = [parcel for delivery in deliveries for parcel in packer.add(delivery)]
    assert all(len(parcel.reservations) == size for parcel in parcels)
    parcels += packer.flush()
    assert packer.empty
    assert ids(r for parcel in parcels for r in parcel.reservations) == ids(unpack(deliveries))
    # Parcels may be done in any order; a delivery is finished with the last one that holds some of it.
    finished: list[Delivery] = []
    for position, parcel in reversed(list(enumerate(parcels))):
        done = parcel.finish()
        assert all(holds_none(parcels[:position], delivery) for delivery in done)
        finished += done
    assert sorted(delivery.tag for delivery in finished) == list(range(len(lengths)))


def test_a_parcel_tells_whether_some_of_it_was_seen_before() -> None:
    packer = Packer(3)
    fresh = make_delivery(reserve(SALE, 2))
    again = make_delivery(reserve(SALE, 2), repeated=True)
    assert [p.repeated for p in [*packer.add(fresh), *packer.add(again), *packer.flush()]] == [True, True]
    assert [p.repeated for p in [*packer.add(fresh), *packer.flush()]] == [False]


def make_delivery(batch: list[Reservation], tag: int = 0, repeated: bool = False) -> Delivery:
    return Delivery(tag=tag, lines=encode_lines(batch), repeated=repeated, orders=len(batch))


def ids(reservations: Iterable[Reservation]) -> list[str]:
    return [r.order_id for r in reservations]


def holds_none(parcels: list[Parcel], delivery: Delivery) -> bool:
    return all(delivery not in parcel.deliveries for parcel in parcels)
