"""What a simulated device does wrong, on demand."""

from __future__ import annotations

from dataclasses import dataclass, fields

from wattmesh_a2a.errors import ConfigurationError


@dataclass(slots=True)
class Faults:
    """Switches of one device; all off is healthy. They act from the next request on."""

    silent: bool = False
    """Takes requests and never answers."""
    exception: int = 0
    """Answers everything with this exception code; 0 does not."""
    delay_s: float = 0.0
    """Answers that much later."""
    wrong_transaction: bool = False
    """TCP: the identifier of the next request; RTU has none."""
    wrong_function: bool = False
    wrong_unit: bool = False
    short: bool = False
    """Leaves out the last register, with a header that fits what is left."""
    corrupt: bool = False
    """A checksum (RTU) or a protocol identifier (TCP) that is wrong."""
    frozen: bool = False
    """Repeats the values it had."""
    refresh_s: float = 0.0
    """Renews its values only so often."""
    drop: bool = False
    """Ends the connection in the middle of an answer; on a serial line the rest does not come."""
    single_client: bool = False
    """Serves one connection; a second one is ended at once."""


def switch(faults: Faults, name: str, value: str) -> None:
    """Set one fault by its name; raises :class:`ConfigurationError` with the names that there are."""
    kinds = {field.name: type(getattr(faults, field.name)) for field in fields(faults)}
    if name not in kinds:
        raise ConfigurationError(f"there is no fault {name!r}; there are: {', '.join(kinds)}")
    try:
        setattr(faults, name, value not in {"0", "off", ""} if kinds[name] is bool else kinds[name](value or 0))
    except ValueError as error:
        raise ConfigurationError(f"fault {name}: {value!r} is no number") from error
