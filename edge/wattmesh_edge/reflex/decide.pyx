"""Events and the frequency response; plain functions on a plain structure, driven by whoever has estimates.

Signs are passive: low frequency asks for less consumption, a negative change of power.
"""

from libc.math cimport NAN, exp, fabs, isfinite, isnan
from libc.stdint cimport int64_t
from libc.string cimport memset

from wattmesh_edge.reflex.estimators cimport LOW_VOLTAGE, PHASE_STEP, RATE_CHANGED, TIME_BACK, VALID, WARMING_UP, Estimate

cdef enum:
    NS = 1000000000


cdef void decide_setup(Decider *d, double nominal_hz) noexcept:
    memset(d, 0, sizeof(Decider))
    d.nominal_hz = nominal_hz
    d.ramp_pu_per_s = 1e9
    d.recovery_pu_per_s = 1e9
    d.return_pu_per_s = 0.2
    d.invalid_hold_ns = NS // 2
    d.invalid_event_ns = NS // 5
    d.limits_age_ns = 60 * <int64_t>NS
    d.settle_ns = NS
    d.island_deg = 6.0
    d.island_ns = NS // 2


# -- events


cdef Event *begin(Decider *d, int kind, int64_t own_ns, const Estimate *e) noexcept nogil:
    cdef Event *event = &d.open[kind]
    if d.is_open[kind]:
        return event
    memset(event, 0, sizeof(Event))
    d.is_open[kind] = 1
    d.numbers += 1
    event.kind = kind
    event.number = d.numbers
    event.start_ns = own_ns
    event.extreme_hz = e.frequency_hz
    event.extreme_rocof = e.rocof_500
    event.extreme_pu = e.voltage_pu
    if d.responding and d.delta_pu != 0 and kind < INVALID:  # answered already, before it was an event
        event.sample_ns = d.sampled_ns
        event.write_ns = d.written_ns
        event.response_w = d.written_w - d.baseline_w
    return event


cdef void finish(Decider *d, int kind, int64_t own_ns) noexcept nogil:
    if not d.is_open[kind]:
        return
    d.is_open[kind] = 0
    d.open[kind].end_ns = own_ns
    if d.finished_count < KINDS * 2:
        d.finished[d.finished_count] = d.open[kind]
        d.finished_count += 1


cdef void extend(Event *event, const Estimate *e, double nominal_hz) noexcept nogil:
    """Largest deviations while an event lasts."""
    if event.kind == UNDER_FREQUENCY:
        if not event.extreme_hz <= e.frequency_hz:
            event.extreme_hz = e.frequency_hz
    elif event.kind == OVER_FREQUENCY:
        if not event.extreme_hz >= e.frequency_hz:
            event.extreme_hz = e.frequency_hz
    elif not fabs(event.extreme_hz - nominal_hz) >= fabs(e.frequency_hz - nominal_hz):
        event.extreme_hz = e.frequency_hz
    if not fabs(event.extreme_rocof) >= fabs(e.rocof_500) and isfinite(e.rocof_500):
        event.extreme_rocof = e.rocof_500
    if isfinite(e.voltage_pu) and not fabs(event.extreme_pu - 1) >= fabs(e.voltage_pu - 1):
        event.extreme_pu = e.voltage_pu


cdef double watched(const Watch *w, const Estimate *e) noexcept nogil:
    if w.kind == UNDER_FREQUENCY or w.kind == OVER_FREQUENCY:
        return e.frequency_hz
    if w.kind == ROCOF:
        # Both windows, in the same direction: 100 ms alone sees every switching on a small grid.
        if not e.rocof_100 * e.rocof_500 > 0:
            return 0.0
        return fabs(e.rocof_100) if fabs(e.rocof_100) < fabs(e.rocof_500) else fabs(e.rocof_500)
    return e.voltage_pu


cdef void watch_step(Decider *d, Watch *w, const Estimate *e) noexcept nogil:
    cdef double value = watched(w, e)
    cdef int beyond = value > w.enter if w.over else value < w.enter
    if beyond and not w.beyond:
        w.since_ns = e.made_ns
        w.since_own_ns = e.time_ns
    w.beyond = beyond
    if w.active:
        if value < w.leave if w.over else value > w.leave:
            w.active = 0
            finish(d, w.kind, e.time_ns)
    elif beyond and (e.made_ns - w.since_ns >= w.debounce_ns or d.spacing_ns >= w.debounce_ns):
        w.active = 1
        begin(d, w.kind, w.since_own_ns, e)


cdef void watch_all(Decider *d, const Estimate *e) noexcept nogil:
    cdef int i
    cdef Event *event
    for i in range(WATCHES):
        if d.watches[i].kind >= UNDER_VOLTAGE and not d.knows_voltage:
            continue
        watch_step(d, &d.watches[i], e)
    if e.steps != d.steps_seen:
        d.steps_seen = e.steps
        d.step_ns = e.made_ns
        event = begin(d, PHASE_STEP_SEEN, e.time_ns, e)
        event.step_deg = e.step_deg
        finish(d, PHASE_STEP_SEEN, e.time_ns)
        if fabs(e.step_deg) < d.island_deg:
            d.step_ns = 0
    # A vector shift and an excursion soon after: what a part of a grid does when it loses the rest.
    if d.step_ns and e.made_ns - d.step_ns <= d.island_ns and not d.is_open[ISLANDING]:
        if d.is_open[UNDER_FREQUENCY] or d.is_open[OVER_FREQUENCY] or d.is_open[ROCOF]:
            event = begin(d, ISLANDING, e.time_ns, e)
            event.step_deg = e.step_deg
    if d.is_open[ISLANDING] and not (d.is_open[UNDER_FREQUENCY] or d.is_open[OVER_FREQUENCY] or d.is_open[ROCOF]):
        finish(d, ISLANDING, e.time_ns)
    for i in range(KINDS):
        if d.is_open[i]:
            extend(&d.open[i], e, d.nominal_hz)


cdef void invalid_step(Decider *d, const Estimate *e, int64_t now) noexcept nogil:
    """Nothing is concluded from what cannot be believed: what was under way ends, timers start anew."""
    cdef int i
    cdef int blind = e.cause != LOW_VOLTAGE or not isfinite(e.voltage_pu)
    if d.was_valid or d.invalid_since_ns == 0:
        d.was_valid = 0
        d.invalid_since_ns = now
    if e.cause == PHASE_STEP:
        # Held for one window: what is under way goes on, what was only about to begin has to show itself again afterwards.
        for i in range(WATCHES):
            d.watches[i].beyond = 0
        for i in range(d.block_count):
            if d.blocks[i].state == 1:
                d.blocks[i].state = 0
        return
    for i in range(WATCHES):
        if d.watches[i].kind >= UNDER_VOLTAGE and not blind:
            if d.knows_voltage:  # no frequency without voltage, but that there is none is known
                watch_step(d, &d.watches[i], e)
            continue
        if d.watches[i].active:
            finish(d, d.watches[i].kind, now)
        d.watches[i].active = 0
        d.watches[i].beyond = 0
    finish(d, ISLANDING, now)
    for i in range(d.trip_count):
        if blind or not d.trips[i].voltage:
            d.trips[i].running = 0
    for i in range(d.block_count):
        if d.blocks[i].state == 1:
            d.blocks[i].state = 0
    d.outside_since_ns = 0
    # A source whose time or rate is wrong is told at once; a dropout when it has lasted.
    if e.cause != WARMING_UP and not d.is_open[INVALID] and (
            now - d.invalid_since_ns >= d.invalid_event_ns or e.cause == TIME_BACK or e.cause == RATE_CHANGED):
        begin(d, INVALID, d.invalid_since_ns, e).cause = e.cause


# -- response


cdef double curve_at(const Decider *d, double deviation) noexcept nogil:
    """Share of the rated power at a deviation: straight lines between the points, level beyond them."""
    cdef int i
    if d.points == 0:
        return 0.0
    if deviation <= d.deviation_hz[0]:
        return d.share_pu[0]
    for i in range(1, d.points):
        if deviation <= d.deviation_hz[i]:
            return d.share_pu[i - 1] + (d.share_pu[i] - d.share_pu[i - 1]) * (
                deviation - d.deviation_hz[i - 1]) / (d.deviation_hz[i] - d.deviation_hz[i - 1])
    return d.share_pu[d.points - 1]


cdef void continuous_step(Decider *d, const Estimate *e, double dt) noexcept nogil:
    cdef double wanted = curve_at(d, e.frequency_hz - d.nominal_hz), most
    if wanted == 0:
        d.outside_since_ns = 0
    else:
        if d.outside_since_ns == 0:
            d.outside_since_ns = e.made_ns
        if e.made_ns - d.outside_since_ns < d.delay_ns:
            wanted = 0
    if d.tau_s > 0:
        # IEEE 1547-2018, 6.5.2.7.1: open-loop response time is to 90 %, of a first-order lag ln(10) time constants.
        wanted = d.continuous_pu + (wanted - d.continuous_pu) * (1 - exp(-dt / d.tau_s))
        if fabs(wanted) < 1e-4 and d.outside_since_ns == 0:
            wanted = 0
    if wanted * d.continuous_pu < 0 or fabs(wanted) > fabs(d.continuous_pu):
        most = d.ramp_pu_per_s * dt
    else:
        most = d.recovery_pu_per_s * dt
    if wanted > d.continuous_pu + most:
        wanted = d.continuous_pu + most
    if wanted < d.continuous_pu - most:
        wanted = d.continuous_pu - most
    d.continuous_pu = wanted


cdef void block_step(Decider *d, Block *b, const Estimate *e, double dt) noexcept nogil:
    cdef int over = b.trigger_hz > d.nominal_hz
    cdef int beyond = e.frequency_hz >= b.trigger_hz if over else e.frequency_hz <= b.trigger_hz
    cdef double most = b.recovery_pu_per_s * dt
    if b.state == 0 and beyond:
        b.state = 1
        b.since_ns = e.made_ns
    if b.state == 1:
        if not beyond:
            b.state = 0
        elif e.made_ns - b.since_ns >= b.confirm_ns:
            b.state = 2
            b.since_ns = e.made_ns
            b.now_pu = b.power_pu
    elif b.state == 2:
        if e.made_ns - b.since_ns >= b.hold_ns:
            b.state = 3
    elif b.state == 3:
        if fabs(b.now_pu) <= most:
            b.now_pu = 0
            b.state = 4
            b.since_ns = e.made_ns
        else:
            b.now_pu -= most if b.now_pu > 0 else -most
    elif b.state == 4 and not beyond and e.made_ns - b.since_ns >= b.rearm_ns:
        b.state = 0


cdef void trips_step(Decider *d, const Estimate *e) noexcept nogil:
    """Clearing times are integer nanoseconds from the time that the quantity itself went beyond (IEEE 1547-2018, 6.4.1, 6.5.1)."""
    cdef int i
    cdef Trip *t
    cdef double value
    for i in range(d.trip_count):
        t = &d.trips[i]
        if not t.voltage and e.cause != VALID:
            continue
        value = e.voltage_pu if t.voltage else e.frequency_hz
        if value >= t.threshold if t.over else value <= t.threshold:
            if not t.running:
                t.running = 1
                t.since_ns = e.time_ns
            if e.made_ns - t.since_ns >= t.after_ns and d.tripped != 1:
                d.tripped = 1
                d.enter_since_ns = 0
                begin(d, TRIPPED, e.made_ns, e)
        else:
            t.running = 0
    if not d.tripped:
        return
    if (e.cause == VALID and d.enter_low_hz <= e.frequency_hz <= d.enter_high_hz
            and (not d.knows_voltage or d.enter_low_pu <= e.voltage_pu <= d.enter_high_pu)):
        if d.enter_since_ns == 0:
            d.enter_since_ns = e.made_ns
        if d.tripped == 1 and e.made_ns - d.enter_since_ns >= d.enter_after_ns:
            d.tripped = 2
            finish(d, TRIPPED, e.made_ns)
        if d.tripped == 2 and e.made_ns - d.enter_since_ns >= d.enter_after_ns + d.enter_ramp_ns:
            d.tripped = 0
    else:
        d.enter_since_ns = 0
        if d.tripped == 2:
            d.tripped = 1
            begin(d, TRIPPED, e.made_ns, e)


cdef inline double clamp(double value, double low, double high) noexcept nogil:
    return low if value < low else high if value > high else value


cdef int decide_step(Decider *d, const Estimate *e, int64_t now, const Limits *limits, double *wanted) noexcept nogil:
    """One estimate (or one moment without a new one). Returns 1 where ``wanted`` has to be written.

    Args:
        e: The newest; with a cause other than VALID nothing in it is used.
        now: Monotonic time of the step.
        limits: What the arbiter published; they bind whatever happens here.
        wanted: Setpoint, W.
    """
    cdef int i, valid = e.cause == VALID, gone, active
    cdef double dt, target, low, high, most, pu = 0
    d.finished_count = 0
    dt = 0 if d.last_ns == 0 or now <= d.last_ns else <double>(now - d.last_ns) * 1e-9
    if dt > 5:
        dt = 5  # after a pause no ramp may jump
    d.last_ns = now
    if not valid:
        invalid_step(d, e, now)
        if d.responds and e.cause == LOW_VOLTAGE and d.knows_voltage:
            trips_step(d, e)
    else:
        if not d.was_valid:
            d.was_valid = 1
            d.valid_since_ns = now
            finish(d, INVALID, now)
            d.invalid_since_ns = 0
        watch_all(d, e)
        if d.responds:
            trips_step(d, e)
    if not d.responds or limits.time_ns == 0:
        return 0
    # Energy: what the setpoints have moved since the arbiter last said how much there is.
    if limits.time_ns != d.limits_ns:
        d.limits_ns = limits.time_ns
        d.charged_wh = 0
    d.charged_wh += (d.target_w if d.responding else limits.baseline_w) * dt / 3600
    low, high = limits.min_w, limits.max_w
    if low < 0 and d.charged_wh < -limits.out_wh:
        low = 0 if high > 0 else high
    if high > 0 and d.charged_wh > limits.in_wh:
        high = 0 if low < 0 else low
    if valid:
        continuous_step(d, e, dt)
        pu = d.continuous_pu
        for i in range(d.block_count):
            block_step(d, &d.blocks[i], e, dt)
            pu += d.blocks[i].now_pu
        d.delta_pu = clamp(pu, -1.0, 1.0)
    active = d.delta_pu != 0 or d.tripped
    gone = 0
    if not valid and now - d.invalid_since_ns >= d.invalid_hold_ns:
        gone = 1
    if d.inhibited and not d.responding and not d.fallen:
        return 0
    if now - limits.time_ns > d.limits_age_ns:
        # Every setpoint expires: without Python there is nobody who knows what is allowed by now.
        if not d.responding and not d.fallen:
            return 0
        gone = 1
    most = d.return_pu_per_s * d.rated_w * dt
    if gone and (active or d.responding):
        d.fallen = 1
    elif d.fallen and not gone and now - d.valid_since_ns >= d.settle_ns:
        d.fallen = 0
        d.returning = 1
    d.baseline_w = limits.baseline_w
    if d.tripped == 1:
        d.target_w = clamp(0, low, high)
        active = 1
    elif d.fallen:
        # Hold is over: to the safe setpoint at the return's slope, and stay there. Never droop on what cannot be believed.
        d.continuous_pu = 0
        d.delta_pu = 0
        for i in range(d.block_count):
            if 0 < d.blocks[i].state < 4:
                d.blocks[i].state = 4
                d.blocks[i].since_ns = now
            d.blocks[i].now_pu = 0
        target = clamp(limits.safe_w, low, high)
        d.target_w = clamp(clamp(target, d.target_w - most, d.target_w + most), low, high)  # no slope outlasts a limit
        active = 1
    elif not valid:
        if not d.responding:
            return 0
        target = clamp(d.target_w, low, high)  # hold
        d.target_w = target
    else:
        target = limits.baseline_w + d.delta_pu * d.rated_w
        if d.tripped == 2:
            pu = <double>(e.made_ns - d.enter_since_ns - d.enter_after_ns) / <double>d.enter_ramp_ns if d.enter_ramp_ns else 1.0
            target = clamp(target, -pu * d.rated_w, pu * d.rated_w)
        target = clamp(target, low, high)
        if d.returning:
            if fabs(target - d.target_w) <= most:
                d.returning = 0
            else:
                target = clamp(d.target_w + (most if target > d.target_w else -most), low, high)
                active = 1
        d.target_w = target
    if not active:
        if d.responding:  # once more the arbiter's, then silence
            wanted[0] = clamp(limits.baseline_w, low, high)
            return 1
        return 0
    if not d.responding and fabs(d.target_w - limits.baseline_w) < d.min_change_w and not d.tripped and not d.fallen:
        return 0
    wanted[0] = d.target_w
    if d.has_written and d.responding:
        if fabs(d.target_w - d.written_w) < d.min_change_w and not (d.target_w == 0 and d.written_w != 0):
            return 0
        if now - d.written_ns < d.min_interval_ns:
            return 0
    return 1


cdef void decide_wrote(Decider *d, double value, int64_t sampled, int64_t written) noexcept nogil:
    """A setpoint has gone out: ``sampled`` is when the sample behind it had come in, ``written`` when the bytes had gone."""
    cdef int i
    d.has_written = 1
    d.sampled_ns = sampled
    d.written_w = value
    d.written_ns = written
    d.responding = d.delta_pu != 0 or d.tripped != 0 or d.fallen or d.returning
    if not d.responding:
        return
    for i in range(KINDS):
        if d.is_open[i] and i != INVALID and d.open[i].write_ns == 0:
            d.open[i].sample_ns = sampled
            d.open[i].write_ns = written
        if d.is_open[i] and fabs(value - d.baseline_w) > fabs(d.open[i].response_w):
            d.open[i].response_w = value - d.baseline_w


cdef void decide_end(Decider *d, int64_t now) noexcept nogil:
    """Close what is under way."""
    cdef int i
    d.finished_count = 0
    for i in range(KINDS):
        finish(d, i, now)
