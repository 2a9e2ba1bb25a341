"""A certificate for loopback, made when it is needed, by the keytool that comes with Java."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.kafka.jars import Jars, Unavailable

PASSWORD = "taskq-tests"


def make(jars: Jars, folder: Path) -> tuple[Path, Path]:
    """A server's key store, and the PEM file with which clients (`ssl.ca.location`) know it."""
    keytool = shutil.which("keytool") or str(Path(jars.java).resolve().with_name("keytool"))
    store, authority = folder / "server.p12", folder / "authority.pem"
    common = ["-alias", "kafka", "-keystore", str(store), "-storetype", "PKCS12", "-storepass", PASSWORD]
    make_key = [
        *("-genkeypair", *common, "-keyalg", "EC", "-groupname", "secp256r1", "-validity", "30"),
        *("-dname", "CN=localhost", "-ext", "san=ip:127.0.0.1,dns:localhost"),
        *("-ext", "bc:critical=ca:true"),  # it has signed itself, so it is its own authority
    ]
    for arguments in (make_key, ["-exportcert", "-rfc", *common, "-file", str(authority)]):
        try:
            ran = subprocess.run([keytool, *arguments], capture_output=True, text=True, timeout=30)
        except FileNotFoundError:
            raise Unavailable("java", "this Java has no keytool") from None
        if ran.returncode:
            raise Unavailable("java", f"keytool can't make a certificate: {ran.stdout}{ran.stderr}")
    return store, authority
