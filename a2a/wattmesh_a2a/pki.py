"""A private certificate authority for one organisation: broker, cloud, sites, operators.

A folder holds it: ``ca.pem``, ``ca.key`` (its owner's alone), ``crl.pem``, ``register.json`` (what was issued and revoked), and a
folder of each name with ``certificate.pem`` and ``key.pem``. Keys are P-256: AWS IoT Core takes them, and ES256 signs with them
(:mod:`wattmesh_a2a.certificates`). The common name is the unit (a site's id, ``cloud``): access lists go by it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wattmesh_a2a.errors import ConfigurationError

CA_DAYS, LEAF_DAYS, CRL_DAYS = 3650, 397, 30
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_BACKDATED = timedelta(minutes=5)
"""Certificates begin a little earlier: a gateway's clock may be behind."""


def identity_uri(org: str, unit: str) -> str:
    """The name in a certificate that messages are compared with."""
    return f"urn:wattmesh:{org}:{unit}"


class Authority:
    """The authority in a folder.

    Args:
        folder: Where it lives; see the module's text.
        now: UTC, injected by tests.

    Raises:
        ConfigurationError: There is none in this folder.
    """

    def __init__(self, folder: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.folder = folder
        self._now = now
        if not (folder / "ca.pem").is_file():
            raise ConfigurationError(
                f"{folder}: no certificate authority here; make one: wattmesh pki init {folder} ORG"
            )
        self.certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        self.org = str(self.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)

    @classmethod
    def create(cls, folder: Path, org: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Authority:
        """A new authority; an existing one is never replaced."""
        _checked(org)
        if (folder / "ca.key").exists():
            raise ConfigurationError(f"{folder}: there is a certificate authority already")
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, org), x509.NameAttribute(NameOID.COMMON_NAME, f"{org} CA")]
        )
        usage = _usage(signs_certificates=True)
        certificate = (
            _builder(subject, subject, key.public_key(), now(), CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write_key(folder / "ca.key", key)
        _write(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM))
        authority = cls(folder, now)
        authority._save({"issued": {}, "revoked": {}})
        authority.write_crl()
        return authority

    def issue(self, name: str, *, hosts: Sequence[str] = ()) -> Path:
        """A new key and certificate of ``name``, replacing the files of an earlier one; returns their folder.

        With ``hosts`` (names or addresses) it is a server's certificate, else a client's. An earlier certificate stays valid
        until it ends or is revoked, so that a device can be changed over without a gap.
        """
        _checked(name)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.org), x509.NameAttribute(NameOID.COMMON_NAME, name)]
        )
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity_uri(self.org, name))]
        names += [_host(host) for host in hosts]
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        certificate = (
            _builder(subject, self.certificate.subject, key.public_key(), self._now(), LEAF_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.certificate.public_key()),  # type: ignore[arg-type]
                critical=False,
            )
            .sign(self._key(), hashes.SHA256())
        )
        register = self._register()
        register["issued"][str(certificate.serial_number)] = {
            "name": name,
            "from": certificate.not_valid_before_utc.isoformat(),
            "until": certificate.not_valid_after_utc.isoformat(),
        }
        self._save(register)
        target = self.folder / name
        target.mkdir(mode=0o700, exist_ok=True)
        _write_key(target / "key.pem", key)
        _write(target / "certificate.pem", certificate.public_bytes(serialization.Encoding.PEM))
        return target

    def rotate(self, name: str) -> Path:
        """A new key and certificate for a name that has one, with the same hosts; the old one is revoked by :meth:`revoke`."""
        path = self.folder / _checked(name) / "certificate.pem"
        if not path.is_file():
            raise ConfigurationError(f"{name} has no certificate here")
        old = x509.load_pem_x509_certificate(path.read_bytes())
        names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
        return self.issue(name, hosts=hosts)

    def revoke(self, name: str, *, keep_newest: bool = False) -> list[int]:
        """Revoke all certificates of a name, or all but its newest; returns their serial numbers. Writes the list anew."""
        register = self._register()
        serials = [serial for serial, one in register["issued"].items() if one["name"] == name]
        if not serials:
            raise ConfigurationError(f"{name} never had a certificate here")
        if keep_newest:
            serials = serials[:-1]
        done = [serial for serial in serials if serial not in register["revoked"]]
        for serial in done:
            register["revoked"][serial] = self._now().isoformat()
        self._save(register)
        self.write_crl()
        return [int(serial) for serial in done]

    def write_crl(self) -> Path:
        """The list of what is revoked, to be given to the broker and to whoever verifies; at least every :data:`CRL_DAYS`."""
        now = self._now()
        builder = x509.CertificateRevocationListBuilder(
            issuer_name=self.certificate.subject,
            last_update=now - _BACKDATED,
            next_update=now + timedelta(days=CRL_DAYS),
        )
        for serial, moment in self._register()["revoked"].items():
            revoked = x509.RevokedCertificateBuilder(int(serial), datetime.fromisoformat(moment)).build()
            builder = builder.add_revoked_certificate(revoked)
        path = self.folder / "crl.pem"
        _write(path, builder.sign(self._key(), hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return path

    def entries(self) -> list[tuple[int, str, str, str, str | None]]:
        """Serial number, name, from, until and when revoked, of all that was issued."""
        register = self._register()
        return [
            (int(serial), one["name"], one["from"], one["until"], register["revoked"].get(serial))
            for serial, one in register["issued"].items()
        ]

    def _key(self) -> ec.EllipticCurvePrivateKey:
        return read_private_key(self.folder / "ca.key")

    def _register(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "register.json").read_text(encoding="utf-8"))
        return found

    def _save(self, register: dict[str, Any]) -> None:
        _write(self.folder / "register.json", json.dumps(register, indent=1).encode())


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A P-256 key from a file; raises :class:`ConfigurationError`, never with the key in its text."""
    try:
        mode, content = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: the key cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigurationError(f"{path}: others can read this key; run: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError):
        raise ConfigurationError(f"{path}: not a private key in PEM without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise ConfigurationError(f"{path}: not a P-256 key")
    return key


def _checked(name: str) -> str:
    if not _NAME.match(name) or name.startswith("."):
        raise ConfigurationError(f"{name!r} is no name (letters, digits, _ . -, 1 to 64)")
    if name in {"ca.pem", "ca.key", "crl.pem", "register.json"}:
        raise ConfigurationError(f"{name!r} is a file of the authority")
    return name


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    content = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(path, content, mode=0o600)


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Whole or not at all, and never readable by others for a moment."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
