"""The method openpgp with profile openpgp-spki, made by GnuPG and OpenSSL from docs/PROTOCOL.md alone."""

import re
import subprocess
from pathlib import Path

OID = "2.25.5934100245778452984"
DOMAIN = b"fingerpost:openpgp-spki:0\0"


def run(*command, **more):
    return subprocess.run(command, check=True, capture_output=True, **more).stdout


def der(tag, content):
    """One DER element."""
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def gpg(home, *args, **more):
    options = ["--homedir", str(home), "--batch", "--pinentry-mode", "loopback", "--passphrase", ""]
    return run("gpg", *options, *args, **more)


def certificate(directory, name, user):
    """A new OpenPGP key and a TLS key that it vouches for: key file, certificate file, fingerprint."""
    home = Path(directory, f"gnupg-{name}")
    home.mkdir(mode=0o700)
    gpg(home, "--quick-gen-key", f"xmpp:{user}", "ed25519", "sign", "1y")
    listed = gpg(home, "--with-colons", "--list-keys").decode()
    fingerprint = re.search("fpr:+([0-9A-F]{40}):", listed)[1]

    key, cert, data = (Path(directory, f"{name}.{end}") for end in ("key", "crt", "signed"))
    run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(key))
    spki = run("openssl", "pkey", "-in", str(key), "-pubout", "-outform", "DER")
    data.write_bytes(DOMAIN + spki)
    signature = gpg(home, "--detach-sign", "-o", "-", str(data))
    openpgp = gpg(home, "--export")
    content = der(0x30, der(0x02, b"\0") + der(0x04, openpgp) + der(0x04, signature))
    run("openssl", "req", "-new", "-x509", "-key", str(key), "-days", "2", "-subj", "/", "-out", str(cert),
        "-addext", f"{OID}=DER:{content.hex()}")  # fmt: skip
    colons = ":".join(fingerprint[i : i + 2] for i in range(0, 40, 2))
    return key, cert, colons
