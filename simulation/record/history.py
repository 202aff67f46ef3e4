"""The history: one row for each request of a run, purchases and reads, and its parquet file.

op            int64            number of the request in the plan; retries and the reads of orders have the
                               numbers after those
driver        int16            the process that sent it
user_id       int64            0 for a read of stock
product_id    int64
key           string, null     its Idempotency-Key
intended_ns   int64            when it was meant to start, ns from the run's start; all times share one clock
sent_ns       int64, null      when it was sent; null: never
done_ns       int64, null      when its answer was complete; null: no answer. For a request that was never
                               sent: when its connection was refused; null: the driver gave it up
status        int16            status of the HTTP answer; 0: no answer
outcome       one of OUTCOMES; of a read one of SIGHTS, INVALID, UNAVAILABLE, UNKNOWN
result        one of RESULTS   ok: reserved. fail: surely not reserved. unknown: nobody can say.
                               Of a read: ok if it was shown
order_id      string, null     set if the outcome is ACCEPTED; the order that a read asked for
attempt       int16            number of the client's try, 0: the first one, as planned; of a read of an order
                               the number of the look, from 1
first_op      int64            op of the first try of the same client
kind          one of KINDS     buy: a purchase. stock, order: a read
order_status  string, null     what a read showed of an order
initial, remaining, sold       what a read showed of the stock
              int64, null
end           one of ENDS      why it ended; null: sent and not answered, in a record of before
unsure_ns     int64            how wrong sent_ns and done_ns may be beside other drivers' times: clocks of two
                               machines can't be compared exactly; 0 on the machine of the run
door          int16            the front door that it was meant for, from 0: planned requests and those that
                               follow them go to the front doors in turn
"""

from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from simulation.errors import RunError
from simulation.model.history import DTYPES, derive_end, fill_in

_TYPES: Final = {
    "int16": pa.int16(),
    "int64": pa.int64(),
    "Int64": pa.int64(),
    "str": pa.string(),
    "category": pa.dictionary(pa.int8(), pa.string()),
}
SCHEMA: Final = pa.schema(
    pa.field(
        name,
        _TYPES[str(dtype)],
        nullable=dtype in ("Int64", "str") or name == "end",
    )
    for name, dtype in DTYPES.items()
)


def write_history(history: pd.DataFrame, path: Path) -> None:
    """Write the history as parquet."""
    table = pa.Table.from_pandas(history[list(DTYPES)], preserve_index=False)
    # Times and ids hardly repeat: their differences take half the space of a dictionary.
    whole = {field.name: "DELTA_BINARY_PACKED" for field in SCHEMA if field.type == pa.int64()}
    words = [field.name for field in SCHEMA if field.name not in whole]
    pq.write_table(table.cast(SCHEMA), path, compression="zstd", use_dictionary=words, column_encoding=whole)


def read_history(path: Path) -> pd.DataFrame:
    """Return the history in a parquet file. Raises RunError if the file is none."""
    try:
        table = pq.read_table(path)
        # Nullable integers: a float would round nanoseconds.
        frame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        # Older records lack what there was none of, and what nobody asked for.
        lacking = {name: value for name, value in fill_in(frame).items() if name not in frame}
        if "end" in lacking:
            lacking["end"] = derive_end(frame)
        frame = frame.assign(**lacking)
        history: pd.DataFrame = frame[list(DTYPES)].astype(DTYPES)
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise RunError(f"{path}: is not a history: {str(error).splitlines()[0]}") from None
    return history
