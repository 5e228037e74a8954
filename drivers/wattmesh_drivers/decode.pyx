"""Registers into scaled doubles, in prepared arrays, without a Python object a point on the way."""

from libc.stdint cimport int16_t, int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.math cimport NAN, isfinite
from libc.string cimport memcpy

# Codes of the register types; the plan's ``types`` holds them. See decode.pyi.
U16, S16, U32, S32, U64, S64, F32, F64 = range(8)

cdef int[8] WORDS = [1, 1, 2, 2, 4, 4, 2, 4]


def decode(const uint16_t[::1] registers, const int[::1] offsets, const int[::1] types,
           const unsigned char[::1] little, const double[::1] factors, const int64_t[::1] sentinels,
           const unsigned char[::1] has_sentinel, const int[::1] targets,
           double[::1] values, unsigned char[::1] qualities):
    """Decode one block; see decode.pyi."""
    cdef Py_ssize_t count = offsets.shape[0]
    cdef Py_ssize_t length = registers.shape[0]
    cdef Py_ssize_t i
    cdef int words, w, target, kind, good = 0
    cdef uint64_t raw
    cdef int64_t signed_raw
    cdef double value
    cdef float narrow
    cdef uint32_t bits32
    if (types.shape[0] != count or little.shape[0] != count or factors.shape[0] != count
            or sentinels.shape[0] != count or has_sentinel.shape[0] != count or targets.shape[0] != count
            or values.shape[0] != qualities.shape[0]):
        raise ValueError("the plan's arrays differ in length")
    with nogil:
        for i in range(count):
            kind = types[i]
            target = targets[i]
            if target < 0 or target >= values.shape[0]:
                continue
            if kind < 0 or kind > 7 or offsets[i] < 0 or offsets[i] + WORDS[kind] > length:
                values[target] = NAN
                qualities[target] = 2
                continue
            words = WORDS[kind]
            raw = 0
            for w in range(words):
                if little[i]:
                    raw = (raw << 16) | registers[offsets[i] + words - 1 - w]
                else:
                    raw = (raw << 16) | registers[offsets[i] + w]
            if kind == 1:
                signed_raw = <int16_t>raw
            elif kind == 3:
                signed_raw = <int32_t>raw
            else:
                signed_raw = <int64_t>raw
            if kind == 6:
                bits32 = <uint32_t>raw
                memcpy(&narrow, &bits32, 4)
                value = narrow
            elif kind == 7:
                memcpy(&value, &raw, 8)
            elif kind == 0 or kind == 2 or kind == 4:
                value = <double>raw
            else:
                value = <double>signed_raw
            if (has_sentinel[i] and signed_raw == sentinels[i]) or not isfinite(value):
                values[target] = NAN
                qualities[target] = 2
            else:
                values[target] = value * factors[i]
                qualities[target] = 0
                good += 1
    return good
