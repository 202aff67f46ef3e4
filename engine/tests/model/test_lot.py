from hypothesis import given
from hypothesis import strategies as st

from engine.model.lot import count_orders, decode_lots, encode_lots, split_lots, without_orders
from engine.model.order_id import make_stem
from engine.model.sale import Sale
from engine.tests.orders import ids, make_terms, reserve

SALE = Sale(sale_id=3, terms=make_terms(stock=10, product_id=2, quantity=4))
LINES = [encode_lots([lot]) for lot in reserve(SALE, 2, key='a"\\null')]


def test_lines_bring_back_what_was_written() -> None:
    lots = [*reserve(SALE, 2), *reserve(SALE, 5, key='k"\\{}~!', size=3)]
    assert decode_lots(encode_lots(lots)) == (lots, [])


def test_a_lot_holds_purchases_whose_places_follow_one_another() -> None:
    stem = make_stem()
    line = b'["%b",7,2,3,4,1700000000000,[11,12,13],[null,"k",null]]' % stem.encode()
    [lot], dead_letters = decode_lots(line)
    assert not dead_letters
    assert lot.order_ids == [stem + "007", stem + "008", stem + "009"]
    assert (lot.user_ids, lot.keys) == ([11, 12, 13], [None, "k", None])
    assert (lot.product_id, lot.sale_id, lot.quantity, lot.accepted_ms) == (2, 3, 4, 1_700_000_000_000)


def test_bad_lines_are_dead_letters_and_their_neighbours_are_not() -> None:
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
        good, dead_letters = decode_lots(b"\n".join((LINES[0], line, LINES[1])))
        assert encode_lots(good) == b"\n".join(LINES)
        assert [dead_letter.body for dead_letter in dead_letters] == [line]
        assert dead_letters[0].reason


@given(count=st.integers(0, 30), size=st.integers(1, 9), at=st.integers(0, 35))
def test_lots_are_split_after_any_order(count: int, size: int, at: int) -> None:
    lots = reserve(SALE, count, key="k", size=size)
    first, rest = split_lots(lots, at)
    assert count_orders(first) == min(at, count)
    assert ids(first) + ids(rest) == ids(lots)
    assert [user for lot in first + rest for user in lot.user_ids] == list(range(1, count + 1))
    assert len(first) + len(rest) <= len(lots) + 1, "at most one lot is cut"


@given(count=st.integers(0, 30), size=st.integers(1, 9), gone=st.sets(st.integers(0, 29)))
def test_any_orders_can_be_left_out(count: int, size: int, gone: set[int]) -> None:
    lots = reserve(SALE, count, key="k", size=size)
    every = ids(lots)
    kept = without_orders(lots, {every[number] for number in gone if number < count})
    assert ids(kept) == [order_id for number, order_id in enumerate(every) if number not in gone]
    assert [user for lot in kept for user in lot.user_ids] == [
        number + 1 for number in range(count) if number not in gone
    ]
    assert gone & set(range(count)) or kept == lots
