"""The variables of libpq, which the client library takes for what a URL leaves out."""

import os
import re
from typing import Final

_OF_LIBPQ: Final = re.compile(r"PG(?!USER$|PASSWORD$|PASSFILE$|DATABASE$)[A-Z]+")


def forget_libpq_variables() -> None:
    """Take variables such as PGHOST and PGSSLMODE out of the environment of this process.

    Where the ledger is, and how it is reached, its URL says alone: it was checked, and a private service is
    not where they lead. Who connects, and to which database, they may say.
    """
    for name in filter(_OF_LIBPQ.fullmatch, list(os.environ)):
        del os.environ[name]
