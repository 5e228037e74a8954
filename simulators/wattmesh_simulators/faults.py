"""What a simulated device does wrong, on demand."""

from __future__ import annotations

from dataclasses import dataclass


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
    wrong_function: bool = False
    wrong_unit: bool = False
    short: bool = False
    """Leaves out the last register."""
    frozen: bool = False
    """Repeats the values it had."""
    drop: bool = False
    """Ends the connection in the middle of an answer."""
