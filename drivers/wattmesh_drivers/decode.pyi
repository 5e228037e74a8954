"""Registers into scaled doubles, in prepared arrays, without a Python object a point on the way."""

from array import array

U16: int
S16: int
U32: int
S32: int
U64: int
S64: int
F32: int
F64: int

def decode(
    registers: array[int],
    offsets: array[int],
    types: array[int],
    little: bytes | bytearray,
    factors: array[float],
    sentinels: array[int],
    has_sentinel: bytes | bytearray,
    targets: array[int],
    values: array[float],
    qualities: bytearray,
) -> int:
    """Decode one block of registers into ``values`` and ``qualities``.

    Args:
        registers: Type ``H``, in the order of the wire.
        offsets: Type ``i``; register offset of each point in the block.
        types: Type ``i``; codes ``U16`` … ``F64``.
        little: One byte a point: whether the low word comes first.
        factors: Type ``d``; scale × sign.
        sentinels: Type ``q``; raw value (signed reading of the register's own width for s16 and s32) that means no data.
        has_sentinel: One byte a point.
        targets: Type ``i``; index of each point in the result.
        values: Type ``d``; NaN is written where there is no data.
        qualities: 0 good, 2 bad.

    A point outside the block is bad, never a read out of bounds.

    Returns:
        How many points are good.

    Raises:
        ValueError: The plan's arrays differ in length.
    """
