"""OPC UA security: our certificate and key, the servers we trust, and who we log in as. Every failure is one line with its cause.

What is checked before a credential leaves this machine (OPC 10000-4, 6.1.3): the server's certificate is in the trust list, or
signed by one that is, and its time is right. Revocation lists are not read: take what is revoked out of the trust list.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)
from wattmesh_a2a.errors import ConfigurationError

Policy = Literal["Basic256Sha256", "Aes128Sha256RsaOaep", "Aes256Sha256RsaPss"]
Mode = Literal["sign", "sign_and_encrypt"]

_PEM = b"-----BEGIN"
_KEY_BITS = 2048
"""Least RSA key of all three policies (OPC 10000-7, 6.6)."""
_CHAIN = 8
"""More certificates between a server's and a trusted one are no chain that anybody keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """How messages are secured, who we are and whom we trust. Files are DER or PEM, and read at each connect.

    Attributes:
        policy: Security policy (OPC 10000-7, 6.6).
        mode: ``sign`` leaves what is said readable for others; ``sign_and_encrypt`` does not.
        certificate: Ours; its SAN has to name our application URI.
        key: Of our certificate, without a password.
        trust: Certificates of servers or of authorities, or folders of them.
    """

    policy: Policy
    mode: Mode
    certificate: Path
    key: Path
    trust: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Who we are to the server: a name and a password, or a certificate and its key. Files are read at each connect."""

    user: str | None = None
    password_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A certificate with its key, both read and found to belong together."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey

    @property
    def certificate_der(self) -> bytes:
        """The certificate as it goes over the wire."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def key_der(self) -> bytes:
        """The key; never logged."""
        return self.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

    @property
    def application_uri(self) -> str:
        """The URI in its SAN, which the session has to name as our application's (OPC 10000-4, 5.7.2).

        Raises:
            ConfigurationError: It has none.
        """
        try:
            names = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            names = x509.SubjectAlternativeName([])
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        if not uris:
            raise ConfigurationError(
                f"our certificate {describe(self.certificate)} has no URI in its subject alternative name, which OPC UA "
                "needs as the name of an application; make one with it"
            )
        return uris[0]


def describe(certificate: x509.Certificate) -> str:
    """Subject and SHA-256 fingerprint, as people compare them."""
    return f"{certificate.subject.rfc4514_string() or '(no subject)'}, SHA-256 {certificate.fingerprint(hashes.SHA256()).hex(':')}"


def load_certificates(path: Path) -> list[x509.Certificate]:
    """All certificates of a DER or PEM file.

    Raises:
        ConfigurationError: It cannot be read, or is no certificate.
    """
    content = _content(path, "certificate")
    try:
        if _PEM in content:
            return x509.load_pem_x509_certificates(content)
        return [x509.load_der_x509_certificate(content)]
    except ValueError as error:
        raise ConfigurationError(f"{path} is no certificate in DER or PEM") from error


def load_identity(certificate_path: Path, key_path: Path, now: datetime) -> Identity:
    """A certificate and its key.

    Args:
        certificate_path: DER or PEM; of several certificates the first counts.
        key_path: DER or PEM, without a password.
        now: UTC.

    Raises:
        ConfigurationError: A file cannot be read, the two do not belong together, or the certificate's time is over.
    """
    certificate = load_certificates(certificate_path)[0]
    content = _content(key_path, "key")
    try:
        load = load_pem_private_key if _PEM in content else load_der_private_key
        key = load(content, password=None)
    except TypeError as error:
        raise ConfigurationError(
            f"the key {key_path} has a password; give one without, readable only for us"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"{key_path} is no private key in DER or PEM") from error
    if not isinstance(key, rsa.RSAPrivateKey) or key.key_size < _KEY_BITS:
        raise ConfigurationError(
            f"the key {key_path} is no RSA key of {_KEY_BITS} bits or more, which OPC UA's policies need"
        )
    if key.public_key() != certificate.public_key():
        raise ConfigurationError(f"the key {key_path} is not that of the certificate {certificate_path}")
    if (wrong := _wrong_time(certificate, now)) is not None:
        raise ConfigurationError(f"our certificate {certificate_path} {wrong}")
    return Identity(certificate=certificate, key=key)


def load_password(path: Path) -> str:
    """The password in a file, without the end of its line.

    Raises:
        ConfigurationError: The file cannot be read, is empty or is no text.
    """
    try:
        password = _content(path, "password file").decode().rstrip("\r\n")
    except UnicodeDecodeError:  # its message would show the bytes: not chained
        raise ConfigurationError(f"the password file {path} is no text in UTF-8") from None
    if not password:
        raise ConfigurationError(f"the password file {path} is empty")
    return password


def split_chain(content: bytes) -> list[x509.Certificate]:
    """The certificates of a server: its own first, then those that signed it (OPC 10000-6, 6.2.6).

    Raises:
        ConfigurationError: It is no certificate.
    """
    found: list[x509.Certificate] = []
    rest = content
    try:
        while rest and len(found) < _CHAIN:
            size = _der_size(rest)
            found.append(x509.load_der_x509_certificate(rest[:size]))
            rest = rest[size:]
    except (ValueError, IndexError) as error:
        raise ConfigurationError("the server's certificate cannot be read") from error
    if not found:
        raise ConfigurationError("the server gives no certificate for the security that is asked for")
    return found


def check_server(chain: Sequence[x509.Certificate], trust: Sequence[Path], host: str, now: datetime) -> None:
    """Whether we trust a server; nothing is sent to one that we do not.

    A certificate that is itself in the trust list counts whatever host it names: people put it there for this server. One that is
    only signed by a trusted one has to name the host, or any device of that authority could pose as any other.

    Args:
        chain: Its certificate first, then those that signed it.
        trust: Files, or folders of files.
        host: Of its URL.
        now: UTC.

    Raises:
        ConfigurationError: It is not trusted, or its time is not now; what to do is said.
    """
    server = chain[0]
    if (wrong := _wrong_time(server, now)) is not None:
        raise ConfigurationError(f"the server's certificate {wrong} ({describe(server)})")
    trusted = _trusted(trust)
    if server in trusted:
        return
    if not _is_signed(server, chain[1:], trusted, now):
        raise ConfigurationError(
            f"the server's certificate is not trusted: {describe(server)}; if this is the device (compare the fingerprint "
            f"at the device), put its certificate into {trust[0]}"
        )
    if not _names(server, host):
        raise ConfigurationError(
            f"the server's certificate is signed by a trusted one, and is not for the host {host}: {describe(server)}; if "
            f"this is the device, put its certificate itself into {trust[0]}"
        )


def is_loopback(host: str) -> bool:
    """Whether what is sent to a host stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _content(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the {what} {path} cannot be read ({error.strerror})") from error


def _trusted(places: Sequence[Path]) -> list[x509.Certificate]:
    found: list[x509.Certificate] = []
    for place in places:
        try:
            files = sorted(file for file in place.iterdir() if file.suffix in {".der", ".pem", ".crt", ".cer"})
        except NotADirectoryError:
            files = [place]
        except OSError as error:
            raise ConfigurationError(f"the trust list {place} cannot be read ({error.strerror})") from error
        for file in files:
            found += load_certificates(file)
    return found


def _wrong_time(certificate: x509.Certificate, now: datetime) -> str | None:
    if now > certificate.not_valid_after_utc:
        return f"expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; it takes a new one"
    if now < certificate.not_valid_before_utc:
        return f"is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on; is our clock right?"
    return None


def _is_signed(
    server: x509.Certificate, between: Sequence[x509.Certificate], trusted: Sequence[x509.Certificate], now: datetime
) -> bool:
    """Whether a way of signatures leads to a trusted authority."""
    current = server
    for _ in range(_CHAIN):
        if any(_signed(current, authority, now) for authority in trusted):
            return True
        above = next((one for one in between if one != current and _signed(current, one, now)), None)
        if above is None:
            return False
        current = above
    return False


def _signed(certificate: x509.Certificate, authority: x509.Certificate, now: datetime) -> bool:
    try:
        if not authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False  # a device's own certificate signs no other's
        certificate.verify_directly_issued_by(authority)
    except (x509.ExtensionNotFound, ValueError, TypeError, InvalidSignature):
        return False
    return _wrong_time(authority, now) is None


def _names(certificate: x509.Certificate, host: str) -> bool:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    hosts = {name.lower() for name in names.get_values_for_type(x509.DNSName)}
    return host.lower() in hosts | addresses


def _der_size(content: bytes) -> int:
    """Bytes of the first element (X.690, 8.1.3)."""
    first = content[1]
    if first < 0x80:
        return 2 + first
    count = first & 0x7F
    return 2 + count + int.from_bytes(content[2 : 2 + count], "big")
