# distutils: define_macros=_GNU_SOURCE=1
"""Modbus TCP over plain sockets: see wire.pxd. Every answer is checked for transaction, unit, function and length."""

from libc.errno cimport EAGAIN, EINPROGRESS, EINTR, errno
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    int socket(int domain, int kind, int protocol)
    int connect(int fd, const sockaddr *address, socklen_t size)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    ssize_t recv(int fd, void *data, size_t size, int flags)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *size)
    int AF_INET, SOCK_STREAM, SOCK_NONBLOCK, SOCK_CLOEXEC, SOL_SOCKET, SO_ERROR, MSG_NOSIGNAL, MSG_DONTWAIT, MSG_PEEK

cdef extern from "<netinet/in.h>" nogil:
    int IPPROTO_TCP
    struct in_addr:
        uint32_t s_addr
    struct sockaddr_in:
        uint16_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    uint16_t htons(uint16_t value)

cdef extern from "<netinet/tcp.h>" nogil:
    int TCP_NODELAY

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *address)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    short POLLIN, POLLOUT

cdef double[4] LOWEST = [0, -32768, 0, -2147483648.0]
cdef double[4] HIGHEST = [65535, 32767, 4294967295.0, 2147483647.0]


cdef int64_t now_ns() noexcept nogil:
    cdef timespec moment
    clock_gettime(CLOCK_MONOTONIC, &moment)
    return <int64_t>moment.tv_sec * NS + moment.tv_nsec


cdef void drop(Link *link, int64_t now) noexcept nogil:
    if link.fd >= 0:
        close(link.fd)
    link.fd = -1
    link.ready = 0
    link.backoff_ns = link.backoff_ns * 2 if link.backoff_ns else NS // 4
    if link.backoff_ns > 10 * <int64_t>NS:
        link.backoff_ns = 10 * <int64_t>NS
    link.retry_ns = now + link.backoff_ns


cdef int wait_for(int fd, short what, int64_t deadline) noexcept nogil:
    cdef pollfd one
    cdef int64_t left
    cdef int ready
    while True:
        left = deadline - now_ns()
        if left <= 0:
            return 0
        one.fd = fd
        one.events = what
        one.revents = 0
        ready = poll(&one, 1, <int>((left + 999999) // 1000000))
        if ready > 0:
            return 1
        if ready == 0 or errno != EINTR:
            return 0


cdef int connecting(Link *link, const char *host, int port, int64_t now) noexcept nogil:
    """Go on with the connection without waiting: 1 where it stands, 0 where it does not (yet)."""
    cdef sockaddr_in address
    cdef int error = 0, one = 1
    cdef socklen_t size = sizeof(int)
    cdef pollfd p
    if link.ready:
        return 1
    if link.fd < 0:
        if now < link.retry_ns:
            return 0
        memset(&address, 0, sizeof(address))
        address.sin_family = <uint16_t>AF_INET
        address.sin_port = htons(<uint16_t>port)
        if inet_pton(AF_INET, host, &address.sin_addr) != 1:
            link.retry_ns = now + 10 * <int64_t>NS
            return 0
        link.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
        if link.fd < 0:
            link.retry_ns = now + NS
            return 0
        setsockopt(link.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(int))
        if connect(link.fd, <sockaddr *>&address, sizeof(address)) != 0 and errno != EINPROGRESS:
            drop(link, now)
            return 0
        link.retry_ns = now + NS  # the attempt's own end
    p.fd = link.fd
    p.events = POLLOUT
    p.revents = 0
    if poll(&p, 1, 0) <= 0:
        if now > link.retry_ns:
            drop(link, now)
        return 0
    if getsockopt(link.fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0 or error != 0:
        drop(link, now)
        return 0
    link.ready = 1
    return 1


cdef int ensure(Link *link, const char *host, int port, int64_t deadline) noexcept nogil:
    """A connection, or 0; waits until the deadline at most."""
    if connecting(link, host, port, now_ns()):
        return 1
    if link.fd >= 0:
        wait_for(link.fd, POLLOUT, deadline)
        return connecting(link, host, port, now_ns())
    return 0


cdef int head(Link *link, int unit, int size, uint8_t *frame) noexcept nogil:
    """The MBAP header (Modbus messaging on TCP/IP 1.0b, 3.1.3); its length."""
    link.transaction += 1
    frame[0] = link.transaction >> 8
    frame[1] = link.transaction & 255
    frame[2] = 0
    frame[3] = 0
    frame[4] = 0
    frame[5] = <uint8_t>(size + 1)
    frame[6] = <uint8_t>unit
    return 7


cdef int sane(const uint8_t *got, const Link *link, int unit, int most) noexcept nogil:
    """Length of the rest of an answer whose header is this, or -1 where it is not ours."""
    cdef int length = (got[4] << 8) | got[5]
    if (got[0] != link.transaction >> 8 or got[1] != (link.transaction & 255) or got[2] or got[3] or got[6] != unit
            or length < 2 or length > most + 1):
        return -1
    return length - 1


cdef int words_of(int kind) noexcept nogil:
    return 1 if kind < 2 else 2


cdef double value_of(const uint8_t *at, const Piece *piece) noexcept nogil:
    cdef uint32_t raw
    cdef float narrow
    if piece.kind < 2:
        raw = (at[0] << 8) | at[1]
    elif piece.little:
        raw = (<uint32_t>at[2] << 24) | (<uint32_t>at[3] << 16) | (<uint32_t>at[0] << 8) | at[1]
    else:
        raw = (<uint32_t>at[0] << 24) | (<uint32_t>at[1] << 16) | (<uint32_t>at[2] << 8) | at[3]
    if piece.kind == 4:
        memcpy(&narrow, &raw, 4)
        return narrow * piece.factor
    if piece.kind == 1:
        return <int16_t>raw * piece.factor
    if piece.kind == 3:
        return <int32_t>raw * piece.factor
    return raw * piece.factor


cdef int read_values(Link *link, const Endpoint *end, double *values, int64_t deadline) noexcept nogil:
    """Every piece of the block in one request; 1, or 0 and the connection is gone."""
    cdef uint8_t frame[16]
    cdef uint8_t got[300]
    cdef int have = 0, need = 7, rest, i, size = end.count * 2
    cdef ssize_t n
    if not ensure(link, end.host, end.port, deadline):
        return 0
    head(link, end.unit, 5, frame)
    frame[7] = <uint8_t>end.function
    frame[8] = <uint8_t>(end.address >> 8)
    frame[9] = <uint8_t>(end.address & 255)
    frame[10] = 0
    frame[11] = <uint8_t>end.count
    if send(link.fd, frame, 12, MSG_NOSIGNAL) != 12:
        drop(link, now_ns())
        return 0
    while have < need:
        n = recv(link.fd, &got[have], need - have, MSG_DONTWAIT)
        if n > 0:
            have += <int>n
            if have == 7:
                rest = sane(got, link, end.unit, 253)
                if rest < 0:
                    drop(link, now_ns())
                    return 0
                need = 7 + rest
            continue
        if n < 0 and errno == EINTR:
            continue
        if n == 0 or not wait_for(link.fd, POLLIN, deadline):
            drop(link, now_ns())  # a late answer must not be taken for the next one
            return 0
    if have != 9 + size or got[7] != end.function or got[8] != size:
        if got[7] != (end.function | 0x80):  # an exception leaves the connection in step
            drop(link, now_ns())
        return 0
    link.backoff_ns = 0
    for i in range(end.pieces):
        values[i] = value_of(&got[9 + 2 * end.piece[i].offset], &end.piece[i])
    return 1


cdef int write_frame(Writer *w, double value, uint8_t *frame) noexcept nogil:
    """A whole request that writes ``value``; its length."""
    cdef const Piece *piece = &w.target.piece[0]
    cdef int words = words_of(piece.kind), length
    cdef double scaled = value / piece.factor
    cdef uint32_t raw
    cdef float narrow
    cdef uint8_t content[4]
    if piece.kind == 4:
        narrow = <float>scaled
        memcpy(&raw, &narrow, 4)
    else:
        # At the register's end, never around it: a wrapped setpoint would turn discharge into charge.
        scaled = scaled + 0.5 if scaled >= 0 else scaled - 0.5
        if scaled > HIGHEST[piece.kind]:
            scaled = HIGHEST[piece.kind]
        if scaled < LOWEST[piece.kind]:
            scaled = LOWEST[piece.kind]
        raw = <uint32_t><int64_t>scaled
    if words == 1:
        content[0] = <uint8_t>(raw >> 8)
        content[1] = <uint8_t>raw
    else:
        content[0] = <uint8_t>(raw >> 24)
        content[1] = <uint8_t>(raw >> 16)
        content[2] = <uint8_t>(raw >> 8)
        content[3] = <uint8_t>raw
        if piece.little:
            content[0], content[1], content[2], content[3] = content[2], content[3], content[0], content[1]
    length = 5 if w.target.function == 6 else 6 + words * 2
    head(&w.link, w.target.unit, length, frame)
    frame[7] = <uint8_t>w.target.function
    frame[8] = <uint8_t>(w.target.address >> 8)
    frame[9] = <uint8_t>(w.target.address & 255)
    if w.target.function == 6:
        frame[10] = content[0]
        frame[11] = content[1]
    else:
        frame[10] = 0
        frame[11] = <uint8_t>words
        frame[12] = <uint8_t>(words * 2)
        memcpy(&frame[13], content, words * 2)
    memcpy(w.expect, &frame[7], 5)
    return 7 + length


cdef int writer_send(Writer *w, double value, int64_t sampled) noexcept nogil:
    """Bytes onto the socket, without waiting for the answer: 1 where they have gone."""
    cdef uint8_t frame[32]
    cdef int size, tries, began
    if w.pending == 1 or now_ns() < w.not_before_ns:
        return 0  # one at a time: the newest value follows when the answer is here
    if w.pending == 2 and w.have == 0 and not w.overtaken:
        # A setpoint does not wait for a readback: that answer comes first, and then the write's.
        w.overtaken = 1
        w.overtaken_transaction = w.link.transaction
        w.pending = 0
    elif w.pending == 2:
        return 0
    for tries in range(2):
        began = w.link.fd < 0
        if not connecting(&w.link, w.target.host, w.target.port, now_ns()):
            if not began or w.link.fd < 0 or not wait_for(w.link.fd, POLLOUT, now_ns() + 20000000) or not connecting(
                    &w.link, w.target.host, w.target.port, now_ns()):
                return 0
        size = write_frame(w, value, frame)
        if send(w.link.fd, frame, size, MSG_NOSIGNAL) == size:
            w.pending = 1
            w.have = 0
            w.sent_ns = now_ns()
            w.value = value
            w.sampled_ns = sampled
            return 1
        drop(&w.link, now_ns())
        w.overtaken = 0
        w.link.retry_ns = 0  # a device may have ended an idle connection: once more at once, on a new one
    return 0


cdef int is_readback(const Writer *w, int size) noexcept nogil:
    cdef int rest = 2 * words_of(w.target.piece[0].kind)
    return size == 9 + rest and w.got[7] == 3 and w.got[8] == rest


cdef int writer_step(Writer *w, int64_t now, int *confirmed, double *value) noexcept nogil:
    """Take an answer if there is one. Bit 0: a write was ``confirmed`` or not; bit 1: ``value`` was read back."""
    cdef ssize_t n
    cdef int rest, need = 7, good = 0, was = w.pending
    cdef uint8_t frame[16]
    cdef char nothing
    if not was:
        if w.link.ready:
            n = recv(w.link.fd, &nothing, 1, MSG_DONTWAIT | MSG_PEEK)
            if n >= 0:  # ended, or bytes nobody asked for
                drop(&w.link, now)
                w.overtaken = 0
                w.link.retry_ns = now
        elif w.target.port:
            connecting(&w.link, w.target.host, w.target.port, now)
        if w.link.ready and w.read_back and now >= w.read_due_ns:
            head(&w.link, w.target.unit, 5, frame)
            frame[7] = 3
            frame[8] = <uint8_t>(w.target.address >> 8)
            frame[9] = <uint8_t>(w.target.address & 255)
            frame[10] = 0
            frame[11] = <uint8_t>words_of(w.target.piece[0].kind)
            w.read_back = 0
            w.read_due_ns = now + NS
            if send(w.link.fd, frame, 12, MSG_NOSIGNAL) == 12:
                w.pending = 2
                w.have = 0
                w.sent_ns = now
        return 0
    while True:
        if w.have >= 7 and w.overtaken and w.got[0] == w.overtaken_transaction >> 8 and (
                w.got[1] == (w.overtaken_transaction & 255)):
            need = 6 + ((w.got[4] << 8) | w.got[5])
            if need > 60:
                break
            if w.have == need:
                w.overtaken = 0
                w.have = 0
                if is_readback(w, need):
                    value[0] = value_of(&w.got[9], &w.target.piece[0])
                    return 2
                need = 7
        elif w.have >= 7:
            rest = sane(w.got, &w.link, w.target.unit, 50)
            if rest < 0:
                break
            need = 7 + rest
            if w.have == need:
                if was == 1:
                    good = need == 12 and w.got[7] == w.expect[0] and w.got[8] == w.expect[1] and w.got[9] == w.expect[2]
                else:
                    good = is_readback(w, need)
                if not good and w.got[7] & 0x80 and need == 9:
                    w.pending = 0  # an exception: refused, and the connection is in step
                    confirmed[0] = 0
                    return 1 if was == 1 else 0
                break
        n = recv(w.link.fd, &w.got[w.have], need - w.have, MSG_DONTWAIT)
        if n > 0:
            w.have += <int>n
            continue
        if n < 0 and errno == EINTR:
            continue
        if n < 0 and errno == EAGAIN and now - w.sent_ns < ANSWER_NS:
            return 0
        break
    w.pending = 0
    if not good:
        drop(&w.link, now)
        w.overtaken = 0
        confirmed[0] = 0
        return 1 if was == 1 else 0
    w.link.backoff_ns = 0
    confirmed[0] = 1
    if was == 1:
        w.read_back = 1
        return 1
    value[0] = value_of(&w.got[9], &w.target.piece[0])
    return 2


cdef uint16_t crc_ccitt(const uint8_t *data, int size) noexcept nogil:
    """CRC of C37.118 frames: x¹⁶ + x¹² + x⁵ + 1, begun with all ones (IEEE C37.118.2-2011, annex B)."""
    cdef uint16_t crc = 0xFFFF
    cdef int i, k
    for i in range(size):
        crc ^= <uint16_t>(data[i] << 8)
        for k in range(8):
            crc = <uint16_t>((crc << 1) ^ 0x1021) if crc & 0x8000 else <uint16_t>(crc << 1)
    return crc


cdef int send_all(int fd, const void *data, size_t size) noexcept nogil:
    """1 where all of it has gone at once."""
    return send(fd, data, size, MSG_NOSIGNAL) == <ssize_t>size


cdef void set_endpoint(Endpoint *end, dict words, list pieces) except *:
    cdef bytes host = words["host"].encode()
    cdef int i
    if len(host) > 63:
        raise ValueError("host is too long")
    if len(pieces) > PIECES:
        raise ValueError(f"at most {PIECES} values")
    memset(end, 0, sizeof(Endpoint))
    memcpy(end.host, <char *>host, len(host))
    end.port = words["port"]
    end.unit = words.get("unit", 0)
    end.function = words.get("function", 0)
    end.address = words.get("address", 0)
    end.pieces = len(pieces)
    for i, piece in enumerate(pieces):
        end.piece[i].offset = piece["offset"]
        end.piece[i].kind = ("u16", "s16", "u32", "s32", "f32").index(piece["type"])
        end.piece[i].little = piece["word_order"] == "little"
        end.piece[i].factor = piece["scale"] * piece["sign"]
