# distutils: define_macros=_GNU_SOURCE=1
"""The native loop of the reflex; see kernel.pyi. It runs without the GIL from its first sample to its last."""

from array import array

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, errno
from libc.math cimport NAN, isnan, sqrt
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, timespec
from posix.unistd cimport close, read

from wattmesh_edge.reflex.decide cimport (
    BLOCKS, KINDS, POINTS, TRIPS, WATCHES, Block, Decider, Event, Limits, Trip, Watch, decide_end, decide_setup,
    decide_step, decide_wrote)
from wattmesh_edge.reflex.estimators cimport (
    GAP, NO_ANSWER, RATE_CHANGED, SOURCE_BAD, TIME_BACK, VALID, WATCHED, Estimate, Register, Waveform, register_push,
    register_setup, waveform_bad, waveform_push, waveform_setup)
from wattmesh_edge.reflex.wire cimport (
    ANSWER_NS, NS, Endpoint, Link, Writer, crc_ccitt, drop, ensure, now_ns, read_values, send_all, set_endpoint, wait_for,
    writer_send, writer_step)

cdef extern from "<time.h>" nogil:
    int clock_nanosleep(int clock, int flags, const timespec *request, timespec *remain)
    int TIMER_ABSTIME

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *data, size_t size, int flags)
    int MSG_DONTWAIT

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    short POLLIN

cdef extern from "<sys/mman.h>" nogil:
    int mlockall(int flags)
    int MCL_CURRENT, MCL_FUTURE

cdef extern from "<sched.h>" nogil:
    struct sched_param:
        int sched_priority
    int sched_setscheduler(int pid, int policy, const sched_param *param)
    int SCHED_FIFO

cdef extern from * nogil:
    """
    #ifndef MCL_ONFAULT
    #define MCL_ONFAULT 4
    #endif
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
    int MCL_ONFAULT
    void put64(int64_t *place, int64_t value)
    int64_t get64(int64_t *place)
    void put32(int *place, int value)
    int get32(int *place)

cdef enum:
    BINS = 24
    EVENTS = 256
    SAVED = 4
    PUSHED = 256
    CHUNK = 65536          # bytes read at once from a stream

cdef enum:  # sources
    REGISTER
    PUSH
    PLAY
    STREAM
    UDP
    PMU

cdef enum:  # inputs
    SAMPLE      # v: what a poll read, n of them (0: no answer); t: middle of its round trip
    WAVE        # v[0:3]: one sample of each phase; t: its receipt
    BAD         # n: cause
    EPOCH       # t: time of sample 0
    TICK        # nothing came
    LIMITS      # v: baseline, min, max, safe, out, in; t: when published
    WROTE       # v[0]: setpoint; t: receipt of its sample; now: when the bytes had gone
    READBACK    # v[0]: what the register held, at t; changes nothing
    REWRITE     # the setpoint has to be written anew: somebody else wrote in between

cdef struct Input:
    int64_t now
    int64_t t
    double v[6]
    int32_t kind
    int32_t n

cdef struct Output:
    int64_t now
    Estimate estimate
    double delta_pu
    double target_w
    int32_t due
    int32_t responding

cdef struct Core:
    int register_mode
    int64_t slowest_ns    # a register renewed more slowly is not answered
    Waveform w
    Register r
    Decider d
    Limits limits

cdef struct Pushed:
    int64_t t
    double v[2]

cdef struct Settings:
    int source
    int64_t period_ns
    Endpoint meter
    # stream, UDP
    int channels, sample_bytes, shift
    double scale, offset, rate_hz
    # PMU
    uint8_t start[18]
    int frame, stat_at, freq_at, freq_float, phasor_at, phasor_float, phasor_polar, id_code
    double phasor_scale
    int realtime

# -- what everything goes through: live, in tests, in replays


cdef int core_apply(Core *c, const Input *one, double *wanted, Output *out) noexcept nogil:
    """One input. Bit 0: there is an output; bit 1: ``wanted`` has to be written. Nothing but the inputs decides what comes out."""
    cdef const Estimate *e = &c.r.now if c.register_mode else &c.w.now
    cdef int due, i
    if one.kind == WAVE:
        if not waveform_push(&c.w, one.v[0], one.v[1], one.v[2]):
            return 0
    elif one.kind == SAMPLE:
        register_push(&c.r, one.t, one.n > 0, one.v, one.n)
    elif one.kind == BAD or one.kind == TICK:
        if one.kind == BAD or c.w.bad_cause != NO_ANSWER or c.w.now.cause != NO_ANSWER:
            i = one.n if one.kind == BAD else NO_ANSWER
            if c.register_mode:
                c.r.now.cause = i
                c.r.count = 0
            else:
                waveform_bad(&c.w, i)
                c.w.now.cause = i
                c.w.now.frequency_hz = c.w.now.voltage_pu = NAN
                c.w.slow_n = 0
    elif one.kind == EPOCH:
        c.w.epoch_ns = one.t
        return 0
    elif one.kind == LIMITS:
        c.limits.baseline_w = one.v[0]
        c.limits.min_w = one.v[1]
        c.limits.max_w = one.v[2]
        c.limits.safe_w = one.v[3]
        c.limits.out_wh = one.v[4]
        c.limits.in_wh = one.v[5]
        c.limits.time_ns = one.t
        return 0
    elif one.kind == WROTE:
        decide_wrote(&c.d, one.v[0], one.t, one.now)
        return 0
    elif one.kind == REWRITE:
        if c.d.has_written:  # a lost write is made good, also the one that gave the battery back
            c.d.responding = 1
        c.d.has_written = 0
        return 0
    else:
        return 0
    if c.register_mode:
        c.d.spacing_ns = c.r.refresh_ns
        c.d.inhibited = c.slowest_ns > 0 and (c.r.refresh_ns == 0 or c.r.refresh_ns > c.slowest_ns)
    due = decide_step(&c.d, e, one.now, &c.limits, wanted)
    out.now = one.now
    out.estimate = e[0]
    out.delta_pu = c.d.delta_pu
    out.target_w = c.d.target_w
    out.due = due
    out.responding = c.d.responding
    return 3 if due else 1


cdef inline float be_float(const uint8_t *at) noexcept nogil:
    cdef uint32_t raw = (<uint32_t>at[0] << 24) | (<uint32_t>at[1] << 16) | (<uint32_t>at[2] << 8) | at[3]
    cdef float value
    memcpy(&value, &raw, 4)
    return value


cdef inline int16_t be_int(const uint8_t *at) noexcept nogil:
    return <int16_t>((at[0] << 8) | at[1])


cdef class Kernel:
    """See kernel.pyi."""

    cdef Core core
    cdef Settings s
    cdef Core *saved
    cdef int64_t saved_at[SAVED]
    cdef int64_t saved_out[SAVED]
    cdef int64_t saved_count
    cdef Input *log
    cdef int64_t log_size
    cdef int64_t log_head
    cdef int64_t log_tail
    cdef Output *outputs
    cdef int64_t outputs_size
    cdef int64_t outputs_head
    cdef int64_t outputs_tail
    cdef Event events[EVENTS]
    cdef int64_t events_head
    cdef int64_t events_tail
    cdef int64_t last_number
    cdef Link reader
    cdef Writer writer
    cdef Pushed pushed[PUSHED]
    cdef int64_t pushed_head
    cdef int64_t pushed_tail
    cdef uint8_t *chunk
    cdef int carry
    cdef int stream_fd
    cdef object played
    cdef double[::1] playing
    cdef int64_t played_at
    cdef double play_speed
    # limits through a seqlock: odd while Python writes
    cdef int64_t sequence
    cdef Limits limits
    cdef int64_t limits_seen
    cdef int rewrite
    # counters
    cdef int64_t ticks
    cdef int64_t missed
    cdef int64_t failures
    cdef int64_t write_failures
    cdef int64_t writes
    cdef int64_t received
    cdef int64_t lateness[BINS]
    cdef int64_t lateness_max
    cdef int64_t last_input_ns
    cdef int64_t stream_index
    cdef int64_t stream_began_ns
    cdef int64_t stream_count
    cdef double stream_offset_ns
    cdef int rate_bad
    cdef uint32_t datagram
    cdef int64_t pmu_soc
    cdef int fifo
    cdef int locked
    cdef int stop_asked
    cdef int responding_now
    cdef double held_w

    def __cinit__(self):
        memset(&self.core, 0, sizeof(Core))
        memset(&self.s, 0, sizeof(Settings))
        memset(&self.reader, 0, sizeof(Link))
        memset(&self.writer, 0, sizeof(Writer))
        self.reader.fd = self.writer.link.fd = self.stream_fd = -1
        self.saved = NULL
        self.log = NULL
        self.outputs = NULL
        self.chunk = NULL
        self.datagram = 0
        self.fifo = self.locked = -1

    def __init__(self, dict source, dict estimator, dict watches, dict response=None):
        cdef Core *c = &self.core
        self._set_source(source)
        decide_setup(&c.d, estimator["nominal_hz"])
        if self.s.source in (REGISTER, PUSH, PMU):
            c.register_mode = 1
            register_setup(&c.r, estimator["nominal_hz"], estimator.get("nominal_v", 0.0),
                           estimator.get("refresh_ns", 0))
        elif waveform_setup(&c.w, source["rate_hz"], estimator["nominal_hz"], source["channels"],
                            estimator.get("m_class", False), estimator.get("nominal_v", 0.0),
                            estimator.get("rail_v", 0.0), 1000.0, 1, 0.0):
            raise ValueError(f"{source['rate_hz']:g} S/s gives no usable number of samples a cycle")
        self._set_watches(watches)
        if response is not None:
            self._set_response(response)
        self.log_size = 4096 if c.register_mode else 65536
        self.outputs_size = 4096 if c.register_mode else 16384
        self.saved = <Core *>calloc(SAVED, sizeof(Core))
        self.log = <Input *>calloc(self.log_size, sizeof(Input))
        self.outputs = <Output *>calloc(self.outputs_size, sizeof(Output))
        self.chunk = <uint8_t *>calloc(CHUNK, 1)
        if self.saved == NULL or self.log == NULL or self.outputs == NULL or self.chunk == NULL:
            raise MemoryError
        self._save()

    def __dealloc__(self):
        self._close()
        free(self.saved)
        free(self.log)
        free(self.outputs)
        free(self.chunk)

    cdef void _close(self) noexcept nogil:
        if self.stream_fd >= 0 and self.stream_fd != self.reader.fd:  # a PMU's stream is the reader's connection
            close(self.stream_fd)
        if self.reader.fd >= 0:
            close(self.reader.fd)
        if self.writer.link.fd >= 0:
            close(self.writer.link.fd)
        self.stream_fd = self.reader.fd = self.writer.link.fd = -1
        self.reader.ready = self.writer.link.ready = 0

    def close(self):
        """Give every descriptor back; only after :meth:`run` has returned."""
        self._close()

    def _set_source(self, dict source):
        self.s.source = ("register", "push", "play", "stream", "udp", "pmu").index(source["kind"])
        self.s.period_ns = source["period_ns"]
        self.s.realtime = source.get("realtime", True)
        self.s.channels = source.get("channels", 1)
        self.s.rate_hz = source.get("rate_hz", 0.0)
        self.s.scale = source.get("scale", 1.0)
        self.s.offset = source.get("offset", 0.0)
        self.stream_fd = source.get("fd", -1)
        if self.s.source == REGISTER:
            set_endpoint(&self.s.meter, source, source["pieces"])
            self.s.meter.count = source["count"]
        elif self.s.source == PLAY:
            self.played = source["samples"]
            self.playing = self.played
            self.play_speed = source.get("speed", 1.0)
        elif self.s.source == STREAM:
            self.s.sample_bytes = source["sample_bytes"]
            self.s.shift = source.get("shift", 0)
        elif self.s.source == PMU:
            set_endpoint(&self.s.meter, source, [])
            start = source["start"]
            memcpy(self.s.start, <const char *>(<bytes>start), 18)
            self.s.frame = source["frame"]
            self.s.id_code = source["id_code"]
            self.s.stat_at = source["stat_at"]
            self.s.freq_at = source["freq_at"]
            self.s.freq_float = source["freq_float"]
            self.s.phasor_at = source["phasor_at"]
            self.s.phasor_float = source["phasor_float"]
            self.s.phasor_polar = source["phasor_polar"]
            self.s.phasor_scale = source["phasor_scale"]

    def _set_watches(self, dict watches):
        cdef Decider *d = &self.core.d
        cdef int i = 0
        d.knows_voltage = watches["knows_voltage"]
        for i, one in enumerate(watches["watches"]):
            d.watches[i].kind = one["kind"]
            d.watches[i].over = one["over"]
            d.watches[i].enter = one["enter"]
            d.watches[i].leave = one["leave"]
            d.watches[i].debounce_ns = one["debounce_ns"]
        if i != WATCHES - 1:
            raise ValueError(f"there are {WATCHES} watches")

    def _set_response(self, dict response):
        cdef Decider *d = &self.core.d
        cdef int i = 0
        d.responds = 1
        target = response.get("target")
        if target is not None:
            if target["function"] == 6 and target["type"] not in ("u16", "s16"):
                raise ValueError("function 6 writes one register; a setpoint of 32 bits needs function 16")
            set_endpoint(&self.writer.target, target, [dict(target, offset=0)])
        d.rated_w = response["rated_w"]
        d.min_change_w = response["min_change_w"]
        for name in ("tau_s", "ramp_pu_per_s", "recovery_pu_per_s"):
            if response.get(name) is not None:
                if name == "tau_s":
                    d.tau_s = response[name]
                elif name == "ramp_pu_per_s":
                    d.ramp_pu_per_s = response[name]
                else:
                    d.recovery_pu_per_s = response[name]
        self.core.slowest_ns = response.get("slowest_ns", 0)
        d.delay_ns = response.get("delay_ns", 0)
        d.invalid_hold_ns = response.get("invalid_hold_ns", NS // 2)
        d.limits_age_ns = response.get("limits_age_ns", 60 * <int64_t>NS)
        d.min_interval_ns = response.get("min_interval_ns", 0)
        points = response.get("points", [])
        if len(points) > POINTS or len(response.get("blocks", [])) > BLOCKS or len(response.get("trips", [])) > TRIPS:
            raise ValueError(f"at most {POINTS} points, {BLOCKS} blocks and {TRIPS} trips")
        d.points = len(points)
        for i, (deviation, share) in enumerate(points):
            d.deviation_hz[i] = deviation
            d.share_pu[i] = share
        d.block_count = len(response.get("blocks", []))
        for i, one in enumerate(response.get("blocks", [])):
            d.blocks[i].trigger_hz = one["trigger_hz"]
            d.blocks[i].power_pu = one["power_pu"]
            d.blocks[i].recovery_pu_per_s = one["recovery_pu_per_s"]
            d.blocks[i].confirm_ns = one["confirm_ns"]
            d.blocks[i].hold_ns = one["hold_ns"]
            d.blocks[i].rearm_ns = one["rearm_ns"]
        d.trip_count = len(response.get("trips", []))
        for i, one in enumerate(response.get("trips", [])):
            d.trips[i].voltage = one["voltage"]
            d.trips[i].over = one["over"]
            d.trips[i].threshold = one["threshold"]
            d.trips[i].after_ns = one["after_ns"]
        enter = response.get("enter_service")
        if enter is not None:
            d.enter_low_hz, d.enter_high_hz = enter["low_hz"], enter["high_hz"]
            d.enter_low_pu, d.enter_high_pu = enter["low_pu"], enter["high_pu"]
            d.enter_after_ns, d.enter_ramp_ns = enter["after_ns"], enter["ramp_ns"]

    # -- inputs, one way in

    cdef void _save(self) noexcept nogil:
        """A checkpoint from which everything after it can be replayed."""
        cdef int slot = self.saved_count % SAVED
        self.saved[slot] = self.core
        self.saved_at[slot] = self.log_head
        self.saved_out[slot] = self.outputs_head
        put64(&self.saved_count, self.saved_count + 1)

    cdef int _apply(self, Input *one, double *wanted) noexcept nogil:
        cdef Output *out = &self.outputs[self.outputs_head % self.outputs_size]
        cdef Decider *d = &self.core.d
        cdef int flags, i
        if one.kind != WAVE and one.kind != SAMPLE:
            pass
        elif self.core.register_mode:
            if self.log_head - self.saved_at[(self.saved_count - 1) % SAVED] >= 512:
                self._save()
        elif self.log_head - self.saved_at[(self.saved_count - 1) % SAVED] >= 12288:
            self._save()
        self.log[self.log_head % self.log_size] = one[0]
        put64(&self.log_head, self.log_head + 1)
        flags = core_apply(&self.core, one, wanted, out)
        if flags:
            put64(&self.outputs_head, self.outputs_head + 1)
            for i in range(d.finished_count):
                self._event(&d.finished[i])
            if d.numbers != self.last_number:
                self.last_number = d.numbers
                for i in range(KINDS):
                    if d.is_open[i]:
                        self._event(&d.open[i])
        return flags

    cdef void _event(self, const Event *event) noexcept nogil:
        self.events[self.events_head % EVENTS] = event[0]
        put64(&self.events_head, self.events_head + 1)

    cdef void _take(self, Input *one) noexcept nogil:
        """An input through the logic, and its setpoint onto the wire."""
        cdef double wanted = 0
        cdef Input note
        self._limits_in(one.now)
        if self._apply(one, &wanted) & 2:
            if self.writer.pending:
                self._answer()
            if writer_send(&self.writer, wanted, one.t if one.kind == WAVE else one.now):
                self.writes += 1
                memset(&note, 0, sizeof(Input))
                note.kind = WROTE
                note.now = self.writer.sent_ns
                note.t = self.writer.sampled_ns
                note.v[0] = wanted
                note.n = 1
                self._apply(&note, &wanted)
                self._publish_state()

    cdef void _publish_state(self) noexcept nogil:
        self.held_w = self.core.d.written_w
        put32(&self.responding_now, self.core.d.responding)

    cdef void _limits_in(self, int64_t now) noexcept nogil:
        """What Python published since, whole, as an input of its own."""
        cdef int64_t before
        cdef int tries
        cdef Limits copy
        cdef Input one
        cdef double unused = 0
        if get32(&self.rewrite):
            put32(&self.rewrite, 0)
            memset(&one, 0, sizeof(Input))
            one.kind = REWRITE
            one.now = now
            self._apply(&one, &unused)
        for tries in range(100):
            before = get64(&self.sequence)
            if before == self.limits_seen:
                return
            if before & 1:
                continue
            copy = self.limits
            if get64(&self.sequence) == before:
                self.limits_seen = before
                memset(&one, 0, sizeof(Input))
                one.kind = LIMITS
                one.now = now
                one.t = copy.time_ns
                one.v[0] = copy.baseline_w
                one.v[1] = copy.min_w
                one.v[2] = copy.max_w
                one.v[3] = copy.safe_w
                one.v[4] = copy.out_wh
                one.v[5] = copy.in_wh
                self._apply(&one, &unused)
                return

    # -- the thread

    def run(self):
        with nogil:
            self._loop()

    def stop(self):
        put32(&self.stop_asked, 1)

    cdef void _prepare(self) noexcept nogil:
        """Memory that stays and a place before everybody else, where the system allows it; the snapshot says what it did."""
        cdef sched_param param
        cdef char stack[65536]
        memset(stack, 0, sizeof(stack))
        self.fifo = self.locked = 0
        if not self.s.realtime:
            return
        self.locked = mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0
        memset(&param, 0, sizeof(param))
        param.sched_priority = 20
        self.fifo = sched_setscheduler(0, SCHED_FIFO, &param) == 0

    cdef void _loop(self) noexcept nogil:
        cdef int64_t deadline = now_ns() + self.s.period_ns
        cdef int64_t now, late
        cdef timespec due
        cdef pollfd fds[2]
        cdef int i, what, count
        cdef Input note
        cdef double wanted = 0
        self._prepare()
        while not get32(&self.stop_asked):
            # Data wakes the loop where a source has a descriptor; the deadline does in any case.
            now = now_ns()
            if self.s.source >= STREAM and self.stream_fd >= 0 and now < deadline:
                fds[0].fd = self.stream_fd
                fds[0].events = POLLIN
                fds[0].revents = 0
                fds[1].fd = self.writer.link.fd if self.writer.pending else -1
                fds[1].events = POLLIN
                fds[1].revents = 0
                if poll(fds, 2, <int>((deadline - now) // 1000000 + 1)) > 0 and now_ns() < deadline:
                    self._answer()
                    if not fds[0].revents or self._stream_in():
                        continue
                    # Ready, and nothing to read: its other end is gone. Asking again at once would never let go of the core.
            due.tv_sec = deadline // NS
            due.tv_nsec = deadline % NS
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL)
            now = now_ns()
            late = now - deadline
            if late < 0:
                continue
            i = 0
            while i < BINS - 1 and (late >> 10) >> i:  # bins of 1 µs, 2 µs, 4 µs …
                i += 1
            self.lateness[i] += 1
            if late > self.lateness_max:
                self.lateness_max = late
            self.ticks += 1
            self._answer()
            self._tick(now)
            deadline += self.s.period_ns
            now = now_ns()
            while deadline <= now:
                deadline += self.s.period_ns
                self.missed += 1
        self._finish()

    cdef void _finish(self) noexcept nogil:
        """Leave nothing of a response behind, and no event open."""
        cdef int64_t end = now_ns() + NS // 2
        cdef Input note
        cdef int i = 0
        if self.core.d.responding and self.core.limits.time_ns:
            while now_ns() < end and self.writer.pending:
                wait_for(self.writer.link.fd, POLLIN, now_ns() + 20000000)
                self._answer()
            if writer_send(&self.writer, self.core.limits.baseline_w, now_ns()):
                while now_ns() < end and self.writer.pending:
                    wait_for(self.writer.link.fd, POLLIN, now_ns() + 20000000)
                    self._answer()
            self.core.d.responding = 0
            self._publish_state()
        decide_end(&self.core.d, now_ns())
        for i in range(self.core.d.finished_count):
            self._event(&self.core.d.finished[i])

    cdef void _answer(self) noexcept nogil:
        """What the device has answered by now: a readback that was overtaken, and then the write."""
        cdef Input note
        cdef double unused = 0, value = 0
        cdef int what, rounds, confirmed = 0
        for rounds in range(2):
            what = writer_step(&self.writer, now_ns(), &confirmed, &value)
            memset(&note, 0, sizeof(Input))
            note.now = note.t = now_ns()
            if what & 1 and not confirmed:
                self.write_failures += 1
                self.writer.not_before_ns = note.now + NS // 4
                note.kind = REWRITE
                self._apply(&note, &unused)
            if not what & 2:
                return
            note.kind = READBACK
            note.n = 1
            note.v[0] = value
            self._apply(&note, &unused)
            if self.core.d.responding:
                self.writer.read_back = 1

    cdef void _tick(self, int64_t began) noexcept nogil:
        """What a deadline brings: a poll, what was pushed, what is due of a recording, or the news that nothing came."""
        cdef Input one
        cdef int64_t ended
        memset(&one, 0, sizeof(Input))
        if self.s.source == REGISTER:
            one.kind = SAMPLE
            if read_values(&self.reader, &self.s.meter, one.v, began + ANSWER_NS):
                one.n = self.s.meter.pieces
            else:
                self.failures += 1
            ended = now_ns()
            one.now = ended
            one.t = (began + ended) // 2
            self._take(&one)
        elif self.s.source == PUSH:
            one.kind = SAMPLE
            if self.pushed_tail == get64(&self.pushed_head):
                one.now = one.t = now_ns()
                self._take(&one)
            while self.pushed_tail < get64(&self.pushed_head):
                one.t = self.pushed[self.pushed_tail % PUSHED].t
                one.v[0] = self.pushed[self.pushed_tail % PUSHED].v[0]
                one.v[1] = self.pushed[self.pushed_tail % PUSHED].v[1]
                one.n = 1 if isnan(one.v[1]) else 2
                put64(&self.pushed_tail, self.pushed_tail + 1)
                one.now = now_ns()
                self._take(&one)
        elif self.s.source == PLAY:
            self._play(began)
        else:
            if self.stream_fd >= 0:
                self._stream_in()
            elif self.s.source == PMU and ensure(&self.reader, self.s.meter.host, self.s.meter.port, began + ANSWER_NS):
                if send_all(self.reader.fd, self.s.start, 18):
                    self.stream_fd = self.reader.fd
                    self.carry = 0
                else:
                    drop(&self.reader, now_ns())
            ended = now_ns()
            if ended - self.last_input_ns > NS // 5:
                one.kind = TICK
                one.now = one.t = ended
                self._take(&one)

    # -- streams

    cdef void _play(self, int64_t now) noexcept nogil:
        cdef Input one
        cdef int64_t due, i
        cdef int k, channels = self.s.channels
        if self.stream_began_ns == 0:
            self.stream_began_ns = now
            self._epoch(now, now)
        due = <int64_t>((now - self.stream_began_ns) * 1e-9 * self.s.rate_hz * self.play_speed)
        if due > self.playing.shape[0] // channels:
            due = self.playing.shape[0] // channels
        memset(&one, 0, sizeof(Input))
        one.kind = WAVE
        for i in range(self.played_at, due):
            for k in range(channels):
                one.v[k] = self.playing[i * channels + k]
            one.now = one.t = now_ns()
            self._take(&one)
            self.last_input_ns = one.now
        self.received += due - self.played_at
        self.played_at = due
        if now - self.last_input_ns > NS // 5 and self.last_input_ns:
            one.kind = TICK
            one.now = one.t = now
            self._take(&one)

    cdef void _epoch(self, int64_t t, int64_t now) noexcept nogil:
        cdef Input one
        cdef double unused = 0
        memset(&one, 0, sizeof(Input))
        one.kind = EPOCH
        one.t = t
        one.now = now
        self._apply(&one, &unused)

    cdef void _bad(self, int cause, int64_t now) noexcept nogil:
        cdef Input one
        memset(&one, 0, sizeof(Input))
        one.kind = BAD
        one.n = cause
        one.now = one.t = now
        self._take(&one)

    cdef void _keep_time(self, int count, int64_t now) noexcept nogil:
        """Sample 0's time from the earliest arrivals; a rate that is another than configured shows within two seconds."""
        cdef double ns = 1e9 / self.s.rate_hz
        cdef double offset = now - (self.core.w.index + count - 1) * ns
        cdef double seconds
        if self.stream_count == 0:
            self.stream_began_ns = now
            self.stream_offset_ns = offset
            self._epoch(<int64_t>offset, now)
        elif offset < self.stream_offset_ns:
            self.stream_offset_ns = offset
        else:
            self.stream_offset_ns += count * ns * 2e-4  # follows a clock that is up to 200 ppm slow
        self.stream_count += count
        if self.stream_count % 256 < count:
            self._epoch(<int64_t>self.stream_offset_ns, now)
        seconds = (now - self.stream_began_ns) * 1e-9
        if seconds >= 2.0:
            self.rate_bad = not 0.97 < self.stream_count / (seconds * self.s.rate_hz) < 1.03
            self.stream_began_ns = now
            self.stream_count = 1
            self.stream_offset_ns = offset
        if self.rate_bad:  # until two seconds in a row are right
            self._bad(RATE_CHANGED, now)

    cdef int _stream_in(self) noexcept nogil:
        """Everything that is there, in bounded rounds; 0 where there was nothing."""
        cdef ssize_t n
        cdef int64_t now
        cdef int rounds
        for rounds in range(64):
            if self.s.source == UDP:
                n = recv(self.stream_fd, self.chunk, CHUNK, MSG_DONTWAIT)
                if n <= 0:
                    return rounds
                now = now_ns()
                self._datagram(<int>n, now)
                continue
            n = read(self.stream_fd, self.chunk + self.carry, CHUNK - self.carry)
            if n <= 0:
                if n == 0 or (errno != EAGAIN and errno != EINTR):
                    if self.s.source == PMU:
                        drop(&self.reader, now_ns())
                        self.stream_fd = -1
                return rounds
            now = now_ns()
            self.carry += <int>n
            if self.s.source == PMU:
                self._frames(now)
                if self.stream_fd < 0:
                    return 1
            else:
                self._block(now)
        return 1

    cdef void _block(self, int64_t now) noexcept nogil:
        """Interleaved little-endian samples, as an IIO buffer gives them."""
        cdef int width = self.s.sample_bytes, size = width * self.s.channels, at = 0, k
        cdef int count = self.carry // size
        cdef Input one
        cdef int32_t raw
        cdef const uint8_t *p
        if count == 0:
            return
        if self.last_input_ns and now - self.last_input_ns > NS // 5:
            self._bad(GAP, now)
            self.stream_count = 0
        self._keep_time(count, now)
        memset(&one, 0, sizeof(Input))
        one.kind = WAVE
        one.now = one.t = now
        while at + size <= self.carry:
            for k in range(self.s.channels):
                p = self.chunk + at + k * width
                if width == 2:
                    raw = <int16_t>(p[0] | (p[1] << 8))
                else:
                    raw = <int32_t>(p[0] | (p[1] << 8) | (p[2] << 16) | (<uint32_t>p[3] << 24))
                one.v[k] = ((raw >> self.s.shift) + self.s.offset) * self.s.scale
            self._take(&one)
            at += size
        self.received += count
        self.last_input_ns = now
        self.carry -= at
        for k in range(self.carry):
            self.chunk[k] = self.chunk[at + k]

    cdef void _datagram(self, int size, int64_t now) noexcept nogil:
        """WMS1: see simulators' waveform_stream or docs/reflex.md."""
        cdef const uint8_t *p = self.chunk
        cdef uint16_t channels, samples
        cdef uint32_t sequence
        cdef int64_t first
        cdef double rate, scale
        cdef int32_t raw
        cdef int i, k
        cdef Input one
        if size < 36 or p[0] != 87 or p[1] != 77 or p[2] != 83 or p[3] != 49:
            self.failures += 1
            return
        memcpy(&channels, p + 4, 2)
        memcpy(&samples, p + 6, 2)
        memcpy(&sequence, p + 8, 4)
        memcpy(&first, p + 12, 8)
        memcpy(&rate, p + 20, 8)
        memcpy(&scale, p + 28, 8)
        if channels != self.s.channels or samples == 0 or size != 36 + 4 * channels * samples or not 0 <= first < (<int64_t>1 << 62) or not scale > 0:
            self.failures += 1
            return
        if not (0.9999 < rate / self.s.rate_hz < 1.0001):
            self._bad(RATE_CHANGED, now)
            self.last_input_ns = now
            return
        if self.received and first != self.stream_index:
            if first < self.stream_index:
                self._bad(TIME_BACK, now)
                if self.stream_index - first < <int64_t>(rate):  # a late or doubled datagram; a restart begins anew
                    self.last_input_ns = now
                    self.stream_index = first + samples if first + samples > self.stream_index else self.stream_index
                    return
            else:
                self._bad(GAP, now)
            self.stream_count = 0
        elif self.last_input_ns and now - self.last_input_ns > NS // 5:
            self._bad(GAP, now)
            self.stream_count = 0
        self.stream_index = first + samples
        self._keep_time(samples, now)
        memset(&one, 0, sizeof(Input))
        one.kind = WAVE
        one.now = one.t = now
        for i in range(samples):
            for k in range(channels):
                memcpy(&raw, p + 36 + 4 * (i * channels + k), 4)
                one.v[k] = raw * scale
            self._take(&one)
        self.received += samples
        self.last_input_ns = now

    cdef void _frames(self, int64_t now) noexcept nogil:
        """Data frames of IEEE C37.118.2-2011 (6.3); anything else is passed over, a wrong checksum ends the connection."""
        cdef int at = 0, size, k, stat
        cdef const uint8_t *p
        cdef Input one
        cdef double re, im
        cdef int64_t soc
        while self.carry - at >= 4:
            p = self.chunk + at
            size = (p[2] << 8) | p[3]
            if p[0] != 0xAA or size < 16:
                break
            if self.carry - at < size:
                if size > CHUNK:
                    break
                for k in range(self.carry - at):
                    self.chunk[k] = self.chunk[at + k]
                self.carry -= at
                return
            if crc_ccitt(p, size - 2) != ((p[size - 2] << 8) | p[size - 1]):
                self.failures += 1
                break
            if p[1] >> 4 == 0 and size == self.s.frame and ((p[4] << 8) | p[5]) == self.s.id_code:
                soc = (<int64_t>p[6] << 24) | (p[7] << 16) | (p[8] << 8) | p[9]
                stat = (p[self.s.stat_at] << 8) | p[self.s.stat_at + 1]
                self.last_input_ns = now
                self.received += 1
                if soc < self.pmu_soc:
                    self._bad(TIME_BACK, now)
                elif stat & 0xC000:  # 6.3: data error
                    self._bad(SOURCE_BAD, now)
                else:
                    memset(&one, 0, sizeof(Input))
                    one.kind = SAMPLE
                    one.now = one.t = now
                    one.n = 2
                    if self.s.freq_float:
                        one.v[0] = be_float(p + self.s.freq_at)
                        if -33.0 < one.v[0] < 33.0:  # the standard has the actual value; some makes send the deviation
                            one.v[0] += self.core.d.nominal_hz
                    else:
                        one.v[0] = self.core.d.nominal_hz + be_int(p + self.s.freq_at) * 1e-3
                    if self.s.phasor_float:
                        re, im = be_float(p + self.s.phasor_at), be_float(p + self.s.phasor_at + 4)
                    else:
                        re = be_int(p + self.s.phasor_at)
                        im = be_int(p + self.s.phasor_at + 2)
                        if self.s.phasor_polar:
                            re = <uint16_t><int16_t>re
                    one.v[1] = (re if self.s.phasor_polar else sqrt(re * re + im * im)) * self.s.phasor_scale
                    self._take(&one)
                self.pmu_soc = soc
            at += size
        if self.carry - at >= 4:
            drop(&self.reader, now)
            self.stream_fd = -1
            self.carry = 0
            return
        for k in range(self.carry - at):
            self.chunk[k] = self.chunk[at + k]
        self.carry -= at

    # -- Python's side

    def publish(self, double baseline_w, double min_w, double max_w, double safe_w=0.0, double out_wh=1e12,
                double in_wh=1e12, now=None):
        cdef int64_t sequence = self.sequence
        put64(&self.sequence, sequence + 1)
        self.limits.baseline_w = baseline_w
        self.limits.min_w = min_w
        self.limits.max_w = max_w
        self.limits.safe_w = safe_w
        self.limits.out_wh = out_wh
        self.limits.in_wh = in_wh
        self.limits.time_ns = now_ns() if now is None else now
        put64(&self.sequence, sequence + 2)

    def written_by_others(self):
        put32(&self.rewrite, 1)

    def push(self, double frequency_hz, volts=None, t=None):
        if get64(&self.pushed_head) - get64(&self.pushed_tail) >= PUSHED:
            return False
        self.pushed[self.pushed_head % PUSHED].t = now_ns() if t is None else t
        self.pushed[self.pushed_head % PUSHED].v[0] = frequency_hz
        self.pushed[self.pushed_head % PUSHED].v[1] = NAN if volts is None else volts
        put64(&self.pushed_head, self.pushed_head + 1)
        return True

    def responding(self):
        return self.held_w if get32(&self.responding_now) else None

    def snapshot(self):
        cdef const Estimate *e = &self.core.r.now if self.core.register_mode else &self.core.w.now
        cdef Decider *d = &self.core.d
        cdef int64_t now = now_ns()
        total = sum(self.lateness[i] for i in range(BINS))
        quantiles = {}
        for share in (0.5, 0.99):
            seen = 0
            for i in range(BINS):
                seen += self.lateness[i]
                if total and seen >= share * total:
                    quantiles[share] = (1 << i) * 1.024e-3
                    break
        valid = e.cause == VALID
        return {
            "cause": e.cause, "age_ns": now - e.time_ns if valid and e.time_ns else None,
            "frequency_hz": _known(e.frequency_hz) if valid else None,
            "rocof_100": _known(e.rocof_100) if valid else None, "rocof_500": _known(e.rocof_500) if valid else None,
            "voltage_v": _known(e.voltage_v), "voltage_pu": _known(e.voltage_pu), "sigma_hz": _known(e.sigma_hz),
            "refresh_ns": self.core.r.refresh_ns if self.core.register_mode else None,
            "repeats": self.core.r.repeats, "steps": e.steps,
            "inhibited": bool(d.inhibited), "open": [i for i in range(KINDS) if d.is_open[i]], "tripped": d.tripped, "fallen": bool(d.fallen),
            "ticks": self.ticks, "missed": self.missed, "failures": self.failures, "received": self.received,
            "writes": self.writes, "write_failures": self.write_failures,
            "fifo": None if self.fifo < 0 else bool(self.fifo), "locked": None if self.locked < 0 else bool(self.locked),
            "lateness": [self.lateness[i] for i in range(BINS)],
            "lateness_p50_ms": quantiles.get(0.5), "lateness_p99_ms": quantiles.get(0.99),
            "lateness_max_ms": self.lateness_max * 1e-6,
        }

    def drain_events(self):
        cdef int64_t head = get64(&self.events_head)
        cdef int64_t lost = 0
        if head - self.events_tail > EVENTS - 8:
            lost = head - self.events_tail - (EVENTS - 8)
            self.events_tail += lost
        rows = []
        while self.events_tail < head:
            event = self.events[self.events_tail % EVENTS]
            rows.append({
                "kind": event.kind, "cause": event.cause, "number": event.number, "start_ns": event.start_ns,
                "end_ns": event.end_ns or None, "sample_ns": event.sample_ns or None, "write_ns": event.write_ns or None,
                "extreme_hz": _known(event.extreme_hz), "extreme_rocof": _known(event.extreme_rocof),
                "extreme_pu": _known(event.extreme_pu), "step_deg": event.step_deg, "response_w": event.response_w})
            self.events_tail += 1
        return rows, lost

    def take_log(self):
        """(index of the first input, inputs, index of the first output, outputs, how many were overwritten unseen), as raw bytes."""
        cdef int64_t head = get64(&self.log_head), lost = 0, lost_out = 0, first, first_out
        if head - self.log_tail > self.log_size - 1024:
            lost = head - self.log_tail - (self.log_size - 1024)
            self.log_tail += lost
        first = self.log_tail
        inputs = ring_bytes(<const char *>self.log, sizeof(Input), self.log_size, self.log_tail, head)
        self.log_tail = head
        head = get64(&self.outputs_head)
        if head - self.outputs_tail > self.outputs_size - 512:
            lost_out = head - self.outputs_tail - (self.outputs_size - 512)
            self.outputs_tail += lost_out
        first_out = self.outputs_tail
        outputs = ring_bytes(<const char *>self.outputs, sizeof(Output), self.outputs_size, self.outputs_tail, head)
        self.outputs_tail = head
        return first, inputs, first_out, outputs, lost + lost_out

    def checkpoints(self):
        """(index of the next input, of the next output, state) of the last checkpoints, oldest first; one that is being overwritten is left out."""
        cdef int64_t count = get64(&self.saved_count), i
        found = []
        for i in range(count - SAVED + 1 if count >= SAVED else 0, count):
            at, out = self.saved_at[i % SAVED], self.saved_out[i % SAVED]
            state = PyBytes_FromStringAndSize(<char *>&self.saved[i % SAVED], sizeof(Core))
            if get64(&self.saved_count) - i < SAVED:
                found.append((at, out, state))
        return found

    def restore(self, bytes state):
        """Begin from a checkpoint; for replays."""
        if len(state) != sizeof(Core):
            raise ValueError("a checkpoint of another build")
        memcpy(&self.core, <const char *>state, sizeof(Core))
        self.last_number = self.core.d.numbers

    def replay(self, bytes inputs):
        """Outputs of recorded inputs, in the recorded order, as raw bytes."""
        cdef Py_ssize_t count = len(inputs) // sizeof(Input), i
        cdef const char *p = inputs
        cdef Input one
        cdef Output out
        cdef double wanted = 0
        made = bytearray()
        memset(&out, 0, sizeof(Output))
        for i in range(count):
            memcpy(&one, p + i * sizeof(Input), sizeof(Input))
            if core_apply(&self.core, &one, &wanted, &out):
                made += PyBytes_FromStringAndSize(<char *>&out, sizeof(Output))
        return bytes(made)

    # -- for tests and simulations: the same way in, the setpoint taken as written at once

    cdef object _fed(self, Input *one):
        cdef double wanted = 0
        cdef Input note
        self._limits_in(one.now)
        if not self._apply(one, &wanted) & 2:
            return None
        memset(&note, 0, sizeof(Input))
        note.kind = WROTE
        note.now = one.now
        note.t = one.now
        note.v[0] = wanted
        note.n = 1
        result = wanted
        self._apply(&note, &wanted)
        self._publish_state()
        return result

    def feed(self, int64_t t, values, now=None):
        cdef Input one
        memset(&one, 0, sizeof(Input))
        one.kind = SAMPLE
        one.t = t
        one.now = t if now is None else now
        if values is not None:
            content = (values,) if isinstance(values, (int, float)) else values
            one.n = len(content)
            for i in range(one.n):
                one.v[i] = content[i]
        return self._fed(&one)

    def feed_wave(self, const double[::1] samples, int64_t t):
        """Samples of which the first one came in at ``t``; [(time, setpoint)] of what would be written."""
        cdef Py_ssize_t channels = self.core.w.phases, i, k, n = samples.shape[0] // channels
        cdef Input one
        cdef double wanted = 0, ns = self.core.w.ns_per_sample
        found = []
        if self.core.w.index == 0:
            self._epoch(t, t)
        memset(&one, 0, sizeof(Input))
        one.kind = WAVE
        for i in range(n):
            for k in range(channels):
                one.v[k] = samples[i * channels + k]
            one.now = one.t = t + <int64_t>(i * ns)
            result = self._fed(&one)
            if result is not None:
                found.append((one.now, result))
        return found

    def feed_bad(self, int cause, int64_t t):
        cdef Input one
        memset(&one, 0, sizeof(Input))
        one.kind = BAD
        one.n = cause
        one.now = one.t = t
        return self._fed(&one)

    def feed_nothing(self, int64_t t):
        cdef Input one
        memset(&one, 0, sizeof(Input))
        one.kind = TICK
        one.now = one.t = t
        return self._fed(&one)

    def end(self, int64_t t):
        """Close the events under way."""
        decide_end(&self.core.d, t)
        for i in range(self.core.d.finished_count):
            self._event(&self.core.d.finished[i])


cdef object _known(double value):
    return None if isnan(value) else value


cdef bytes ring_bytes(const char *ring, size_t width, int64_t size, int64_t tail, int64_t head):
    cdef int64_t begin = tail % size, count = head - tail, first
    if count <= 0:
        return b""
    first = count if begin + count <= size else size - begin
    part = PyBytes_FromStringAndSize(ring + begin * width, first * width)
    return part + PyBytes_FromStringAndSize(ring, (count - first) * width) if first < count else part


INPUT_SIZE = sizeof(Input)
OUTPUT_SIZE = sizeof(Output)
CORE_SIZE = sizeof(Core)
