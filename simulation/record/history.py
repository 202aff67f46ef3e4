"""The history: one row for each operation of a run, and its parquet file.

op            int64            number of the request in the plan; retries are numbered after those planned
driver        int16            the process that sent it
user_id       int64
product_id    int64
key           string, null     its Idempotency-Key
intended_ns   int64            when it was meant to start, ns from the run's start; all share one clock
sent_ns       int64, null      when it was sent; null: it never was
done_ns       int64, null      when its answer was whole; null: none came. Of a request that was never sent:
                               when its connection was refused; null: the driver gave it up
status        int16            of the HTTP answer; 0: none
outcome       one of OUTCOMES
result        one of RESULTS   ok: reserved. fail: surely not reserved. unknown: nobody can say
order_id      string, null     where the outcome is ACCEPTED
attempt       int16            which try of its client it is; 0: the first one, as planned
first_op      int64            the first try of the same client; its own op where it is the first
"""

from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from simulation.errors import RunError
from simulation.model.history import DTYPES

_WORDS = pa.dictionary(pa.int8(), pa.string())
SCHEMA: Final = pa.schema(
    [
        pa.field("op", pa.int64(), nullable=False),
        pa.field("driver", pa.int16(), nullable=False),
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("product_id", pa.int64(), nullable=False),
        pa.field("key", pa.string()),
        pa.field("intended_ns", pa.int64(), nullable=False),
        pa.field("sent_ns", pa.int64()),
        pa.field("done_ns", pa.int64()),
        pa.field("status", pa.int16(), nullable=False),
        pa.field("outcome", _WORDS, nullable=False),
        pa.field("result", _WORDS, nullable=False),
        pa.field("order_id", pa.string()),
        pa.field("attempt", pa.int16(), nullable=False),
        pa.field("first_op", pa.int64(), nullable=False),
    ]
)


def write_history(history: pd.DataFrame, path: Path) -> None:
    """Writes the history as parquet."""
    table = pa.Table.from_pandas(history[list(DTYPES)], preserve_index=False)
    # Times and ids are too many to repeat: their differences take half the room of a dictionary.
    whole = {field.name: "DELTA_BINARY_PACKED" for field in SCHEMA if field.type == pa.int64()}
    words = [field.name for field in SCHEMA if field.name not in whole]
    pq.write_table(table.cast(SCHEMA), path, compression="zstd", use_dictionary=words, column_encoding=whole)


def read_history(path: Path) -> pd.DataFrame:
    """The history in a parquet file. Raises RunError if it is none."""
    try:
        table = pq.read_table(path)
        # Nullable integers all the way: a float would round nanoseconds.
        frame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        if "attempt" not in frame:  # written when nobody came again
            frame = frame.assign(attempt=0, first_op=frame["op"])
        history: pd.DataFrame = frame[list(DTYPES)].astype(DTYPES)
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise RunError(f"{path}: is not a history: {str(error).splitlines()[0]}") from None
    return history
