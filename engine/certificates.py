"""The files that a URL names for TLS: they can be read, and no pass phrase is asked for at a terminal."""

import os
import ssl
from collections.abc import Mapping
from pathlib import Path

from engine.errors import SettingsError


def check_files(options: Mapping[str, str], files: str, folder: str = "") -> None:
    """Raise SettingsError for an option that names a file, or a folder, which can't be read."""
    for name in options.keys() & {*files.split(", "), folder}:
        path = options[name]
        if not os.access(path, os.R_OK) or os.path.isdir(path) != (name == folder):  # noqa: PTH112
            raise SettingsError(f"{name} names {path}, which can't be read")


def check_pair(options: Mapping[str, str], certificate: str, key: str, password: str = "") -> None:
    """Raise SettingsError if a client's certificate and its key can't be used together.

    OpenSSL would ask for the pass phrase of a key, and wait for it in every process.
    """
    if key in options and certificate not in options:
        raise SettingsError(f"{key} needs {certificate}: write both of them")
    if certificate not in options:
        return
    named = key if key in options else certificate
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(
            options[certificate], options.get(key), lambda: options.get(password, "")
        )
    except ssl.SSLError as error:
        path = options[named]
        if "ENCRYPTED" in Path(path).read_text(errors="replace"):
            raise SettingsError(f"{named} names {path}, whose pass phrase is not known") from None
        raise SettingsError(f"{certificate} and {named} can't be used together: {error}") from None
