"""The access section of the cloud's file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from wattmesh_a2a.config_file import StrictModel

from wattmesh_cloud.access.model import HOST_TENANT, Role

TenantName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class OidcGroup(StrictModel):
    """What members of a group of the identity provider are here."""

    group: str = Field(min_length=1, max_length=200)
    role: Role
    tenant: TenantName = HOST_TENANT


class OidcModel(StrictModel):
    """Login by OpenID Connect (authorisation code flow with PKCE)."""

    issuer: str = Field(pattern=r"^https?://", description="https; http only for a loopback issuer")
    client_id: str = Field(min_length=1, max_length=200)
    client_secret: Path | None = Field(default=None, description="a file; none for a public client")
    name_claim: str = "email"
    groups_claim: str = "groups"
    groups: tuple[OidcGroup, ...] = Field(min_length=1)
    """The first that somebody is a member of decides."""

    @field_validator("issuer")
    @classmethod
    def _encrypted(cls, issuer: str) -> str:
        if issuer.startswith("http://") and not issuer.startswith(
            ("http://127.0.0.1", "http://localhost", "http://[::1]")
        ):
            raise ValueError("an issuer that is not on this machine has to be https")
        return issuer.rstrip("/")


class AccessModel(StrictModel):
    """Who may come in."""

    demo: bool = False
    """Everybody on this machine is the admin, without a password. Refused unless API and console listen on loopback."""
    tenants: dict[TenantName, tuple[SiteName, ...]] = {}
    """Sites of each tenant besides ``fleet``, which has all."""
    oidc: OidcModel | None = None
    idle_min: float = Field(default=30, gt=0, le=1440)
    """A session that nobody uses ends after this."""
    longest_h: float = Field(default=12, gt=0, le=168)
    requests_per_s: float = Field(default=50, gt=0, le=10_000)
    """Of one user, token or address, for as long as it lasts; five seconds' worth may come at once."""

    @field_validator("tenants")
    @classmethod
    def _host_is_not_listed(cls, tenants: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        if HOST_TENANT in tenants:
            raise ValueError(f"{HOST_TENANT!r} is the operator of the fleet and has every site; leave it out")
        return tenants
