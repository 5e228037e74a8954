"""Numbers of telemetry columns, to and from their places in a frame; what they mean stands in `telemetry`."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.math cimport NAN, rint
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc

cdef double _MOST = 2147483647.0
cdef uint8_t _BAD = 2
cdef double[9] _FACTOR = [1.0, 10.0, 100.0, 1000.0, 10000.0, 0.1, 0.01, 0.001, 0.0001]
cdef bytes _LETTERS = b"01234abcd"
cdef uint8_t _RAW = 120


cdef int _mode(const double *values, const uint8_t *quality, Py_ssize_t rows, int32_t *numbers) noexcept nogil:
    """Index of the first mode that gives back every value, its numbers written; -1 where none does."""
    cdef Py_ssize_t row
    cdef int mode
    cdef double value, scaled, number, factor
    for row in range(rows):
        if quality[row] == _BAD and values[row] == values[row]:
            return -1  # bad, and yet a number: only a double keeps it
    for mode in range(9):
        factor = _FACTOR[mode]
        for row in range(rows):
            if quality[row] == _BAD:
                numbers[row] = 0
                continue
            value = values[row]
            scaled = value * factor if mode < 5 else value / factor
            if not (-_MOST <= scaled <= _MOST):  # NaN and infinity neither
                return -1
            number = rint(scaled)
            if (number / factor if mode < 5 else number * factor) != value:
                break
            numbers[row] = <int32_t> number
        else:
            return mode
    return -1


def pack(bytes values not None, bytes qualities not None, Py_ssize_t rows):
    """Modes, shuffled differences and raw doubles of columns that lie end to end, `rows` values each."""
    cdef Py_ssize_t columns = len(qualities) // rows if rows else 0
    if len(qualities) != columns * rows or len(values) != 8 * columns * rows:
        raise ValueError("values and qualities do not fit together")
    cdef const double *all_values = <const double *> PyBytes_AS_STRING(values)
    cdef const uint8_t *all_qualities = <const uint8_t *> PyBytes_AS_STRING(qualities)
    cdef bytearray modes = bytearray(columns)
    cdef uint8_t *letters = modes
    cdef const uint8_t *names = _LETTERS
    cdef int32_t *numbers = <int32_t *> malloc(max(1, columns * rows) * sizeof(int32_t))
    if numbers == NULL:
        raise MemoryError
    cdef Py_ssize_t taken = 0, at, row, count
    cdef int mode
    cdef uint32_t before, now, difference
    cdef bytes shuffled
    cdef uint8_t *out
    raw = []
    try:
        for at in range(columns):
            mode = _mode(all_values + at * rows, all_qualities + at * rows, rows, numbers + taken)
            if mode < 0:
                letters[at] = _RAW
                raw.append(values[8 * at * rows : 8 * (at + 1) * rows])
            else:
                letters[at] = names[mode]
                taken += rows
        shuffled = PyBytes_FromStringAndSize(NULL, 4 * taken)
        out = <uint8_t *> PyBytes_AS_STRING(shuffled)
        count = taken
        for at in range(0, taken, rows):
            before = 0
            for row in range(at, at + rows):
                now = <uint32_t> numbers[row]
                difference = now - before  # modulo 2**32
                before = now
                out[row] = difference & 255
                out[count + row] = (difference >> 8) & 255
                out[2 * count + row] = (difference >> 16) & 255
                out[3 * count + row] = difference >> 24
    finally:
        free(numbers)
    return modes.decode("ascii"), shuffled, b"".join(raw)


def unpack(bytes shuffled not None, bytes qualities not None, str modes not None, Py_ssize_t rows):
    """The doubles of the columns in decimal modes, end to end; `qualities` are those of these columns."""
    cdef Py_ssize_t columns = len(modes), count = columns * rows, at, row, index
    if len(shuffled) != 4 * count or len(qualities) != count:
        raise ValueError("numbers and qualities do not fit together")
    cdef const uint8_t *source = <const uint8_t *> PyBytes_AS_STRING(shuffled)
    cdef const uint8_t *quality = <const uint8_t *> PyBytes_AS_STRING(qualities)
    cdef bytes result = PyBytes_FromStringAndSize(NULL, 8 * count)
    cdef double *out = <double *> PyBytes_AS_STRING(result)
    cdef uint32_t number
    cdef double factor
    cdef int mode
    for at in range(columns):
        mode = _LETTERS.index(modes[at].encode("ascii"))
        factor = _FACTOR[mode]
        number = 0
        for row in range(rows):
            index = at * rows + row
            number += (
                source[index] | (<uint32_t> source[count + index] << 8) | (<uint32_t> source[2 * count + index] << 16)
                | (<uint32_t> source[3 * count + index] << 24)
            )
            if quality[index] == _BAD:
                out[index] = NAN
            elif mode < 5:
                out[index] = <double> <int32_t> number / factor
            else:
                out[index] = <double> <int32_t> number * factor
    return result
