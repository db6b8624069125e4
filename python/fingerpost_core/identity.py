"""Keys and certificates of X.509."""

from __future__ import annotations

import datetime
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from .elements import Print


def fingerprints(der: bytes) -> tuple[Print, Print, Print]:
    """SHA-1 and SHA-256 of a certificate, and SHA-256 of its public key."""
    spki = x509.load_der_x509_certificate(der).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return (
        Print(hashlib.sha1(der).digest(), "sha-1"),
        Print(hashlib.sha256(der).digest(), "sha-256"),
        Print(hashlib.sha256(spki).digest(), "spki-sha-256"),
    )


@dataclass(frozen=True)
class Identity:
    """A user's own certificate, in a PEM file with its private key."""

    path: Path
    der: bytes

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Identity:
        pem = Path(path).read_bytes()
        return cls(Path(path), x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER))

    @classmethod
    def generate(cls, path: str | os.PathLike[str]) -> Identity:
        """Makes an ECDSA key on P-256, which every program accepts, and writes it with a certificate that has no name.

        Nobody but the owner can read the file. Raises `FileExistsError` if it is there.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        nobody = x509.Name([])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(nobody)
            .issuer_name(nobody)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.datetime(2000, 1, 1))
            .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59))
            .sign(key, hashes.SHA256())
        )
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(certificate.public_bytes(Encoding.PEM) + private)
        except BaseException:
            # A part of a key could be neither read nor replaced later.
            os.unlink(path)
            raise
        return cls(Path(path), certificate.public_bytes(Encoding.DER))

    @classmethod
    def load_or_generate(cls, path: str | os.PathLike[str]) -> Identity:
        try:
            return cls.load(path)
        except FileNotFoundError:
            return cls.generate(path)

    @property
    def fingerprint(self) -> Print:
        """SHA-256 of the certificate: what an offer has."""
        return Print(hashlib.sha256(self.der).digest(), "sha-256")

    def sign(self, message: bytes) -> bytes:
        """Signs a challenge of a registry."""
        key = load_pem_private_key(self.path.read_bytes(), None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key.sign(message, ec.ECDSA(hashes.SHA256()))
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key.sign(message)
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(message, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
        raise ValueError("this kind of key cannot answer a challenge")
