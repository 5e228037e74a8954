"""Signatures with the keys of the PKI: detached JWS, ES256, the signer's certificate in the header (RFC 7515, RFC 7518).

Nobody shares a secret: a gateway signs with its device's key and verifies the cloud by the authority's certificate. A certificate
that is looked at once costs nothing again; a revocation list that was replaced is read anew.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.pki import identity_uri, read_private_key
from wattmesh_a2a.signing import may_speak

log = logging.getLogger(__name__)

_REMEMBERED = 2000
_HEADER_AT_MOST = 4000
_LOOK_EVERY_S = 5.0
_ES256 = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class _Signatory:
    key: ec.EllipticCurvePublicKey
    identities: frozenset[str]
    serial: int
    begins: float
    ends: float


class CertificateKeys:
    """The :class:`wattmesh_a2a.signing.Signer` of a device or of the cloud.

    Args:
        certificate: Our certificate (PEM).
        key: Its private key, readable by its owner alone.
        ca: The authorities to trust (PEM, one or several while they change over).
        crl: What they revoked; none to do without.
        now: UTC in seconds since 1970, injected by tests. Real time, also where the agents' time is simulated.

    Raises:
        ConfigurationError: A file cannot be read or does not fit the others.
    """

    def __init__(
        self, certificate: Path, key: Path, ca: Path, crl: Path | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self._now = now
        self._key = read_private_key(key)
        try:
            own = x509.load_pem_x509_certificate(certificate.read_bytes())
            self._authorities = x509.load_pem_x509_certificates(ca.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{certificate}, {ca}: cannot be read as certificates: {error}") from error
        if own.public_key() != self._key.public_key():
            raise ConfigurationError(f"{certificate} does not belong to {key}")
        self._identities = _identities(own)
        der = base64.b64encode(own.public_bytes(serialization.Encoding.DER)).decode()
        self._header = _encoded(json.dumps({"alg": "ES256", "x5c": [der]}, separators=(",", ":")).encode())
        kid = format(own.serial_number, "x")
        card_header = json.dumps({"alg": "ES256", "typ": "JOSE", "kid": kid, "x5c": [der]}, separators=(",", ":"))
        self._card_header = _encoded(card_header.encode())
        self._known: OrderedDict[str, _Signatory] = OrderedDict()
        self._crl, self._crl_state, self._crl_looked = crl, (0, 0), -1e9
        self._revoked: frozenset[int] = frozenset()
        self._look_at_crl(must=True)

    def sign(self, source: Address, destination: Address, content: bytes) -> str | None:
        """See :class:`wattmesh_a2a.signing.Signer`; only for what the certificate names."""
        if identity_uri(source.org, source.unit) not in self._identities:
            return None
        r, s = decode_dss_signature(self._key.sign(_input(self._header, content), _ES256))
        return f"{self._header}..{_encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def jws(self, content: bytes) -> tuple[str, str]:
        """Protected header and signature of a detached JWS over anything, as agent cards have it (A2A 1.0, 8.4).

        It is no signature of a message: its header says ``typ`` and ``kid``, which :meth:`verify` takes for none.
        """
        r, s = decode_dss_signature(self._key.sign(_input(self._card_header, content), _ES256))
        return self._card_header, _encoded(r.to_bytes(32, "big") + s.to_bytes(32, "big"))

    def verify(self, source: Address, destination: Address, content: bytes, signature: str) -> bool:
        """See :class:`wattmesh_a2a.signing.Signer`."""
        header, separator, raw_text = signature.partition("..")
        if not separator or len(header) > _HEADER_AT_MOST or len(raw_text) != 86 or not may_speak(source, destination):
            return False
        self._look_at_crl()
        signatory = self._signatory(header)
        if (
            signatory is None
            or identity_uri(source.org, source.unit) not in signatory.identities
            or signatory.serial in self._revoked
            or not signatory.begins <= self._now() <= signatory.ends
        ):
            return False
        try:
            raw = base64.urlsafe_b64decode(raw_text + "==")
            der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
            signatory.key.verify(der, _input(header, content), _ES256)
        except (InvalidSignature, ValueError):
            return False
        return True

    def _signatory(self, header: str) -> _Signatory | None:
        """Who signed, by a certificate that an authority of ours issued; remembered by the header's own text."""
        found = self._known.get(header)
        if found is not None:
            self._known.move_to_end(header)
            return found
        try:
            fields = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
            if not isinstance(fields, dict) or set(fields) != {"alg", "x5c"} or fields["alg"] != "ES256":
                return None
            (text,) = fields["x5c"]
            certificate = x509.load_der_x509_certificate(base64.b64decode(text, validate=True))
            key = certificate.public_key()
            if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
                return None
            usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
            if not usage.digital_signature or not any(_issued_by(certificate, one) for one in self._authorities):
                return None
            signatory = _Signatory(
                key,
                _identities(certificate),
                certificate.serial_number,
                certificate.not_valid_before_utc.timestamp(),
                certificate.not_valid_after_utc.timestamp(),
            )
        except (ValueError, TypeError, KeyError, RecursionError, binascii.Error, x509.ExtensionNotFound):
            return None
        self._known[header] = signatory
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return signatory

    def _look_at_crl(self, *, must: bool = False) -> None:
        """Read the list when it was replaced; one that cannot be believed leaves the last one in force."""
        if self._crl is None or time.monotonic() - self._crl_looked < _LOOK_EVERY_S:
            return
        self._crl_looked = time.monotonic()
        try:
            stat = self._crl.stat()
            state = (stat.st_mtime_ns, stat.st_ino)
            if state == self._crl_state:
                return
            listed = x509.load_pem_x509_crl(self._crl.read_bytes())
            if not any(
                isinstance(key := one.public_key(), ec.EllipticCurvePublicKey) and listed.is_signature_valid(key)
                for one in self._authorities
            ):
                raise ValueError("not signed by an authority of ours")
        except (OSError, ValueError) as error:
            if must:
                raise ConfigurationError(f"{self._crl}: no revocation list: {error}") from error
            log.error("%s cannot be read (%s); the last list stays in force", self._crl, error)
            return
        self._crl_state = state
        self._revoked = frozenset(one.serial_number for one in listed)
        if listed.next_update_utc is not None and listed.next_update_utc < datetime.now(UTC):
            log.warning("%s is older than it should be; write it anew: wattmesh pki crl", self._crl)


def _identities(certificate: x509.Certificate) -> frozenset[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(names.get_values_for_type(x509.UniformResourceIdentifier))


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _input(header: str, content: bytes) -> bytes:
    return f"{header}.".encode() + base64.urlsafe_b64encode(content).rstrip(b"=")


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
