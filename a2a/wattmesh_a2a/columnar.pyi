"""Numbers of telemetry columns, to and from their places in a frame; what they mean stands in :mod:`telemetry`."""

def pack(values: bytes, qualities: bytes, rows: int) -> tuple[str, bytes, bytes]:
    """Modes, differences and raw values of columns.

    Args:
        values: Doubles of all columns, end to end.
        qualities: A byte a value, likewise.
        rows: Values in each column.

    Returns:
        A letter a column; the whole numbers as differences (i32, bytes of equal weight together) of those in a decimal mode; the
        doubles of the others.

    Raises:
        ValueError: Lengths do not fit together.
    """

def unpack(shuffled: bytes, qualities: bytes, modes: str, rows: int) -> bytes:
    """The doubles of columns in decimal modes, end to end; a bad value is NaN.

    Args:
        shuffled: As :func:`pack` gives them.
        qualities: Of these columns.
        modes: Of these columns, none of them raw.
        rows: Values in each column.

    Raises:
        ValueError: Lengths do not fit together, or a mode is none.
    """
