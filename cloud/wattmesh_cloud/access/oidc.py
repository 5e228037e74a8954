"""Login by OpenID Connect Core 1.0: authorisation code flow with PKCE (RFC 7636), state and nonce; tokens by joserfc."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from wattmesh_a2a.errors import ConfigurationError, UnauthorisedError, UnavailableError

from wattmesh_cloud.access.config import OidcModel
from wattmesh_cloud.access.model import Role

_ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]
_UNDER_WAY = 1000
_LOGIN_S = 600.0
_KEYS_S = 3600.0
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who came back from the identity provider."""

    name: str
    role: Role
    tenant: str


@dataclass(frozen=True, slots=True)
class _Login:
    verifier: str
    nonce: str
    browser: str
    until: float


class Oidc:
    """One identity provider.

    Args:
        model: The section of the file.
        secret: The client's, read from its file; none for a public client.
        redirect: Our own address that the provider sends people back to.
        monotonic: Real time.
    """

    def __init__(
        self, model: OidcModel, secret: str | None, redirect: str, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._model, self._secret, self._redirect, self._monotonic = model, secret, redirect, monotonic
        self._logins: OrderedDict[str, _Login] = OrderedDict()
        self._metadata: dict[str, Any] = {}
        self._keys: KeySet | None = None
        self._fetched = -_KEYS_S

    async def begin(self) -> tuple[str, str]:
        """The provider's page to send a browser to, and what its cookie has to hold when it comes back."""
        metadata = await self._provider()
        verifier, nonce, browser = secrets.token_urlsafe(48), secrets.token_urlsafe(16), secrets.token_urlsafe(24)
        state = secrets.token_urlsafe(24)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        query = {
            "response_type": "code",
            "client_id": self._model.client_id,
            "redirect_uri": self._redirect,
            "scope": "openid email profile",
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        endpoint = metadata["authorization_endpoint"]
        url = f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"
        self._logins[state] = _Login(verifier, nonce, browser, self._monotonic() + _LOGIN_S)
        while len(self._logins) > _UNDER_WAY:
            self._logins.popitem(last=False)
        return url, browser

    async def end(self, state: str, code: str, browser: str) -> Identity:
        """Who a browser that comes back belongs to.

        Raises:
            UnauthorisedError: An old, foreign or forged login, or somebody who has no group here.
            UnavailableError: The provider does not answer.
        """
        login = self._logins.pop(state, None)
        if login is None or login.until < self._monotonic():
            raise UnauthorisedError("this login is too old or was used before; log in again")
        if not secrets.compare_digest(login.browser.encode(), browser.encode()):
            raise UnauthorisedError("this login was begun in another browser; log in again")
        metadata = await self._provider()
        token = await self._exchange(metadata["token_endpoint"], code, login.verifier)
        return self._identity(await self._claims(str(token.get("id_token", "")), login.nonce))

    async def _exchange(self, endpoint: str, code: str, verifier: str) -> dict[str, Any]:
        """The tokens of a code (RFC 6749, 4.1.3); the client proves itself by its secret, where it has one."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect,
            "client_id": self._model.client_id,
            "code_verifier": verifier,
        }
        basic = None if self._secret is None else httpx.BasicAuth(self._model.client_id, self._secret)
        try:
            async with httpx.AsyncClient(timeout=_TIMEOUT_S, follow_redirects=False) as client:
                answer = await client.post(endpoint, data=form, auth=basic or httpx.USE_CLIENT_DEFAULT)
            token = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise UnavailableError(f"{self._model.issuer} does not answer: {type(error).__name__}") from error
        if answer.status_code != 200 or not isinstance(token, dict):
            raise UnauthorisedError("the identity provider refuses this login; log in again")
        return token

    async def _claims(self, id_token: str, nonce: str) -> dict[str, Any]:
        requests = jwt.JWTClaimsRegistry(
            leeway=60,
            iss={"essential": True, "value": self._model.issuer},
            aud={"essential": True, "value": self._model.client_id},
            exp={"essential": True},
            nonce={"essential": True, "value": nonce},
        )
        try:
            assert self._keys is not None
            decoded = jwt.decode(id_token, self._keys, algorithms=_ALGORITHMS)
            requests.validate(decoded.claims)
        except (JoseError, ValueError) as error:
            raise UnauthorisedError(f"the identity provider's word is not valid: {type(error).__name__}") from error
        return dict(decoded.claims)

    def _identity(self, claims: dict[str, Any]) -> Identity:
        name, held = claims.get(self._model.name_claim), claims.get(self._model.groups_claim)
        if not isinstance(name, str) or not 0 < len(name) <= 100:
            raise UnauthorisedError(f"the identity provider gives no claim {self._model.name_claim!r}")
        if self._model.name_claim == "email" and claims.get("email_verified") is False:
            raise UnauthorisedError("the identity provider has not verified this e-mail address")
        groups = {one for one in held if isinstance(one, str)} if isinstance(held, list) else set()
        for group in self._model.groups:
            if group.group in groups:
                return Identity(name=f"oidc/{name}", role=group.role, tenant=group.tenant)
        raise UnauthorisedError(f"{name} is in no group that may come in; ask the administrator")

    async def _provider(self) -> dict[str, Any]:
        """Metadata and keys, at most an hour old."""
        if self._monotonic() - self._fetched < _KEYS_S:
            return self._metadata
        issuer = self._model.issuer
        try:
            async with httpx.AsyncClient(timeout=_TIMEOUT_S, follow_redirects=False) as client:
                answer = await client.get(f"{issuer}/.well-known/openid-configuration")
                metadata = answer.raise_for_status().json()
                if metadata["issuer"] != issuer:
                    raise UnavailableError(f"{issuer} calls itself {metadata['issuer']!r}")
                keys = (await client.get(metadata["jwks_uri"])).raise_for_status().json()
            self._keys = KeySet.import_key_set(keys)
        except (httpx.HTTPError, KeyError, TypeError, ValueError, JoseError) as error:
            raise UnavailableError(f"{issuer} gives no usable metadata: {type(error).__name__}") from error
        self._metadata, self._fetched = metadata, self._monotonic()
        return self._metadata


def read_secret(path: Path) -> str:
    """A secret in a file; raises :class:`ConfigurationError`."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from error
