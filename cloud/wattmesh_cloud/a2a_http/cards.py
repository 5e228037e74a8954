"""Agent cards for HTTP: made of what an agent says of itself over MQTT, signed with the cloud's key."""

from __future__ import annotations

from typing import Any, Protocol

from a2a.types import (
    AgentCapabilities,
    AgentCard,
    AgentCardSignature,
    AgentExtension,
    AgentInterface,
    AgentProvider,
    AgentSkill,
    HTTPAuthSecurityScheme,
    MutualTlsSecurityScheme,
    SecurityRequirement,
    SecurityScheme,
    StringList,
)
from google.protobuf.json_format import MessageToDict
from wattmesh_a2a import cards, codec

MODES = ("text/plain", "application/json")
_BEARER, _CERTIFICATE = "bearer", "certificate"


class CardSigner(Protocol):
    """Signs with a key whose certificate goes along (:class:`wattmesh_a2a.certificates.CertificateKeys`)."""

    def jws(self, content: bytes) -> tuple[str, str]:
        """Protected header and signature, both base64url, of a detached JWS (RFC 7515)."""
        ...


def http_card(
    agent: cards.AgentCard,
    url: str,
    *,
    signer: CardSigner | None = None,
    with_login: bool = True,
    with_tls: bool = False,
) -> AgentCard:
    """The card of one agent.

    Args:
        agent: What it says of itself.
        url: Where the bridge serves it; ends with ``/``.
        signer: Signs the card; none where there is no PKI.
        with_login: Whether callers have to say who they are.
        with_tls: Whether a client certificate will do for that.
    """
    names = sorted(agent.requests)
    card = AgentCard(
        name=agent.name,
        description=f"Agent {agent.address.agent} of {agent.address.unit} in an energy fleet",
        version=agent.version or "unknown",
        provider=AgentProvider(organization=agent.address.org, url=url),
        supported_interfaces=[
            AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="1.0"),
            AgentInterface(url=url.rstrip("/"), protocol_binding="HTTP+JSON", protocol_version="1.0"),
        ],
        capabilities=AgentCapabilities(
            streaming=True,
            push_notifications=True,
            extensions=[
                AgentExtension(
                    uri=cards.EXTENSION,
                    required=False,
                    description='Typed requests: a data part {"type": …, "data": …}',
                )
            ],
        ),
        default_input_modes=MODES,
        default_output_modes=MODES,
        skills=[
            AgentSkill(id="ask", name="Ask", description="Answers to plain text", tags=["text"]),
            *(
                AgentSkill(id=name, name=name, description=f"Takes {name}", tags=["wattmesh"], input_modes=[MODES[1]])
                for name in names
            ),
        ],
    )
    if with_login:
        card.security_schemes[_BEARER].CopyFrom(
            SecurityScheme(http_auth_security_scheme=HTTPAuthSecurityScheme(scheme="Bearer"))
        )
        card.security_requirements.append(SecurityRequirement(schemes={_BEARER: StringList()}))
        if with_tls:
            card.security_schemes[_CERTIFICATE].CopyFrom(SecurityScheme(mtls_security_scheme=MutualTlsSecurityScheme()))
            card.security_requirements.append(SecurityRequirement(schemes={_CERTIFICATE: StringList()}))
    if signer is not None:
        protected, signature = signer.jws(signed_form(card))
        card.signatures.append(AgentCardSignature(protected=protected, signature=signature))
    return card


def signed_form(card: AgentCard) -> bytes:
    """What is signed (A2A 1.0, 8.4.1): the card without its signatures and without what is empty, by RFC 8785."""
    fields = MessageToDict(card)
    fields.pop("signatures", None)
    return codec.canonical(_without_empty(fields))


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: one for key, raw in value.items() if (one := _without_empty(raw)) is not None}
        return kept or None
    if isinstance(value, list):
        return [one for raw in value if (one := _without_empty(raw)) is not None] or None
    return None if value == "" else value
