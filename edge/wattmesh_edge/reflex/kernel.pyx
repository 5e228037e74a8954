# distutils: define_macros=_GNU_SOURCE=1
"""The native loop of the reflex; see kernel.pyi. It runs without the GIL from the first poll to the last."""

from libc.errno cimport EINPROGRESS, EINTR, errno
from libc.math cimport NAN, fabs, isfinite
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close

cdef extern from "<time.h>" nogil:
    int clock_nanosleep(int clock, int flags, const timespec *request, timespec *remain)
    int TIMER_ABSTIME

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
    int AF_INET, SOCK_STREAM, SOCK_NONBLOCK, SOCK_CLOEXEC, SOL_SOCKET, SO_ERROR, MSG_NOSIGNAL, MSG_DONTWAIT

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

cdef extern from * nogil:
    """
    #define ORDER __ATOMIC_SEQ_CST
    /* Full fences on both sides: what a seqlock or ring guards may not be moved over its counter, on ARM neither. */
    static inline void put64(int64_t *p, int64_t v) {
        __atomic_thread_fence(__ATOMIC_SEQ_CST); __atomic_store_n(p, v, __ATOMIC_SEQ_CST); __atomic_thread_fence(__ATOMIC_SEQ_CST);
    }
    static inline int64_t get64(int64_t *p) {
        __atomic_thread_fence(__ATOMIC_SEQ_CST); int64_t v = __atomic_load_n(p, __ATOMIC_SEQ_CST);
        __atomic_thread_fence(__ATOMIC_SEQ_CST); return v;
    }
    static inline void put32(int *p, int v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
    static inline int get32(int *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    """
    void put64(int64_t *place, int64_t value)
    int64_t get64(int64_t *place)
    void put32(int *place, int value)
    int get32(int *place)

cdef enum:
    WINDOW = 64
    RING = 4096
    EVENTS = 64
    BINS = 24
    NS = 1000000000
    ANSWER_NS = 200000000  # longest wait for one answer; a device slower than the period misses deadlines, which are counted

cdef enum:  # why a measurement is (in)valid; names in __init__.py
    VALID = 0
    NO_ANSWER = 1
    OUT_OF_RANGE = 2
    WARMING_UP = 3

cdef enum:
    UNDER = 0
    OVER = 1

cdef double[4] LOWEST = [0, -32768, 0, -2147483648.0]
cdef double[4] HIGHEST = [65535, 32767, 4294967295.0, 2147483647.0]

cdef struct Endpoint:
    char host[64]
    int port
    int unit
    int function
    int address
    int kind          # 0 u16, 1 s16, 2 u32, 3 s32, 4 f32
    int little
    double factor     # value = raw * factor

cdef struct Link:
    int fd
    uint16_t transaction
    int64_t retry_ns
    int64_t backoff_ns

cdef struct Event:
    int kind
    int64_t start_ns
    int64_t end_ns
    int64_t sample_ns
    int64_t write_ns
    double extreme_hz
    double extreme_rocof
    double response_w

cdef struct Sample:
    int64_t time_ns
    double frequency_hz
    double rocof
    int cause

cdef struct Limits:
    double baseline_w
    double min_w
    double max_w
    int64_t time_ns

cdef struct State:
    # settings
    Endpoint source
    Endpoint target
    int responds
    int64_t period_ns
    double nominal_hz
    double low_hz
    double high_hz
    double exit_hz
    int64_t debounce_ns
    double dead_band_hz
    double droop
    double rated_w
    double min_change_w
    int64_t stale_ns
    int64_t limits_age_ns
    # the estimator: accepted samples, newest last
    int64_t times[WINDOW]
    double values[WINDOW]
    int count
    int64_t last_ns
    double last_value
    double frequency_hz
    double rocof
    int cause
    # the detector and the response
    int crossing          # -1 under, +1 over, 0 inside
    int64_t crossing_ns
    int active            # as crossing, after the debounce
    Event event
    double written_w
    int has_written
    # limits through a seqlock: odd while Python writes
    int64_t sequence
    Limits limits
    # counters
    int64_t polls
    int64_t missed
    int64_t failures
    int64_t lateness[BINS]
    int64_t lateness_max
    int64_t samples_head
    int64_t events_head
    int responding
    int stop


cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec moment
    clock_gettime(CLOCK_MONOTONIC, &moment)
    return <int64_t>moment.tv_sec * NS + moment.tv_nsec


cdef void read_limits(State *s, Limits *out) noexcept nogil:
    """Copy what Python published, whole; all zero (and so no response) if that cannot be had."""
    cdef int64_t before
    cdef int tries
    memset(out, 0, sizeof(Limits))
    for tries in range(1000):
        before = get64(&s.sequence)
        if before & 1:
            continue
        out[0] = s.limits
        if get64(&s.sequence) == before:
            return
    memset(out, 0, sizeof(Limits))


cdef void estimate(State *s, int64_t t, double f) noexcept nogil:
    """Least squares through the samples of the last 100 ms (frequency) and 500 ms (ROCOF), on their true times."""
    cdef int i, n = 0
    cdef double x, sx = 0, sy = 0, sxx = 0, sxy = 0, spread
    if s.count == WINDOW:
        for i in range(WINDOW - 1):
            s.times[i] = s.times[i + 1]
            s.values[i] = s.values[i + 1]
        s.count = WINDOW - 1
    s.times[s.count] = t
    s.values[s.count] = f
    s.count += 1
    s.frequency_hz = f
    for i in range(s.count - 1, -1, -1):
        if t - s.times[i] > NS // 2:
            break
        x = <double>(s.times[i] - t) * 1e-9
        n += 1
        sx += x
        sy += s.values[i]
        sxx += x * x
        sxy += x * s.values[i]
    spread = n * sxx - sx * sx
    s.rocof = (n * sxy - sx * sy) / spread if n >= 3 and spread > 1e-9 else 0.0


cdef double droop_w(State *s, double frequency_hz) noexcept nogil:
    """Change of power, passive sign: low frequency asks for less consumption (IEEE 1547-2018, 6.5.2.7)."""
    cdef double deviation = frequency_hz - s.nominal_hz
    if deviation < -s.dead_band_hz:
        return (deviation + s.dead_band_hz) / (s.nominal_hz * s.droop) * s.rated_w
    if deviation > s.dead_band_hz:
        return (deviation - s.dead_band_hz) / (s.nominal_hz * s.droop) * s.rated_w
    return 0.0


cdef int step(State *s, int64_t t, double f, int answered, double *wanted) noexcept nogil:
    """One sample through validity, detector and response. Returns whether ``wanted`` has to be written.

    t is the sample's own time; f is what the register holds; answered says whether there was an answer at all.
    """
    cdef Limits limits
    cdef int side, due
    cdef double target, edge
    read_limits(s, &limits)
    if not answered:
        s.cause = NO_ANSWER if t - s.last_ns > s.stale_ns else s.cause
    elif not isfinite(f) or fabs(f - s.nominal_hz) > 10.0:
        s.cause = OUT_OF_RANGE
    else:
        s.last_ns = t
        s.last_value = f
        estimate(s, t, f)
        s.cause = VALID if s.count >= 3 else WARMING_UP
    if s.cause != VALID:
        s.crossing = 0
        if s.active:
            finish_event(s, t)
        if s.responding and limits.time_ns:
            # Never droop on what cannot be believed: go back to what the arbiter wants.
            wanted[0] = limits.baseline_w
            return 2
        return 0
    if not answered:
        return 0
    # The detector: enter and exit thresholds apart, debounced.
    side = -1 if f < s.low_hz else 1 if f > s.high_hz else 0
    if side != s.crossing:
        s.crossing = side
        s.crossing_ns = t
    if side and not s.active and t - s.crossing_ns >= s.debounce_ns:
        begin_event(s, t, side)
    if s.active:
        edge = s.low_hz + s.exit_hz if s.active < 0 else s.high_hz - s.exit_hz
        if (s.active < 0 and f < s.event.extreme_hz) or (s.active > 0 and f > s.event.extreme_hz):
            s.event.extreme_hz = f
        if fabs(s.rocof) > fabs(s.event.extreme_rocof):
            s.event.extreme_rocof = s.rocof
        if (s.active < 0 and f > edge) or (s.active > 0 and f < edge):
            finish_event(s, t)
    if not s.responds or limits.time_ns == 0:
        return 0
    if not s.active:
        if s.responding:
            wanted[0] = limits.baseline_w
            return 2
        return 0
    # The arbiter's limits bind the response, also when Python is stuck: then the last ones do.
    target = limits.baseline_w + droop_w(s, f)
    if target > limits.max_w:
        target = limits.max_w
    if target < limits.min_w:
        target = limits.min_w
    due = not s.responding or fabs(target - s.written_w) >= s.min_change_w
    wanted[0] = target
    return 1 if due else 0


cdef void begin_event(State *s, int64_t t, int side) noexcept nogil:
    s.active = side
    memset(&s.event, 0, sizeof(Event))
    s.event.kind = UNDER if side < 0 else OVER
    s.event.start_ns = t
    s.event.sample_ns = t
    s.event.extreme_hz = s.last_value
    s.event.extreme_rocof = s.rocof


cdef void finish_event(State *s, int64_t t) noexcept nogil:
    s.active = 0
    s.event.end_ns = t


# -- Modbus over a plain socket, bounded in time

cdef void drop(Link *link, int64_t now) noexcept nogil:
    if link.fd >= 0:
        close(link.fd)
    link.fd = -1
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


cdef int ensure(Link *link, Endpoint *end, int64_t deadline) noexcept nogil:
    """A connection, or 0; waits until the deadline at most."""
    cdef sockaddr_in address
    cdef int error = 0, one = 1
    cdef socklen_t size = sizeof(int)
    if link.fd >= 0:
        return 1
    if now_ns() < link.retry_ns:
        return 0
    memset(&address, 0, sizeof(address))
    address.sin_family = <uint16_t>AF_INET
    address.sin_port = htons(<uint16_t>end.port)
    if inet_pton(AF_INET, end.host, &address.sin_addr) != 1:
        link.retry_ns = now_ns() + 10 * <int64_t>NS
        return 0
    link.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if link.fd < 0:
        return 0
    setsockopt(link.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(int))
    if connect(link.fd, <sockaddr *>&address, sizeof(address)) != 0:
        if errno != EINPROGRESS or not wait_for(link.fd, POLLOUT, deadline):
            drop(link, now_ns())
            return 0
        if getsockopt(link.fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0 or error != 0:
            drop(link, now_ns())
            return 0
    link.backoff_ns = 0
    return 1


cdef int exchange(Link *link, Endpoint *end, uint8_t *pdu, int size, uint8_t *answer, int most,
                  int64_t deadline) noexcept nogil:
    """Send a request and take exactly its answer; length of the answer's PDU, or 0 and the connection is gone."""
    cdef uint8_t frame[300]
    cdef uint8_t got[300]
    cdef int have = 0, need = 7, length
    cdef ssize_t n
    if not ensure(link, end, deadline):
        return 0
    link.transaction += 1
    frame[0] = link.transaction >> 8
    frame[1] = link.transaction & 255
    frame[2] = 0
    frame[3] = 0
    frame[4] = 0
    frame[5] = <uint8_t>(size + 1)
    frame[6] = <uint8_t>end.unit
    memcpy(&frame[7], pdu, size)
    if send(link.fd, frame, size + 7, MSG_NOSIGNAL) != size + 7:
        drop(link, now_ns())
        return 0
    while have < need:
        n = recv(link.fd, &got[have], need - have, MSG_DONTWAIT)
        if n > 0:
            have += <int>n
            if have == 7:
                length = (got[4] << 8) | got[5]
                if (got[0] != frame[0] or got[1] != frame[1] or got[2] or got[3] or got[6] != frame[6]
                        or length < 2 or length > most + 1):
                    drop(link, now_ns())
                    return 0
                need = 6 + length
            continue
        if n == 0 or not wait_for(link.fd, POLLIN, deadline):
            drop(link, now_ns())  # a late answer must not be taken for the next one
            return 0
    memcpy(answer, &got[7], have - 7)
    return have - 7


cdef int words_of(int kind) noexcept nogil:
    return 1 if kind < 2 else 2


cdef int read_value(Link *link, Endpoint *end, double *value, int64_t deadline) noexcept nogil:
    cdef uint8_t pdu[5]
    cdef uint8_t answer[260]
    cdef int words = words_of(end.kind), size
    cdef uint32_t raw
    cdef float narrow
    pdu[0] = <uint8_t>end.function
    pdu[1] = <uint8_t>(end.address >> 8)
    pdu[2] = <uint8_t>(end.address & 255)
    pdu[3] = 0
    pdu[4] = <uint8_t>words
    size = exchange(link, end, pdu, 5, answer, 253, deadline)
    if size != 2 + words * 2 or answer[0] != pdu[0] or answer[1] != words * 2:
        if size:
            drop(link, now_ns())
        return 0
    if words == 1:
        raw = (answer[2] << 8) | answer[3]
    elif end.little:
        raw = (<uint32_t>answer[4] << 24) | (<uint32_t>answer[5] << 16) | (<uint32_t>answer[2] << 8) | answer[3]
    else:
        raw = (<uint32_t>answer[2] << 24) | (<uint32_t>answer[3] << 16) | (<uint32_t>answer[4] << 8) | answer[5]
    if end.kind == 4:
        memcpy(&narrow, &raw, 4)
        value[0] = narrow * end.factor
    elif end.kind == 1:
        value[0] = <int16_t>raw * end.factor
    elif end.kind == 3:
        value[0] = <int32_t>raw * end.factor
    else:
        value[0] = raw * end.factor
    return 1


cdef int write_value(Link *link, Endpoint *end, double value, int64_t deadline) noexcept nogil:
    cdef uint8_t pdu[10]
    cdef uint8_t answer[260]
    cdef int words = words_of(end.kind), size, length
    cdef double scaled = value / end.factor
    cdef uint32_t raw
    cdef float narrow
    cdef uint8_t content[4]
    if end.kind == 4:
        narrow = <float>scaled
        memcpy(&raw, &narrow, 4)
    else:
        # At the register's end, never around it: a wrapped setpoint would turn discharge into charge.
        scaled = scaled + 0.5 if scaled >= 0 else scaled - 0.5
        if scaled > HIGHEST[end.kind]:
            scaled = HIGHEST[end.kind]
        if scaled < LOWEST[end.kind]:
            scaled = LOWEST[end.kind]
        raw = <uint32_t><int64_t>scaled
    if words == 1:
        content[0] = <uint8_t>(raw >> 8)
        content[1] = <uint8_t>raw
    else:
        content[0] = <uint8_t>(raw >> 24)
        content[1] = <uint8_t>(raw >> 16)
        content[2] = <uint8_t>(raw >> 8)
        content[3] = <uint8_t>raw
        if end.little:
            content[0], content[1], content[2], content[3] = content[2], content[3], content[0], content[1]
    pdu[0] = <uint8_t>end.function
    pdu[1] = <uint8_t>(end.address >> 8)
    pdu[2] = <uint8_t>(end.address & 255)
    if end.function == 6:
        pdu[3] = content[0]
        pdu[4] = content[1]
        length = 5
    else:
        pdu[3] = 0
        pdu[4] = <uint8_t>words
        pdu[5] = <uint8_t>(words * 2)
        memcpy(&pdu[6], content, words * 2)
        length = 6 + words * 2
    size = exchange(link, end, pdu, length, answer, 253, deadline)
    if size != 5 or answer[0] != pdu[0] or answer[1] != pdu[1] or answer[2] != pdu[2]:
        if size:
            drop(link, now_ns())
        return 0
    return 1


cdef class Kernel:
    """See kernel.pyi."""

    cdef State s
    cdef Sample samples[RING]
    cdef Event events[EVENTS]
    cdef Link reader
    cdef Link writer
    cdef int64_t samples_tail
    cdef int64_t events_tail

    def __init__(self, dict source, dict target, *, int64_t period_ns, double nominal_hz, double low_hz,
                 double high_hz, double exit_hz, int64_t debounce_ns, double dead_band_hz, double droop,
                 double rated_w, double min_change_w=20.0, int64_t stale_ns=200000000):
        memset(&self.s, 0, sizeof(State))
        memset(&self.reader, 0, sizeof(Link))
        memset(&self.writer, 0, sizeof(Link))
        self.reader.fd = -1
        self.writer.fd = -1
        if target is not None and target["function"] == 6 and target["type"] not in ("u16", "s16"):
            raise ValueError("function 6 writes one register; a setpoint of 32 bits needs function 16")
        set_endpoint(&self.s.source, source)
        self.s.responds = target is not None
        if target is not None:
            set_endpoint(&self.s.target, target)
        self.s.period_ns = period_ns
        self.s.nominal_hz = nominal_hz
        self.s.low_hz = low_hz
        self.s.high_hz = high_hz
        self.s.exit_hz = exit_hz
        self.s.debounce_ns = debounce_ns
        self.s.dead_band_hz = dead_band_hz
        self.s.droop = droop
        self.s.rated_w = rated_w
        self.s.min_change_w = min_change_w
        self.s.stale_ns = stale_ns
        self.s.cause = WARMING_UP
        self.s.frequency_hz = NAN
        self.samples_tail = 0
        self.events_tail = 0

    def __dealloc__(self):
        if self.reader.fd >= 0:
            close(self.reader.fd)
        if self.writer.fd >= 0:
            close(self.writer.fd)

    def run(self):
        with nogil:
            self._loop()

    def stop(self):
        put32(&self.s.stop, 1)

    cdef void _loop(self) noexcept nogil:
        cdef timespec due
        cdef int64_t deadline = now_ns() + self.s.period_ns
        cdef int64_t began, ended, late
        cdef double value = NAN
        cdef int answered, i
        while not get32(&self.s.stop):
            due.tv_sec = deadline // NS
            due.tv_nsec = deadline % NS
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL)
            began = now_ns()
            late = began - deadline
            i = 0
            while i < BINS - 1 and (late >> 10) >> i:  # bins of 1 µs, 2 µs, 4 µs …
                i += 1
            self.s.lateness[i] += 1
            if late > self.s.lateness_max:
                self.s.lateness_max = late
            answered = read_value(&self.reader, &self.s.source, &value, began + ANSWER_NS)
            ended = now_ns()
            self.s.polls += 1
            if not answered:
                self.s.failures += 1
            self._take((began + ended) // 2, value, answered, ended)
            deadline += self.s.period_ns
            ended = now_ns()
            while deadline <= ended:
                deadline += self.s.period_ns
                self.s.missed += 1
        # Leave nothing of a response behind.
        if self.s.responding:
            write_value(&self.writer, &self.s.target, self.s.limits.baseline_w, now_ns() + NS // 2)
            put32(&self.s.responding, 0)

    cdef void _take(self, int64_t t, double value, int answered, int64_t sampled) noexcept nogil:
        """A sample through the logic, its setpoint onto the wire, and both into the rings."""
        cdef double wanted = 0
        cdef int was_active = self.s.active
        cdef int what = step(&self.s, t, value, answered, &wanted)
        cdef Sample *sample = &self.samples[self.s.samples_head % RING]
        cdef int done = 0
        if what:
            if what == 1 and self.s.event.write_ns == 0 and self.s.event.sample_ns == self.s.event.start_ns:
                self.s.event.sample_ns = sampled  # of the first attempt: a late answer is reported as late
            done = write_value(&self.writer, &self.s.target, wanted, now_ns() + ANSWER_NS)
            if not done:  # a device may have ended an idle connection: once more at once, on a new one
                self.writer.retry_ns = 0
                done = write_value(&self.writer, &self.s.target, wanted, now_ns() + ANSWER_NS)
        if done:
            self.s.written_w = wanted
            put32(&self.s.responding, 1 if what == 1 else 0)
            if what == 1:
                if self.s.event.write_ns == 0:
                    self.s.event.write_ns = now_ns()
                if fabs(wanted - self.s.limits.baseline_w) > fabs(self.s.event.response_w):
                    self.s.event.response_w = wanted - self.s.limits.baseline_w
        sample.time_ns = t
        sample.frequency_hz = value if answered else NAN
        sample.rocof = self.s.rocof
        sample.cause = self.s.cause
        put64(&self.s.samples_head, self.s.samples_head + 1)
        if was_active and not self.s.active:
            self.events[self.s.events_head % EVENTS] = self.s.event
            put64(&self.s.events_head, self.s.events_head + 1)

    def feed(self, int64_t t, value):
        """For tests and replays: one sample with its time; what would be written, or none."""
        cdef double wanted = 0
        cdef int was_active = self.s.active
        cdef int what = step(&self.s, t, NAN if value is None else value, value is not None, &wanted)
        if what:
            self.s.written_w = wanted
            self.s.responding = 1 if what == 1 else 0
            if what == 1:
                if self.s.event.write_ns == 0:
                    self.s.event.write_ns = t
                if fabs(wanted - self.s.limits.baseline_w) > fabs(self.s.event.response_w):
                    self.s.event.response_w = wanted - self.s.limits.baseline_w
        if was_active and not self.s.active:
            self.events[self.s.events_head % EVENTS] = self.s.event
            self.s.events_head += 1
        return wanted if what else None

    def publish(self, double baseline_w, double min_w, double max_w):
        self.s.sequence += 1
        put64(&self.s.sequence, self.s.sequence)
        self.s.limits.baseline_w = baseline_w
        self.s.limits.min_w = min_w
        self.s.limits.max_w = max_w
        self.s.limits.time_ns = now_ns()
        put64(&self.s.sequence, self.s.sequence + 1)

    def responding(self):
        return self.s.written_w if get32(&self.s.responding) else None

    def snapshot(self):
        cdef State *s = &self.s
        total = sum(s.lateness[i] for i in range(BINS))
        quantiles = {}
        for share in (0.5, 0.99):
            seen = 0
            for i in range(BINS):
                seen += s.lateness[i]
                if total and seen >= share * total:
                    quantiles[share] = (1 << i) * 1.024e-3
                    break
        return {
            "frequency_hz": s.frequency_hz if s.cause == VALID else None,
            "rocof_hz_per_s": s.rocof if s.cause == VALID else None,
            "cause": s.cause, "age_ns": now_ns() - s.last_ns if s.last_ns else None,
            "active": s.active, "polls": s.polls, "missed": s.missed, "failures": s.failures,
            "lateness_p50_ms": quantiles.get(0.5), "lateness_p99_ms": quantiles.get(0.99),
            "lateness_max_ms": s.lateness_max * 1e-6,
        }

    def drain_samples(self):
        cdef int64_t head = get64(&self.s.samples_head)
        cdef int64_t lost = 0
        if head - self.samples_tail > RING - 16:
            lost = head - self.samples_tail - (RING - 16)
            self.samples_tail += lost
        rows = []
        while self.samples_tail < head:
            sample = self.samples[self.samples_tail % RING]
            rows.append((sample.time_ns, sample.frequency_hz, sample.rocof, sample.cause))
            self.samples_tail += 1
        return rows, lost

    def drain_events(self):
        cdef int64_t head = get64(&self.s.events_head)
        if head - self.events_tail > EVENTS:
            self.events_tail = head - EVENTS
        rows = []
        while self.events_tail < head:
            event = self.events[self.events_tail % EVENTS]
            rows.append((event.kind, event.start_ns, event.end_ns, event.sample_ns, event.write_ns,
                         event.extreme_hz, event.extreme_rocof, event.response_w))
            self.events_tail += 1
        return rows


cdef void set_endpoint(Endpoint *end, dict words) except *:
    cdef bytes host = words["host"].encode()
    if len(host) > 63:
        raise ValueError("host is too long")
    memset(end, 0, sizeof(Endpoint))
    memcpy(end.host, <char *>host, len(host))
    end.port = words["port"]
    end.unit = words["unit"]
    end.function = words["function"]
    end.address = words["address"]
    end.kind = ("u16", "s16", "u32", "s32", "f32").index(words["type"])
    end.little = words["word_order"] == "little"
    end.factor = words["scale"] * words["sign"]
