from hypothesis import given
from hypothesis import strategies as st

from engine.model.lot import Lot, count_orders, encode_lots
from engine.model.message import Message
from engine.model.sale import Sale
from engine.stages.batch import Batch, Packer
from engine.tests.orders import ids, make_terms, reserve, unpack

SALE = Sale(sale_id=3, terms=make_terms(stock=10, product_id=2, quantity=4))


@given(size=st.integers(1, 7), lengths=st.lists(st.integers(0, 20), max_size=12), lot=st.integers(1, 25))
def test_batches_are_full_and_finish_their_messages_once(size: int, lengths: list[int], lot: int) -> None:
    messages = [make_message(reserve(SALE, length, size=lot), tag) for tag, length in enumerate(lengths)]
    packer = Packer(size)
    batches = [batch for message in messages for batch in packer.add(message)]
    assert all(count_orders(batch.lots) == size for batch in batches)
    batches += packer.flush()
    assert packer.empty
    assert ids(lot for batch in batches for lot in batch.lots) == ids(unpack(messages))
    # Batches may be done in any order; a message is finished with the last one that holds some of it.
    finished: list[Message] = []
    for position, batch in reversed(list(enumerate(batches))):
        done = batch.finish()
        assert all(holds_none(batches[:position], message) for message in done)
        finished += done
    assert sorted(message.tag for message in finished) == list(range(len(lengths)))


def test_a_batch_tells_whether_some_of_it_was_seen_before() -> None:
    packer = Packer(3)
    fresh = make_message(reserve(SALE, 2))
    again = make_message(reserve(SALE, 2), repeated=True)
    assert [b.repeated for b in [*packer.add(fresh), *packer.add(again), *packer.flush()]] == [True, True]
    assert [b.repeated for b in [*packer.add(fresh), *packer.flush()]] == [False]


def make_message(lots: list[Lot], tag: int = 0, repeated: bool = False) -> Message:
    return Message(tag=tag, lines=encode_lots(lots), repeated=repeated, orders=count_orders(lots))


def holds_none(batches: list[Batch], message: Message) -> bool:
    return all(message not in batch.messages for batch in batches)
