"""Registers into scaled doubles, in prepared arrays, without a Python object a point on the way."""

from libc.float cimport DBL_MAX
from libc.math cimport NAN
from libc.stdint cimport int16_t, int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

# Codes of the register types; see decode.pyi.
U16, S16, U32, S32, U64, S64, F32, F64 = range(8)

cdef int[8] WORDS = [1, 1, 2, 2, 4, 4, 2, 4]


cdef uint16_t[256] CRC_TABLE


cdef void _fill_crc_table():
    cdef int i, k
    cdef uint16_t value
    for i in range(256):
        value = <uint16_t>i
        for k in range(8):
            value = (value >> 1) ^ 0xA001 if value & 1 else value >> 1
        CRC_TABLE[i] = value


_fill_crc_table()


def crc16(const unsigned char[::1] data):
    """Checksum of an RTU frame; see decode.pyi."""
    cdef uint16_t crc = 0xFFFF
    cdef Py_ssize_t i
    for i in range(data.shape[0]):
        crc = (crc >> 8) ^ CRC_TABLE[(crc ^ data[i]) & 0xFF]
    return crc


cdef struct Row:
    int offset
    int before
    int reach
    int high
    int low
    int target
    unsigned char kind
    unsigned char words
    unsigned char little
    unsigned char has_sentinel
    double factor
    double bias
    double least
    double most
    int64_t sentinel


cdef class BlockDecoder:
    """How to decode one block; see decode.pyi."""

    cdef Row* rows
    cdef Py_ssize_t count
    cdef Py_ssize_t targets_end

    def __cinit__(self, const int[::1] offsets, const int[::1] types, const unsigned char[::1] little,
                  const double[::1] factors, const int64_t[::1] sentinels,
                  const unsigned char[::1] has_sentinel, const int[::1] targets,
                  const int[::1] highs=None, const double[::1] biases=None,
                  const double[::1] leasts=None, const double[::1] mosts=None):
        cdef Py_ssize_t count = offsets.shape[0]
        cdef Py_ssize_t i
        if (types.shape[0] != count or little.shape[0] != count or factors.shape[0] != count
                or sentinels.shape[0] != count or has_sentinel.shape[0] != count or targets.shape[0] != count):
            raise ValueError("the arrays differ in length")
        if (highs is not None and highs.shape[0] != count) or (biases is not None and biases.shape[0] != count):
            raise ValueError("the arrays differ in length")
        if (leasts is not None and leasts.shape[0] != count) or (mosts is not None and mosts.shape[0] != count):
            raise ValueError("the arrays differ in length")
        self.rows = <Row*>calloc(count or 1, sizeof(Row))
        if self.rows == NULL:
            raise MemoryError
        for i in range(count):
            if not 0 <= types[i] <= 7 or targets[i] < 0:
                raise ValueError(f"row {i} has an unknown type or a negative target")
            if highs is not None and highs[i] >= 0 and WORDS[types[i]] != 2:
                raise ValueError(f"row {i}: only a value of two words can have them apart")
            # In registers from the offset: how far back and how far on the value reaches, and where its two words are.
            self.rows[i] = Row(offset=offsets[i], target=targets[i], kind=types[i], words=WORDS[types[i]],
                               little=little[i] != 0, has_sentinel=has_sentinel[i] != 0,
                               factor=factors[i], bias=0.0 if biases is None else biases[i], sentinel=sentinels[i],
                               least=-DBL_MAX if leasts is None else max(-DBL_MAX, leasts[i]),
                               most=DBL_MAX if mosts is None else min(DBL_MAX, mosts[i]),
                               before=0, reach=WORDS[types[i]],
                               high=0 if little[i] == 0 else 1, low=1 if little[i] == 0 else 0)
            if highs is not None and highs[i] >= 0:  # the low word is at the offset, the high one elsewhere
                self.rows[i].low = 0
                self.rows[i].high = highs[i] - offsets[i]
                self.rows[i].before = min(0, self.rows[i].high)
                self.rows[i].reach = max(0, self.rows[i].high) + 1
            self.targets_end = max(self.targets_end, targets[i] + 1)
        self.count = count

    def __dealloc__(self):
        free(self.rows)

    def decode(self, const uint16_t[::1] registers, double[::1] values, unsigned char[::1] qualities):
        """Decode one block; see decode.pyi."""
        if values.shape[0] < self.targets_end or qualities.shape[0] < self.targets_end:
            raise ValueError("values or qualities are shorter than the targets need")
        if self.count == 0:
            return 0
        if registers.shape[0] == 0:  # there is no first register to point to
            return _decode(self.rows, self.count, NULL, 0, &values[0], &qualities[0])
        return _decode(self.rows, self.count, &registers[0], registers.shape[0], &values[0], &qualities[0])


cdef int _decode(const Row* rows, Py_ssize_t count, const uint16_t* registers, Py_ssize_t length,
                 double* values, unsigned char* qualities) noexcept nogil:
    cdef const Row* row
    cdef const uint16_t* at
    cdef Py_ssize_t i
    cdef int good = 0
    cdef uint32_t wide
    cdef uint64_t raw
    cdef int64_t number
    cdef double value
    cdef float narrow
    for i in range(count):
        row = &rows[i]
        if <int64_t>row.offset + row.before < 0 or row.offset > length - row.reach:
            values[row.target] = NAN
            qualities[row.target] = 2
            continue
        at = registers + row.offset
        if row.words == 1:
            number = <int64_t><int16_t>at[0] if row.kind == 1 else <int64_t>at[0]
            value = <double>number
        elif row.words == 2:
            wide = (<uint32_t>at[row.high] << 16) | at[row.low]
            number = <int64_t><int32_t>wide if row.kind == 3 else <int64_t>wide
            if row.kind == 6:
                memcpy(&narrow, &wide, 4)
                value = narrow
            else:
                value = <double>number
        else:
            if row.little:
                raw = (<uint64_t>at[3] << 48) | (<uint64_t>at[2] << 32) | (<uint64_t>at[1] << 16) | at[0]
            else:
                raw = (<uint64_t>at[0] << 48) | (<uint64_t>at[1] << 32) | (<uint64_t>at[2] << 16) | at[3]
            number = <int64_t>raw
            if row.kind == 7:
                memcpy(&value, &raw, 8)
            else:
                value = <double>raw if row.kind == 4 else <double>number
        value = value * row.factor + row.bias
        # An infinite value is in no range, and what is no number neither.
        if not row.least <= value <= row.most or (row.has_sentinel and number == row.sentinel):
            values[row.target] = NAN
            qualities[row.target] = 2
        else:
            values[row.target] = value
            qualities[row.target] = 0
            good += 1
    return good
