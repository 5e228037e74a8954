"""The language that agents share: types, messages, envelope, topics, delivery and transports.

Types here use the standard library alone. Signs everywhere: positive power flows *into* a component (consumption,
charging, import), negative out of it. Times on the wire are UTC integer nanoseconds; money and energy in the market
are integers.
"""

__version__ = "0.1.0"
"""As in ``pyproject.toml``; a test compares them."""
