"""Modbus TCP over plain sockets, for a thread that never waits longer than it said; and checksums of C37.118 frames."""

from libc.stdint cimport int64_t, uint8_t, uint16_t

cdef enum:
    NS = 1000000000
    PIECES = 4             # values read beside each other from a meter
    ANSWER_NS = 200000000  # longest wait for one answer; a device slower than the period misses deadlines, which are counted

cdef struct Piece:
    int offset        # registers from the block's start
    int kind          # 0 u16, 1 s16, 2 u32, 3 s32, 4 f32
    int little
    double factor

cdef struct Endpoint:
    char host[64]
    int port
    int unit
    int function
    int address
    int count
    int pieces
    Piece piece[PIECES]

cdef struct Link:
    int fd
    int ready
    uint16_t transaction
    int64_t retry_ns
    int64_t backoff_ns

cdef struct Writer:
    Link link
    Endpoint target
    int pending            # 0, or what the answer is awaited for: 1 write, 2 readback
    int overtaken          # a readback whose answer is still to come, before that of the write
    uint16_t overtaken_transaction
    int read_back
    uint8_t expect[5]
    uint8_t got[64]
    int have
    int64_t sent_ns
    int64_t read_due_ns
    int64_t not_before_ns  # after a refusal: not asked again at once
    double value
    int64_t sampled_ns

cdef int64_t now_ns() noexcept nogil
cdef void set_endpoint(Endpoint *end, dict words, list pieces) except *
cdef void drop(Link *link, int64_t now) noexcept nogil
cdef int wait_for(int fd, short what, int64_t deadline) noexcept nogil
cdef int ensure(Link *link, const char *host, int port, int64_t deadline) noexcept nogil
cdef int send_all(int fd, const void *data, size_t size) noexcept nogil
cdef int read_values(Link *link, const Endpoint *end, double *values, int64_t deadline) noexcept nogil
cdef int writer_send(Writer *w, double value, int64_t sampled) noexcept nogil
cdef int writer_step(Writer *w, int64_t now, int *confirmed, double *value) noexcept nogil
cdef uint16_t crc_ccitt(const uint8_t *data, int size) noexcept nogil
