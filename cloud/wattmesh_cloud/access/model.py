"""Roles, what each may do, and who a request comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

HOST_TENANT = "fleet"
"""The operator of the fleet: sees every site. Every other tenant sees its own sites alone."""


class Role(StrEnum):
    """What somebody is here for. Each may look; nobody may do everything but the admin."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    TRADER = "trader"
    ENGINEER = "engineer"
    ADMIN = "admin"


class Permission(StrEnum):
    """One kind of thing that can be done."""

    READ = "read"
    """Everything of the own sites, and the market's public data."""
    OPERATE = "operate"
    """Grid events, demand response, alarms, kill switch, approvals."""
    TRADE = "trade"
    """Orders for the own sites."""
    ENGINEER = "engineer"
    """The hardware lab, device advice, jobs that read raw data."""
    ADMINISTER = "administer"
    """Users, tokens, the audit log."""


PERMISSIONS: Mapping[Role, frozenset[Permission]] = {
    Role.VIEWER: frozenset({Permission.READ}),
    Role.OPERATOR: frozenset({Permission.READ, Permission.OPERATE}),
    Role.TRADER: frozenset({Permission.READ, Permission.TRADE}),
    Role.ENGINEER: frozenset({Permission.READ, Permission.ENGINEER}),
    Role.ADMIN: frozenset(Permission),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who a request comes from, as the door has established it; never what the request says of itself."""

    name: str
    kind: str
    """``user``, ``token`` or ``demo``."""
    role: Role
    tenant: str
    sites: frozenset[str] | None
    """The tenant's sites; none for all."""
    session: str | None = None
    """Identity of the browser's session; none for a token."""
    csrf: str | None = None

    @property
    def host(self) -> bool:
        """Whether it belongs to the operator of the fleet."""
        return self.sites is None

    @property
    def actor(self) -> str:
        """As the audit log names it."""
        return f"{self.kind}:{self.name}"

    def may(self, permission: Permission) -> bool:
        """Whether its role allows something."""
        return permission in PERMISSIONS[self.role]

    def sees(self, site_id: str) -> bool:
        """Whether a site is its tenant's."""
        return self.sites is None or site_id in self.sites

    def visible(self, sites: Iterable[str]) -> list[str]:
        """Those of some sites that it may see, in order."""
        return [site for site in sites if self.sees(site)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenants:
    """Which sites belong to whom. Built from the cloud's file."""

    sites: Mapping[str, frozenset[str]]

    def known(self, tenant: str) -> bool:
        """Whether there is such a tenant."""
        return tenant == HOST_TENANT or tenant in self.sites

    def sites_of(self, tenant: str) -> frozenset[str] | None:
        """None for all sites; a tenant that is no more has none."""
        return None if tenant == HOST_TENANT else self.sites.get(tenant, frozenset())
