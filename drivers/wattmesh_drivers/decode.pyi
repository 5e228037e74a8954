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

def crc16(data: bytes | bytearray | memoryview) -> int:
    """Checksum of an RTU frame (MODBUS over Serial Line 1.02, 6.2.2), sent low byte first; 0 over a frame with its own."""

class BlockDecoder:
    """How to decode one block of registers: prepared once, used each poll.

    Args:
        offsets: Type ``i``; register offset of each point in the block.
        types: Type ``i``; codes ``U16`` … ``F64``.
        little: One byte a point: whether the low word comes first.
        factors: Type ``d``; scale × sign.
        sentinels: Type ``q``; raw value (signed reading of the register's own width for s16 and s32) that means no data.
        has_sentinel: One byte a point.
        targets: Type ``i``; index of each point in the result.
        highs: Type ``i``; register offset of the high word of a value of two words, where it is not beside the low one,
            which is then at the offset; -1 elsewhere.
        biases: Type ``d``; added after scaling.
        leasts: Type ``d``; a smaller value is bad.
        mosts: Type ``d``; a larger value is bad.

    Raises:
        ValueError: The arrays differ in length, a type is unknown, a target negative or a high word of no use.
    """

    def __init__(
        self,
        offsets: array[int],
        types: array[int],
        little: bytes | bytearray,
        factors: array[float],
        sentinels: array[int],
        has_sentinel: bytes | bytearray,
        targets: array[int],
        highs: array[int] | None = None,
        biases: array[float] | None = None,
        leasts: array[float] | None = None,
        mosts: array[float] | None = None,
    ) -> None: ...
    def decode(self, registers: array[int], values: array[float], qualities: bytearray) -> int:
        """Decode one block into ``values`` and ``qualities``.

        A point outside the block is bad, never a read out of bounds; so is one whose scaled value is not finite.

        Args:
            registers: Type ``H``, in the order of the wire.
            values: Type ``d``; NaN is written where there is no data.
            qualities: 0 good, 2 bad.

        Returns:
            How many points are good.

        Raises:
            ValueError: ``values`` or ``qualities`` have no place for a target.
        """
