"""What happens to a message: the one place to read it.

A receiver's order, and the :class:`Fate` of what fails a step:

1. **size and parts** - over the transport's limit, or never complete: ``invalid``
2. **attributes** - no JSON object of ours, no source, id, session, sequence or validity: ``invalid``
3. **who** - another organisation's, not addressed to us, or a response topic that is not the requester's: ``foreign``
4. **signature** - of the types that move power or money (:data:`wattmesh_a2a.messages.SIGNED_TYPES`): ``unsigned``
5. **pace** - a peer over its token bucket: ``busy``, and its sender tries again by itself
6. **issued** in the future beyond :data:`CLOCK_SKEW_NS`, or valid for more than :data:`MAX_VALIDITY_NS`: ``unreasonable``
7. **repetition** - answered before (``duplicate``: the stored answer goes out again), or under way
8. **expiry** - ``expired``; for what is signed this answer is stored too, so that a clock set back cannot change it
9. **type and data** - an unknown type or major version ``unknown``, data that breaks its schema ``invalid``
10. **order** - overtaken by a newer one where only the newest counts: ``superseded``
11. **not before** - ``held`` until then, bounded; the sender is told (``TASK_STATE_SUBMITTED``), and may revoke it
12. **expiry again**, at the moment of the effect; then handler, answer stored, answer sent: ``handled``, ``refused``, ``failed``

What is refused from step 3 on is answered with a typed ``Refused`` where there is somebody to answer (never to a foreign topic);
everything is counted by fate, type and peer (:mod:`wattmesh_a2a.stats`), said once a cause in the log, and what could not be
understood or delivered is kept in the bounded dead letters (:mod:`wattmesh_a2a.deadletters`).

A sender's order: signed, stored (durable requests), sent by priority within the transport's limits (:mod:`wattmesh_a2a.lanes`), in
parts if large; repeated with the same id until the answer comes, the message expires, or the caller's patience ends. A durable
request is asked after beyond its expiry and after a restart, until its outcome is known. A broker's acknowledgement means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from wattmesh_a2a import codec
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.envelope import Address, Envelope
from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_a2a.messages import MESSAGE_TYPES, SIGNED_NAMES, Refused
from wattmesh_a2a.signing import Signer

CLOCK_SKEW_NS = 300 * NS_PER_S
"""How far a sender's clock may run ahead of ours. Expiry is judged by the receiver's clock, without any tolerance."""
MAX_VALIDITY_NS = 7 * 86_400 * NS_PER_S
"""From issue to expiry: what AWS IoT Core can keep, and what the memory of answers is sized for."""


class Fate(StrEnum):
    """What became of a message that came in."""

    HANDLED = "handled"
    DUPLICATE = "duplicate"
    HELD = "held"
    INVALID = "invalid"
    FOREIGN = "foreign"
    UNSIGNED = "unsigned"
    BUSY = "busy"
    UNREASONABLE = "unreasonable"
    EXPIRED = "expired"
    UNKNOWN = "unknown"
    SUPERSEDED = "superseded"
    REVOKED = "revoked"
    REFUSED = "refused"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """The receiver stopped while it handled it, and nobody can say whether it took effect; it is not handled again."""
    LATE = "late_reply"
    """An answer nobody waits for any more."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A message after the steps that need no memory: either an envelope's attributes, or why not."""

    fate: Fate | None
    """None: it may go on."""
    cause: str = ""
    head: dict[str, Any] | None = None
    """Its attributes, when they could be read and the source may be answered."""
    fields: dict[str, Any] | None = None
    signed: bool = False

    def refusal(self) -> Refused:
        """The typed answer."""
        return refusal(self.fate or Fate.INVALID, self.cause)

    def envelope(self) -> Envelope:
        """The whole message; raises :class:`InvalidMessageError` when its data breaks the schema."""
        assert self.head is not None
        assert self.fields is not None
        data = codec.message_from_json(self.head["type"], self.fields.get("data"))
        return Envelope(**self.head, data=data, signed=self.signed)


def refusal(fate: Fate, cause: str) -> Refused:
    """A typed answer; ``retryable`` where the same message may be taken later."""
    return Refused(error=fate.value, detail=cause[:200], retryable=fate is Fate.BUSY)


class Gate:
    """Steps 2 to 4 and 6 of the receiver's order.

    Args:
        keys: Verifies; without it whatever has to be signed is refused.
    """

    def __init__(self, keys: Signer | None) -> None:
        self._keys = keys

    def request(self, payload: bytes, served: Address, reply_prefix: str, response_topic: str, now_ns: int) -> Judged:
        """A request that came on the topic of ``served``."""
        try:
            fields = codec.decode_fields(payload)
            head = codec.attributes(fields)
        except InvalidMessageError as error:
            return Judged(Fate.INVALID, str(error))
        source: Address = head["source"]
        own = f"{reply_prefix}/{source.org}/{source.unit}/"
        if not response_topic.startswith(own) or {"+", "#", "\0"} & set(response_topic) or len(response_topic) > 250:
            return Judged(Fate.FOREIGN, "a response topic that is not the requester's")
        if source.org != served.org:
            return Judged(Fate.FOREIGN, f"a request of {source}, of another organisation")
        if head["destination"] != served:
            return Judged(Fate.FOREIGN, f"a request for {head['destination']} on the topic of {served}", head)
        judged = self._signed(fields, head, served) or Judged(None, "", head, fields)
        return judged if judged.fate is not None else self._timely(judged, now_ns)

    def reply(self, payload: bytes, address: Address) -> Judged:
        """An answer that came on our reply topic; whether it was asked for is the caller's to know."""
        try:
            fields = codec.decode_fields(payload)
            head = codec.attributes(fields)
        except InvalidMessageError as error:
            return Judged(Fate.INVALID, str(error))
        destination: Address | None = head["destination"]
        if head["source"].org != address.org or destination is None or destination.unit != address.unit:
            return Judged(Fate.FOREIGN, f"an answer of {head['source']} for {destination}")
        return self._signed(fields, head, destination) or Judged(None, "", head, fields)

    def event(self, payload: bytes, org: str, now_ns: int) -> Judged:
        """An event; its topic is compared by the caller."""
        try:
            fields = codec.decode_fields(payload)
            head = codec.attributes(fields)
        except InvalidMessageError as error:
            return Judged(Fate.INVALID, str(error))
        if head["source"].org != org:
            return Judged(Fate.FOREIGN, f"an event of {head['source']}, of another organisation")
        if head["expires_ns"] <= now_ns:
            return Judged(Fate.EXPIRED, "an event after its expiry", head)
        return self._timely(Judged(None, "", head, fields), now_ns)

    def _signed(self, fields: dict[str, Any], head: dict[str, Any], destination: Address) -> Judged | None:
        """None where no signature is needed; the message goes on signed, or is refused."""
        if head["type"] not in SIGNED_NAMES:
            return None
        signature = fields.get("signature")
        if (
            self._keys is None
            or not isinstance(signature, str)
            or not self._keys.verify(head["source"], destination, codec.canonical(fields), signature)
        ):
            return Judged(Fate.UNSIGNED, f"{head['type']} of {head['source']} without a valid signature", head)
        return Judged(None, "", head, fields, signed=True)

    @staticmethod
    def _timely(judged: Judged, now_ns: int) -> Judged:
        head = judged.head
        assert head is not None
        if head["time_ns"] > now_ns + CLOCK_SKEW_NS:
            return Judged(Fate.UNREASONABLE, f"issued {(head['time_ns'] - now_ns) // NS_PER_S} s in the future", head)
        if head["expires_ns"] - min(head["time_ns"], now_ns) > MAX_VALIDITY_NS + CLOCK_SKEW_NS:
            return Judged(Fate.UNREASONABLE, f"valid for more than {MAX_VALIDITY_NS // NS_PER_S} s", head)
        return judged


def known(name: str) -> bool:
    """Whether we have this type, in this major version."""
    return name in MESSAGE_TYPES
