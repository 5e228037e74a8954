"""The errors that callers can act on: permanent or retryable, one base."""


class WattmeshError(Exception):
    """Base of every error that WattMesh raises on purpose.

    Attributes:
        retryable: Whether the same call may succeed later without anybody changing anything.
    """

    retryable = False


class ConfigurationError(WattmeshError):
    """A file or option that a person has to change; the text names what, where and what is allowed."""


class InvalidMessageError(WattmeshError):
    """Bytes that are not a message of ours, or one that breaks its schema."""


class UnauthorisedError(WattmeshError):
    """A message whose signature, signer or address does not permit what it asks."""


class ExpiredError(WattmeshError):
    """A message or proposal outside its validity window; it must not have an effect any more."""


class UnavailableError(WattmeshError):
    """A device, broker, peer or disk that does not answer now; trying again later is right."""

    retryable = True


class ConflictError(WattmeshError):
    """The same identifier with other contents: somebody reuses an id that must be unique."""
