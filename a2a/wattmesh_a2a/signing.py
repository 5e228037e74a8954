"""Signatures of what moves power or money: detached JWS (RFC 7515, HS256) over the canonical envelope.

:class:`KeyRing` is for the demo and for sites without a PKI: a site and the cloud share one key a site (a file, readable by its
owner alone). A gateway holds only its own key, so it cannot speak for another site. With a PKI the same contract is kept by
:class:`wattmesh_a2a.certificates.CertificateKeys` (ES256 with the device's certificate), where nobody shares a secret.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import stat
from pathlib import Path
from typing import Protocol

from wattmesh_a2a.envelope import CLOUD_UNIT, Address
from wattmesh_a2a.errors import ConfigurationError

_HEADER_B64 = base64.urlsafe_b64encode(json.dumps({"alg": "HS256"}).encode()).rstrip(b"=")


class Signer(Protocol):
    """Signs what we send, and says whether what came in is signed by whom it says it is from."""

    def sign(self, source: Address, destination: Address, content: bytes) -> str | None:
        """The signature of ``source`` for ``destination``; none when there is no key for it here."""
        ...

    def verify(self, source: Address, destination: Address, content: bytes, signature: str) -> bool:
        """Whether ``signature`` is that of ``source``, who may speak to ``destination``."""
        ...


def may_speak(source: Address, destination: Address) -> bool:
    """Who may bind whom: the cloud all sites of its organisation, a site the cloud and itself."""
    return source.org == destination.org and (
        CLOUD_UNIT in {source.unit, destination.unit} or source.unit == destination.unit
    )


class KeyRing:
    """Keys from files: one ``SITE.key`` of at least 32 random bytes, as hexadecimal text, a site."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        self._keys = keys

    @classmethod
    def of_site(cls, site: str, path: Path) -> KeyRing:
        """A gateway's ring: its own key alone; raises :class:`ConfigurationError`."""
        return cls({site: read_key(path)})

    @classmethod
    def of_folder(cls, folder: Path) -> KeyRing:
        """The cloud's ring: every ``SITE.key`` in a folder; raises :class:`ConfigurationError`."""
        if not folder.is_dir():
            raise ConfigurationError(f"{folder}: no such folder of keys; make it, with one SITE.key a site")
        return cls({path.stem: read_key(path) for path in sorted(folder.glob("*.key"))})

    def sign(self, source: Address, destination: Address, content: bytes) -> str | None:
        """See :class:`Signer`."""
        key = self._keys.get(site_of(source.unit, destination.unit))
        return None if key is None else _jws(key, content)

    def verify(self, source: Address, destination: Address, content: bytes, signature: str) -> bool:
        """See :class:`Signer`; takes the same time wherever the difference is."""
        key = self._keys.get(site_of(source.unit, destination.unit))
        return (
            key is not None
            and may_speak(source, destination)
            and hmac.compare_digest(_jws(key, content).encode(), signature.encode())
        )


def site_of(source_unit: str, destination_unit: str) -> str:
    """Whose key a message carries: the site's, on whichever end it is."""
    return destination_unit if source_unit == CLOUD_UNIT else source_unit


def generate_key(path: Path) -> None:
    """Write a new key that only its owner can read; an existing file is never replaced."""
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(secrets.token_hex(32) + "\n", encoding="ascii")


def read_key(path: Path) -> bytes:
    """The key in a file; raises :class:`ConfigurationError` (never with the key in its text)."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii").strip()
        key = bytes.fromhex(text)
    except OSError as error:
        raise ConfigurationError(f"{path}: the key cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: not a key; it holds hexadecimal digits and nothing else") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(f"{path}: others can read this key; run: chmod 600 {path}")
    if len(key) < 32:
        raise ConfigurationError(f"{path}: the key has {len(key)} bytes; at least 32 are needed")
    return key


def _jws(key: bytes, content: bytes) -> str:
    """JWS with detached content: ``header..signature`` (RFC 7515, appendix F)."""
    signed = _HEADER_B64 + b"." + base64.urlsafe_b64encode(content).rstrip(b"=")
    mac = base64.urlsafe_b64encode(hmac.digest(key, signed, hashlib.sha256)).rstrip(b"=")
    return f"{_HEADER_B64.decode()}..{mac.decode()}"
