"""Who may ask an agent for what: callers by token or certificate, roles, sites."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from wattmesh_a2a.envelope import CLOUD_UNIT, Address
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.messages import TYPE_NAMES, Message, Revoke, StatsQuery, Strategy

from wattmesh_cloud.access.model import Permission, Principal
from wattmesh_cloud.tools.base import OPERATOR, READER, Caller

_READ: frozenset[type[Message]] = frozenset({StatsQuery})
MAY_ASK: dict[str, frozenset[str]] = {
    READER: frozenset(TYPE_NAMES[kind] for kind in _READ),
    OPERATOR: frozenset(TYPE_NAMES[kind] for kind in (*_READ, Strategy, Revoke)),
}
"""Types of requests by role; text may be asked by every role. A role that stands nowhere here may ask nothing typed. What is not
listed (orders, commitments, dispatches, configurations) has ways of its own with checks of its own, and none through here."""
READ_ONLY: frozenset[str] = frozenset(TYPE_NAMES[kind] for kind in _READ)
_BEARER = "bearer "


class Authenticator(Protocol):
    """Says who calls; users with a login have another one than machines."""

    def caller(self, authorization: str | None, certificate: str | None) -> Caller | None:
        """Who sent a request, or none when that is not known.

        Args:
            authorization: The header of that name.
            certificate: Identity (a URI) in the client's verified certificate.
        """
        ...


class MachineEntry(BaseModel):
    """One caller: known by the hash of its token, by the identity in its certificate, or by either."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(pattern=r"^[A-Za-z0-9_.:@-]{1,64}$")
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    certificate: str | None = Field(default=None, min_length=1, max_length=300)
    roles: list[str] = Field(min_length=1)
    sites: list[str] | None = None

    @model_validator(mode="after")
    def _known_by_something(self) -> MachineEntry:
        if self.sha256 is None and self.certificate is None:
            raise ValueError(f"{self.id} has neither sha256 nor certificate")
        return self


class MachineTokens:
    """An :class:`Authenticator` of machines, from a file that holds no token but its hash.

    Args:
        file: JSON, a list of :class:`MachineEntry`.

    Raises:
        ConfigurationError: The file cannot be read or is not of that form.
    """

    def __init__(self, file: Path) -> None:
        try:
            self._entries = TypeAdapter(list[MachineEntry]).validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            raise ConfigurationError(f"{file}: {' '.join(str(error).split())[:200]}") from error

    def caller(self, authorization: str | None, certificate: str | None) -> Caller | None:
        """See :class:`Authenticator`; a token counts before a certificate, and a wrong one is never made good by it."""
        found: MachineEntry | None = None
        if authorization is not None:
            if authorization[: len(_BEARER)].lower() != _BEARER:
                return None
            digest = hashlib.sha256(authorization[len(_BEARER) :].strip().encode()).hexdigest()
            for one in self._entries:
                if one.sha256 is not None and hmac.compare_digest(one.sha256, digest):
                    found = one
        elif certificate is not None:
            found = next((one for one in self._entries if one.certificate == certificate), None)
        if found is None:
            return None
        sites = None if found.sites is None else frozenset(found.sites)
        return Caller(id=found.id, roles=frozenset(found.roles), sites=sites)


class ApiTokens:
    """An :class:`Authenticator` for the tokens of the HTTP API (``wattmesh access``): its roles, tenants and expiry.

    Args:
        of_token: Who a token belongs to (:meth:`wattmesh_cloud.access.store.AccessStore.of_token`).
    """

    def __init__(self, of_token: Callable[[str], Principal | None]) -> None:
        self._of_token = of_token

    def caller(self, authorization: str | None, certificate: str | None) -> Caller | None:
        """See :class:`Authenticator`."""
        if authorization is None or authorization[: len(_BEARER)].lower() != _BEARER:
            return None
        who = self._of_token(authorization[len(_BEARER) :].strip())
        if who is None:
            return None
        role = OPERATOR if who.may(Permission.OPERATE) else READER
        return Caller(id=f"token:{who.name}"[:64], roles=frozenset({role}), sites=who.sites)


class FirstOf:
    """Several authenticators, of which the first one that knows a caller has the word."""

    def __init__(self, *authenticators: Authenticator) -> None:
        self._authenticators = authenticators

    def caller(self, authorization: str | None, certificate: str | None) -> Caller | None:
        """See :class:`Authenticator`."""
        found = (one.caller(authorization, certificate) for one in self._authenticators)
        return next((one for one in found if one is not None), None)


def may_see(caller: Caller, agent: Address) -> bool:
    """Whether an agent exists for a caller: those of its sites, and the cloud's."""
    return caller.sites is None or agent.unit == CLOUD_UNIT or agent.unit in caller.sites


def may_ask(caller: Caller, name: str, agent: Address) -> bool:
    """Whether a caller may send requests of a type; the cloud's own figures name every site, so they are for who sees all."""
    if agent.unit == CLOUD_UNIT and caller.sites is not None:
        return False
    return any(name in MAY_ASK.get(role, frozenset()) for role in caller.roles)
