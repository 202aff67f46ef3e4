"""Certificates by which services and their clients know each other."""

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from engine.tests.services import skip_or_fail


class Certificate(NamedTuple):
    """A certificate with its key, and that of the authority which vouches for it."""

    file: Path
    key: Path
    authority: Path

    @property
    def for_redis(self) -> str:
        """The options of a URL of Redis."""
        return f"ssl_ca_certs={self.authority}&ssl_certfile={self.file}&ssl_keyfile={self.key}"

    @property
    def for_rabbitmq(self) -> str:
        """The options of a URL of RabbitMQ."""
        return f"cafile={self.authority}&certfile={self.file}&keyfile={self.key}"


class Authority:
    """Issues certificates."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        if not shutil.which("openssl"):
            skip_or_fail("openssl is not installed")
        self._folder = folder
        self.file, self._key = folder / f"{name}.crt", folder / f"{name}.key"
        self._request(name, self.file, self._key, "-nodes")

    def issue(self, name: str, *places: str, phrase: str = "") -> Certificate:
        """Issue a certificate for places such as DNS:localhost."""
        file, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        options = ["-CA", str(self.file), "-CAkey", str(self._key)]
        options += ["-addext", f"subjectAltName={','.join(places)}"]
        options += ["-passout", f"pass:{phrase}"] if phrase else ["-nodes"]
        self._request(name, file, key, *options)
        key.chmod(0o644)
        return Certificate(file, key, self.file)

    def _request(self, name: str, file: Path, key: Path, *options: str) -> None:
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        command += ["-subj", f"/CN={name}", "-keyout", str(key), "-out", str(file), *options]
        subprocess.run(command, check=True, capture_output=True)
