"""Frequency from sampled voltage or from a meter's register; see estimators.pyi. Nothing here allocates, waits or needs Python."""

from array import array

from libc.math cimport INFINITY, M_PI, NAN, atan2, ceil, cos, fabs, floor, isfinite, isnan, llrint, sin, sqrt
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

cdef enum:
    NS = 1000000000
    POINTS_PER_CYCLE = 20   # of the phase, after decimation
    FIELD_COUNT = 18
    SLOW_PER_CYCLE = 2      # of the phase that the 100 and 500 ms fits see

cdef int64_t TURN = <int64_t>1 << 40
cdef double TURN_D = 1099511627776.0
cdef double REPORT_S = 0.0325      # delay of the report's fit
cdef double GUARD_DEG = 0.75       # an early phase that is so far from its prediction is no ramp that a grid can make
cdef double GUARD_3_DEG = 0.5      # three phases carry less noise, and at 60 Hz a smaller step makes as much of a deviation
cdef double REFERENCE_S = 1.0      # how fast the level reference of an uncalibrated source follows


cdef inline int64_t wrap(int64_t turns) noexcept nogil:
    """Into half a turn either side of zero."""
    return ((turns + (TURN >> 1)) & (TURN - 1)) - (TURN >> 1)


cdef void fit_setup(Fit *fit, int count) noexcept:
    """Weights of a least-squares parabola through ``count`` points one apart (orthogonal polynomials)."""
    cdef int k
    cdef double x, sum1 = 0, sum2 = 0, mean = (<double>count * count - 1) / 12
    fit.count = count
    for k in range(count):
        x = k - (count - 1) * 0.5
        fit.slope[k] = x
        fit.curve[k] = x * x - mean
        sum1 += fit.slope[k] * fit.slope[k]
        sum2 += fit.curve[k] * fit.curve[k]
    for k in range(count):
        fit.slope[k] /= sum1
        fit.curve[k] /= sum2 if sum2 > 0 else 1
    fit.centre = mean


cdef inline void fit_apply(const Fit *fit, const int64_t *h, double *slope, double *curve, double *middle) noexcept nogil:
    """Slope and half the second derivative a point, and the value in the middle against the newest point; in turns."""
    cdef int k
    cdef int64_t newest = h[fit.count - 1]
    cdef double v, s = 0, c = 0, m = 0
    for k in range(fit.count):
        v = <double>(h[k] - newest)
        s += fit.slope[k] * v
        c += fit.curve[k] * v
        m += v
    slope[0] = s / TURN_D
    curve[0] = c / TURN_D
    middle[0] = m / fit.count / TURN_D - curve[0] * fit.centre


cdef double dirichlet(double turns_per_sample, int n) noexcept nogil:
    """Response of a mean over n samples; real, as its time is the middle of the window."""
    cdef double half = M_PI * turns_per_sample
    cdef double below = sin(half)
    if fabs(below) < 1e-9:
        return 1.0 if cos(half) > 0 or n & 1 else -1.0
    return sin(n * half) / (n * below)


cdef int waveform_setup(Waveform *w, double rate_hz, double nominal_hz, int phases, int m_class, double nominal_v,
                        double rail, double unit_v, int guarded, double report_hz) noexcept:
    """0, or -1 where the rate does not fit (fewer than 6 or more than MAX_CYCLE samples in a cycle)."""
    cdef double per_cycle = rate_hz / nominal_hz
    cdef int k
    cdef double x, total, span
    memset(w, 0, sizeof(Waveform))
    if not per_cycle >= 6 or per_cycle > MAX_CYCLE - 1:
        return -1
    w.phases = phases
    w.rate_hz = rate_hz
    w.nominal_hz = nominal_hz
    w.ns_per_sample = 1e9 / rate_hz
    # The oscillator makes a whole number of samples a cycle, so its table and the boxcars are exact at any rate; what it is
    # beside the nominal frequency is one more deviation that the estimate contains.
    w.n = <int>floor(per_cycle + 0.5)
    w.lo_hz = rate_hz / w.n
    w.n1 = w.n
    w.n2 = w.n
    if fabs(per_cycle - w.n) > 0.25:  # zeros of the two boxcars either side of the true cycle
        w.n2 = <int>ceil(per_cycle) if w.n1 == <int>floor(per_cycle) else <int>floor(per_cycle)
    for k in range(w.n):
        w.lo_cos[k] = cos(2 * M_PI * k / w.n)
        w.lo_sin[k] = sin(2 * M_PI * k / w.n)
    w.decimation = w.n // POINTS_PER_CYCLE if w.n >= POINTS_PER_CYCLE else 1
    fit_setup(&w.fast, <int>floor(<double>w.n / w.decimation * (1.0 if w.n >= POINTS_PER_CYCLE else 1.25) + 0.5))
    w.slow_every = <int>floor(<double>w.n / w.decimation / SLOW_PER_CYCLE + 0.5)
    x = rate_hz / w.decimation / w.slow_every
    fit_setup(&w.slow100, <int>floor(0.1 * x + 1.5))
    fit_setup(&w.slow500, <int>floor(0.5 * x + 1.5))
    w.delay_samples = (w.n1 + w.n2 - 2) * 0.5 + (w.fast.count - 1) * 0.5 * w.decimation
    k = <int>floor((REPORT_S * rate_hz - (w.n1 + w.n2 - 2) * 0.5) * 2 / w.decimation + 1)
    fit_setup(&w.report, w.fast.count if m_class or k < w.fast.count else k if k < MAX_FIT else MAX_FIT)
    if m_class:
        # Blackman window of 7 reporting periods: below -58 dB from 21.4 Hz on at 50 reports a second (Harris 1978).
        span = 7.0 / (report_hz if report_hz > 0 else nominal_hz)
        w.fir = <int>floor(span * rate_hz / w.decimation) | 1
        if w.fir > MAX_FIR:
            return -1
        total = 0
        for k in range(w.fir):
            x = 2 * M_PI * (k + 1) / (w.fir + 1)
            w.taps[k] = 0.42 - 0.5 * cos(x) + 0.08 * cos(2 * x)
            total += w.taps[k]
        for k in range(w.fir):
            w.taps[k] /= total
        w.delay_samples += (w.fir - 1) * 0.5 * w.decimation
    w.guarded = guarded and not m_class
    w.guard_turns = (GUARD_3_DEG if phases == 3 else GUARD_DEG) / 360
    w.nominal_v = nominal_v
    w.rail = rail if rail > 0 else INFINITY
    w.low_pu = 0.08 if m_class else 0.3  # class M is for reporting, from 10 % of the nominal voltage on
    # 26 bits for one nominal peak (or for the rail of a source without a nominal): sums over two cycles stay far below 63.
    x = nominal_v * sqrt(2.0) if nominal_v > 0 else rail if rail > 0 else unit_v
    w.gain = 67108864.0 / x
    w.stuck_limit = w.n // 2 if w.n >= 12 else 5
    w.railed_limit = w.n // 20 + 2
    w.countdown = w.decimation
    w.slow_countdown = w.slow_every
    w.clean_from = 0
    w.bad_cause = WARMING_UP
    w.held_until = -1
    w.image_f = NAN
    w.fir_f = NAN
    w.last_a = NAN
    w.now.cause = WARMING_UP
    w.report_countdown = 1
    w.now.frequency_hz = NAN
    w.now.frequency_report = w.now.rocof_report = NAN
    w.now.voltage_v = NAN
    w.now.voltage_pu = NAN
    return 0


cdef void waveform_bad(Waveform *w, int cause) noexcept nogil:
    """From here on nothing counts until every filter has seen only samples after this one."""
    w.clean_from = w.index + 1
    w.acquired = 0
    w.bad_cause = cause


cdef double taps_response(Waveform *w, double turns_per_point) noexcept nogil:
    cdef double total = 0
    cdef int k
    for k in range(w.fir):
        total += w.taps[k] * cos(2 * M_PI * turns_per_point * (k - (w.fir - 1) * 0.5))
    return total


cdef inline int64_t angle_of(double re, double im) noexcept nogil:
    return llrint(atan2(im, re) * (TURN_D / (2 * M_PI)))


cdef void image_setup(Waveform *w, double f) noexcept nogil:
    """One phase: how the filters pass the wanted rotation and its mirror image at this frequency."""
    cdef double wanted = (f - w.lo_hz) / w.rate_hz, mirror = -(f + w.lo_hz) / w.rate_hz
    w.image_f = f
    w.image_h1 = dirichlet(wanted, w.n1)
    w.image_r1 = dirichlet(mirror, w.n1)
    w.image_h2 = w.image_h1 * dirichlet(wanted, w.n2)
    w.image_r2 = w.image_r1 * dirichlet(mirror, w.n2)


cdef inline void unmix(Waveform *w, double h, double r, int twice, double *re, double *im) noexcept nogil:
    """Solve y = h·u + r·conj(u)·q for u, where q is the oscillator's double angle at the middle of the window."""
    cdef int k = twice % w.n
    cdef double qre, qim, yre = re[0], yim = im[0], below = h * h - r * r
    if k < 0:
        k += w.n
    qre = w.lo_cos[k]
    qim = -w.lo_sin[k]
    if below < 0.1:
        return
    re[0] = (h * yre - r * (qre * yre + qim * yim)) / below
    im[0] = (h * yim - r * (qim * yre - qre * yim)) / below


cdef void waveform_estimate(Waveform *w, int lo) noexcept nogil:
    """One point of the decimated phase, and what follows from it. ``lo`` is the oscillator's index of the newest sample."""
    cdef Estimate *e = &w.now
    cdef double scale2 = 1.0 / (w.gain * w.n1 * w.n2), scale1 = 1.0 / (w.gain * w.n1)
    cdef double re2 = w.s2re * scale2, im2 = w.s2im * scale2, re1, im1
    cdef double slope, curve, middle, early, residual, x, y, level
    cdef int64_t raw, innovation, early_raw
    cdef const int64_t *h
    cdef int k, age, count
    cdef double per_point = w.rate_hz / w.decimation
    if w.phases == 1:
        if isnan(w.image_f):
            image_setup(w, w.lo_hz)
        unmix(w, w.image_h2, w.image_r2, 2 * lo - (w.n1 + w.n2 - 2), &re2, &im2)
    if w.fir:
        w.fir_re[w.fir_at] = w.fir_re[w.fir_at + w.fir] = re2
        w.fir_im[w.fir_at] = w.fir_im[w.fir_at + w.fir] = im2
        w.fir_at = w.fir_at + 1 if w.fir_at + 1 < w.fir else 0
        re2 = im2 = 0
        for k in range(w.fir):
            re2 += w.taps[k] * w.fir_re[w.fir_at + k]
            im2 += w.taps[k] * w.fir_im[w.fir_at + k]
    raw = angle_of(re2, im2)
    w.turns += wrap(raw - w.raw_turns)
    w.raw_turns = raw
    count = w.report.count
    level = sqrt(re2 * re2 + im2 * im2) * (1.4142135623730951 if w.phases == 1 else 0.70710678118654752)
    w.level_h[w.fast_at] = w.level_h[w.fast_at + count] = level
    w.fast_h[w.fast_at] = w.fast_h[w.fast_at + count] = w.turns
    w.fast_at = w.fast_at + 1 if w.fast_at + 1 < count else 0
    h = &w.fast_h[w.fast_at + count - w.fast.count]
    fit_apply(&w.fast, h, &slope, &curve, &middle)
    e.made_ns = w.epoch_ns + <int64_t>(w.index * w.ns_per_sample)
    e.delay_ns = <int64_t>(w.delay_samples * w.ns_per_sample)
    e.time_ns = e.made_ns - e.delay_ns
    # What is known of the samples themselves comes first, then the level, then the phase.
    age = 1 if w.index - w.clean_from >= <int64_t>(2 * w.delay_samples) + w.decimation else 0
    if not age:
        e.cause = w.bad_cause
    else:
        e.frequency_hz = w.lo_hz + slope * per_point
        e.rocof = 2 * curve * per_point * per_point
        e.phase_turns = (<double>(w.turns & (TURN * 1024 - 1))) / TURN_D + middle
        # The filters pass less of a frequency beside their middle.
        if w.phases == 3 and not fabs(e.frequency_hz - w.image_f) < 0.001:
            w.image_f = e.frequency_hz
            x = (e.frequency_hz - w.lo_hz) / w.rate_hz
            w.image_h2 = dirichlet(x, w.n1) * dirichlet(x, w.n2)
        y = 1.0 if w.phases == 1 else w.image_h2 if w.image_h2 > 0.3 else 0.3
        if w.fir:
            if not fabs(e.frequency_hz - w.fir_f) < 0.01:
                w.fir_f = e.frequency_hz
                w.fir_h = taps_response(w, (e.frequency_hz - w.lo_hz) / per_point)
            y *= w.fir_h if w.fir_h > 0.1 else 0.1
        level /= y
        k = w.fast_at + count - w.fast.count
        e.voltage_v = 0.5 * (w.level_h[k + w.fast.count // 2] + w.level_h[k + (w.fast.count - 1) // 2]) / y
        w.report_countdown -= 1
        if w.report_countdown <= 0:
            w.report_countdown = 4
            k = (count - w.fast.count + 1) * w.decimation
            if w.index - w.clean_from >= <int64_t>(2 * w.delay_samples) + k and (
                    w.held_until < 0 or w.index - w.held_until > k):
                h = &w.fast_h[w.fast_at]
                fit_apply(&w.report, h, &x, &y, &residual)
                e.frequency_report = w.lo_hz + x * per_point
                e.rocof_report = 2 * y * per_point * per_point
                e.report_ns = e.time_ns - <int64_t>((count - w.fast.count) * 0.5 * w.decimation * w.ns_per_sample)
        if w.nominal_v > 0:
            w.reference_v = w.nominal_v
        elif w.reference_v == 0:
            w.reference_v = level
        else:
            w.reference_v += (level - w.reference_v) / (REFERENCE_S * per_point)
        e.voltage_pu = e.voltage_v / w.reference_v if w.reference_v > 0 else 0.0
        w.low = level < w.reference_v * (w.low_pu * 1.1 if w.low else w.low_pu)  # the newest: sooner than the estimate
        e.cause = VALID
        if w.low or not isfinite(e.frequency_hz):
            e.cause = LOW_VOLTAGE
        elif fabs(e.frequency_hz - w.nominal_hz) > 0.2 * w.nominal_hz:
            e.cause = OUT_OF_RANGE
        if w.guarded:
            # The phase of one boxcar is a cycle ahead of the fit: a step shows there before it has moved the fit far.
            re1 = w.s1re * scale1
            im1 = w.s1im * scale1
            if w.phases == 1:
                unmix(w, w.image_h1, w.image_r1, 2 * lo - (w.n1 - 1), &re1, &im1)
            early_raw = angle_of(re1, im1)
            early = slope * (w.delay_samples - (w.n1 - 1) * 0.5) / w.decimation + middle
            innovation = wrap(early_raw - w.raw_turns - llrint(early * TURN_D))
            residual = <double>innovation / TURN_D
            if fabs(residual) > w.guard_turns and w.index > w.held_until:
                if w.held_until < 0 or w.index - w.held_until > <int64_t>(4 * w.delay_samples):
                    e.steps += 1
                    w.held_from = w.index
                w.held_until = w.index + <int64_t>(2 * w.delay_samples) + w.n1 // 2
            if w.index <= w.held_until:
                if e.cause == VALID:
                    e.cause = PHASE_STEP
            elif w.held_from:
                # Over: how far the phase is from where the time before would have brought it.
                x = (<double>(w.index - w.older_index)) / w.decimation
                y = e.phase_turns - (w.older_turns + w.older_slope * x)
                e.step_deg = 360 * (y - floor(y + 0.5))
                w.held_from = 0
    if w.phases == 1 and not fabs(e.frequency_hz - w.image_f) < 0.002 and (e.cause == VALID or (
            e.cause == PHASE_STEP and (not w.acquired or w.index - w.held_from > <int64_t>(8 * w.delay_samples)))):
        # Before the frequency is known at all, the wrong mirror image looks like a step of the phase: solve for it anew.
        image_setup(w, e.frequency_hz)
    if e.cause == VALID:
        w.acquired = 1
        if w.index - w.before_index >= w.n:
            w.older_turns, w.older_slope, w.older_index = w.before_turns, w.before_slope, w.before_index
            w.before_turns, w.before_slope, w.before_index = e.phase_turns, slope, w.index
    w.slow_countdown -= 1
    if e.cause != VALID:
        w.slow_n = 0
        w.slow_countdown = w.slow_every
        e.frequency_report = e.rocof_report = NAN
        e.frequency_100 = e.rocof_100 = e.frequency_500 = e.rocof_500 = e.sigma_hz = NAN
        if e.cause != LOW_VOLTAGE and e.cause != PHASE_STEP:
            e.voltage_v = e.voltage_pu = NAN
    elif w.slow_countdown == 0:
        w.slow_countdown = w.slow_every
        waveform_slow(w, per_point / w.slow_every)


cdef void waveform_slow(Waveform *w, double per_second) noexcept nogil:
    """The 100 and 500 ms fits, through every 10th point of the phase: the two boxcars leave little between those."""
    cdef Estimate *e = &w.now
    cdef double slope, curve, middle, v, x, sum2 = 0
    cdef const int64_t *h
    cdef int k, count = w.slow500.count
    w.slow_h[w.slow_at] = w.slow_h[w.slow_at + count] = w.turns
    w.slow_at = w.slow_at + 1 if w.slow_at + 1 < count else 0
    if w.slow_n < count:
        w.slow_n += 1
    if w.slow_n >= w.slow100.count:
        h = &w.slow_h[w.slow_at + count - w.slow100.count]
        fit_apply(&w.slow100, h, &slope, &curve, &middle)
        e.frequency_100 = w.lo_hz + slope * per_second
        e.rocof_100 = 2 * curve * per_second * per_second
        for k in range(w.slow100.count):
            x = k - (w.slow100.count - 1) * 0.5
            v = <double>(h[k] - h[w.slow100.count - 1]) / TURN_D - middle - slope * x - curve * x * x
            sum2 += v * v
        # σ_f = √12 σ_φ / (2π T √n) of the 100 ms fit (Rife and Boorstyn 1974), carried to the fast fit by T^1.5.
        e.sigma_hz = sqrt(12.0 * sum2 / w.slow100.count / w.slow100.count) / 0.1 * (
            (0.1 * w.rate_hz / (w.decimation * w.fast.count)) ** 1.5)
    if w.slow_n >= count:
        fit_apply(&w.slow500, &w.slow_h[w.slow_at], &slope, &curve, &middle)
        e.frequency_500 = w.lo_hz + slope * per_second
        e.rocof_500 = 2 * curve * per_second * per_second


cdef int waveform_push(Waveform *w, double a, double b, double c) noexcept nogil:
    """One sample of each phase (volts; b and c are ignored with one phase). Returns 1 where ``now`` is new."""
    cdef double re, im, alpha, beta
    cdef int64_t ire, iim
    cdef int lo = w.lo
    if w.phases == 3:
        # Stuck only where nothing moves; a rail is one phase's.
        if a == w.last_a and b == w.last_b and c == w.last_c:
            w.same += 1
        else:
            w.same = 0
        if not (fabs(a) < w.rail and fabs(b) < w.rail and fabs(c) < w.rail):
            w.railed += 2
            if not (fabs(a) < 1e12 and fabs(b) < 1e12 and fabs(c) < 1e12):
                a = b = c = 0
                w.railed += w.railed_limit
        elif w.railed > 0:
            w.railed -= 1
        w.last_b = b
        w.last_c = c
        alpha = (2 * a - b - c) * (1.0 / 3)
        beta = (b - c) * 0.57735026918962576
        re = alpha * w.lo_cos[lo] + beta * w.lo_sin[lo]
        im = beta * w.lo_cos[lo] - alpha * w.lo_sin[lo]
    else:
        if a == w.last_a:
            w.same += 1
        else:
            w.same = 0
        if not fabs(a) < w.rail:
            w.railed += 2
            if not fabs(a) < 1e12:
                a = 0
                w.railed += w.railed_limit
        elif w.railed > 0:
            w.railed -= 1
        re = a * w.lo_cos[lo]
        im = -a * w.lo_sin[lo]
    w.last_a = a
    if w.same >= w.stuck_limit:
        waveform_bad(w, STUCK)
    elif w.railed > w.railed_limit:
        w.railed = w.railed_limit + 1
        waveform_bad(w, RAILED)
    re *= w.gain
    im *= w.gain
    if not (fabs(re) < 1e12 and fabs(im) < 1e12):
        re = im = 0
        waveform_bad(w, RAILED)
    ire = <int64_t>re
    iim = <int64_t>im
    w.lo = lo + 1 if lo + 1 < w.n else 0
    w.s1re += ire - w.z1re[w.p1]
    w.s1im += iim - w.z1im[w.p1]
    w.z1re[w.p1] = ire
    w.z1im[w.p1] = iim
    w.p1 = w.p1 + 1 if w.p1 + 1 < w.n1 else 0
    w.s2re += w.s1re - w.z2re[w.p2]
    w.s2im += w.s1im - w.z2im[w.p2]
    w.z2re[w.p2] = w.s1re
    w.z2im[w.p2] = w.s1im
    w.p2 = w.p2 + 1 if w.p2 + 1 < w.n2 else 0
    w.countdown -= 1
    if w.countdown == 0:
        w.countdown = w.decimation
        waveform_estimate(w, lo)
        w.index += 1
        return 1
    w.index += 1
    return 0


# -- a meter's register


cdef void register_setup(Register *r, double nominal_hz, double nominal_v, int64_t declared_ns) noexcept:
    memset(r, 0, sizeof(Register))
    r.nominal_hz = nominal_hz
    r.nominal_v = nominal_v
    r.widest_hz = 10.0
    r.fastest_rocof = 20.0
    r.low_pu = 0.3
    r.declared_ns = declared_ns
    r.refresh_ns = declared_ns
    r.stale_ns = 10 * declared_ns if 10 * declared_ns > NS // 5 else NS // 5
    r.frozen_ns = 20 * declared_ns if 20 * declared_ns > 10 * <int64_t>NS else 10 * <int64_t>NS
    r.now.cause = WARMING_UP
    r.now.frequency_hz = r.now.rocof = r.now.frequency_100 = r.now.rocof_100 = NAN
    r.now.frequency_500 = r.now.rocof_500 = r.now.voltage_v = r.now.voltage_pu = r.now.sigma_hz = NAN


cdef void register_bad(Register *r, int cause) noexcept nogil:
    """Nothing is known, and nothing of what was known is carried over."""
    r.now.cause = cause
    r.count = 0
    r.suspect = 0
    r.now.frequency_hz = r.now.rocof = r.now.frequency_100 = r.now.rocof_100 = NAN
    r.now.frequency_500 = r.now.rocof_500 = r.now.sigma_hz = NAN


cdef void register_learn(Register *r, int64_t interval) noexcept nogil:
    """The refresh period: the second shortest of the last 16 times between changes (one may be a poll's jitter)."""
    cdef int i
    cdef int64_t one = 0x7fffffffffffffff, two = 0x7fffffffffffffff, v
    r.intervals[r.interval_at] = interval
    r.interval_at = (r.interval_at + 1) & 15
    if r.interval_n < 16:
        r.interval_n += 1
    if r.interval_n < 3:
        return
    for i in range(r.interval_n):
        v = r.intervals[i]
        if v < one:
            two = one
            one = v
        elif v < two:
            two = v
    r.refresh_ns = two
    r.stale_ns = 10 * two if 10 * two > NS // 5 else NS // 5
    r.frozen_ns = 20 * two if 20 * two > 10 * <int64_t>NS else 10 * <int64_t>NS


cdef int line_fit(Register *r, int64_t window, double *at_end, double *slope, double *residual) noexcept nogil:
    """Least squares on the samples' own times within a window that ends at the newest; how many there were."""
    cdef int i, n = 0
    cdef int64_t newest = r.times[r.count - 1]
    cdef double x, y, sx = 0, sy = 0, sxx = 0, sxy = 0, spread, sum2 = 0, base = r.values[r.count - 1], low = 0, high = 0
    for i in range(r.count - 1, -1, -1):
        if newest - r.times[i] > window:
            break
        x = <double>(r.times[i] - newest) * 1e-9
        y = r.values[i] - base
        low = y if y < low else low
        high = y if y > high else high
        n += 1
        sx += x
        sy += y
        sxx += x * x
        sxy += x * y
    spread = n * sxx - sx * sx
    if n < 3 or spread < 1e-12:
        at_end[0] = base
        slope[0] = NAN
        residual[0] = NAN
        return n
    slope[0] = (n * sxy - sx * sy) / spread
    at_end[0] = (sy - slope[0] * sx) / n
    for i in range(r.count - n, r.count):
        x = <double>(r.times[i] - newest) * 1e-9
        y = r.values[i] - base - at_end[0] - slope[0] * x
        sum2 += y * y
    # On a step a line overshoots; the frequency was never beyond its samples.
    at_end[0] = low if at_end[0] < low else high if at_end[0] > high else at_end[0]
    at_end[0] += base
    residual[0] = sqrt(sum2 / n)
    return n


cdef int register_push(Register *r, int64_t t, int answered, const double *values, int watched) noexcept nogil:
    """One poll at ``t``, the middle of its round trip; ``values`` are the frequency, then volts, then whatever else changes.

    Returns 1 where there is a new sample; validity may change without one.
    """
    cdef int i, changed = 0
    cdef double f, volts, width
    cdef Estimate *e = &r.now
    if r.last_poll_ns and t < r.last_poll_ns:
        register_bad(r, TIME_BACK)
        r.started = 0
        r.interval_n = 0
        r.last_poll_ns = t
        r.last_answer_ns = t
        return 0
    r.last_poll_ns = t
    if not answered:
        if not r.last_answer_ns or t - r.last_answer_ns > r.stale_ns:
            register_bad(r, NO_ANSWER)
        return 0
    r.last_answer_ns = t
    for i in range(watched):
        if not r.started or not (values[i] == r.last[i] or (isnan(values[i]) and isnan(r.last[i]))):
            changed = 1
        r.last[i] = values[i]
    if changed:
        if r.started and r.last_change_ns:
            register_learn(r, t - r.last_change_ns)
        r.last_change_ns = t
    elif t - r.last_change_ns > r.frozen_ns:
        register_bad(r, STUCK)
        return 0
    elif not r.refresh_ns or t - r.last_sample_ns < r.refresh_ns + (r.refresh_ns >> 2):
        r.repeats += 1  # the register cannot have been renewed yet: no news, and not one more sample of the same
        return 0
    r.started = 1
    f = values[0]
    volts = values[1] if watched > 1 else NAN
    e.time_ns = e.made_ns = t  # also of a voltage without a frequency
    e.voltage_v = volts
    e.voltage_pu = NAN
    if watched > 1:
        if r.nominal_v > 0:
            e.voltage_pu = volts / r.nominal_v
            r.low = not e.voltage_pu >= (r.low_pu * 1.1 if r.low else r.low_pu)
        else:
            # Without a nominal voltage its own level of the last minute is the measure; a dead meter shows either way.
            if r.reference_v == 0 and volts > 1.0:
                r.reference_v = volts
            r.low = not volts > 1.0 or volts < r.reference_v * (r.low_pu * 1.1 if r.low else r.low_pu)
            if not r.low:
                width = <double>(t - r.last_sample_ns) / (60.0 * NS)
                r.reference_v += (volts - r.reference_v) * (width if width < 0.5 else 0.5)
        if r.low:
            register_bad(r, LOW_VOLTAGE)
            return 0
    if not isfinite(f) or fabs(f - r.nominal_hz) > r.widest_hz:
        register_bad(r, OUT_OF_RANGE)
        return 0
    if r.count and t > r.times[r.count - 1]:
        # A value that no grid can reach in the time is kept apart until a second one agrees with it.
        width = 0.3 + r.fastest_rocof * <double>(t - r.times[r.count - 1]) * 1e-9
        if fabs(f - r.values[r.count - 1]) > width:
            if not r.suspect or fabs(f - r.suspect_hz) > width:
                r.suspect = 1
                r.suspect_hz = f
                r.last_sample_ns = t
                if t - r.times[r.count - 1] > r.stale_ns + 2 * r.refresh_ns:
                    register_bad(r, OUT_OF_RANGE)
                return 0
            r.count = 0
    r.suspect = 0
    if r.count == MAX_REGISTER:
        for i in range(MAX_REGISTER - 1):
            r.times[i] = r.times[i + 1]
            r.values[i] = r.values[i + 1]
        r.count = MAX_REGISTER - 1
    r.times[r.count] = t
    r.values[r.count] = f
    r.count += 1
    r.last_sample_ns = t
    e.delay_ns = r.refresh_ns
    line_fit(r, 5 * <int64_t>(NS // 10), &e.frequency_500, &e.rocof_500, &e.sigma_hz)
    line_fit(r, NS // 10, &e.frequency_100, &e.rocof_100, &e.sigma_hz)
    e.frequency_hz = e.frequency_100
    e.rocof = e.rocof_500
    e.cause = VALID
    return 1


# -- for tests, benchmarks and replays

FIELDS = ("time_ns", "made_ns", "frequency_hz", "rocof", "frequency_100", "rocof_100", "frequency_500", "rocof_500",
          "voltage_v", "voltage_pu", "sigma_hz", "phase_turns", "step_deg", "cause", "report_ns", "frequency_report",
          "rocof_report", "steps")


cdef void row_of(const Estimate *e, double *row) noexcept nogil:
    row[0] = <double>e.time_ns
    row[1] = <double>e.made_ns
    row[2] = e.frequency_hz
    row[3] = e.rocof
    row[4] = e.frequency_100
    row[5] = e.rocof_100
    row[6] = e.frequency_500
    row[7] = e.rocof_500
    row[8] = e.voltage_v
    row[9] = e.voltage_pu
    row[10] = e.sigma_hz
    row[11] = e.phase_turns
    row[12] = e.step_deg
    row[13] = e.cause
    row[14] = <double>e.report_ns
    row[15] = e.frequency_report
    row[16] = e.rocof_report
    row[17] = <double>e.steps


cdef class WaveformEstimator:
    """See estimators.pyi."""

    cdef Waveform w

    def __init__(self, double rate_hz, double nominal_hz, int phases=3, *, bint m_class=False, double nominal_v=0.0,
                 double rail=0.0, bint guarded=True, double report_hz=0.0):
        if phases not in (1, 3):
            raise ValueError("phases must be 1 or 3")
        if waveform_setup(&self.w, rate_hz, nominal_hz, phases, m_class, nominal_v, rail, 1000.0, guarded, report_hz):
            raise ValueError(f"{rate_hz:g} S/s gives no usable number of samples a cycle at {nominal_hz:g} Hz (6 to "
                             f"{MAX_CYCLE - 1})")

    @property
    def delay_s(self):
        return self.w.delay_samples / self.w.rate_hz

    @property
    def decimation(self):
        return self.w.decimation

    def push(self, const double[::1] samples):
        cdef Py_ssize_t step = self.w.phases, i, n = samples.shape[0] // self.w.phases
        cdef double[::1] rows
        cdef Py_ssize_t at = 0
        out = array("d", bytes(8 * FIELD_COUNT * (n // self.w.decimation + 2)))
        rows = out
        with nogil:
            for i in range(n):
                if waveform_push(&self.w, samples[i * step], samples[i * step + (1 if step == 3 else 0)],
                                 samples[i * step + (2 if step == 3 else 0)]):
                    row_of(&self.w.now, &rows[at])
                    at += FIELD_COUNT
        rows = None
        del out[at:]
        return out

    def run(self, const double[::1] samples):
        cdef Py_ssize_t step = self.w.phases, i, n = samples.shape[0] // self.w.phases
        cdef Py_ssize_t made = 0
        with nogil:
            if step == 3:
                for i in range(n):
                    made += waveform_push(&self.w, samples[3 * i], samples[3 * i + 1], samples[3 * i + 2])
            else:
                for i in range(n):
                    made += waveform_push(&self.w, samples[i], 0, 0)
        return made

    def gap(self):
        waveform_bad(&self.w, GAP)


cdef class RegisterEstimator:
    """See estimators.pyi."""

    cdef Register r

    def __init__(self, double nominal_hz, double nominal_v=0.0, int64_t refresh_ns=0):
        register_setup(&self.r, nominal_hz, nominal_v, refresh_ns)

    def push(self, int64_t time_ns, values):
        cdef double[5] content
        cdef int i, n = 0
        cdef double[FIELD_COUNT] row
        cdef int fresh
        if values is None:
            fresh = register_push(&self.r, time_ns, 0, content, 0)
        else:
            n = len(values)
            if n < 1 or n > WATCHED + 1:
                raise ValueError(f"1 to {WATCHED + 1} values, not {n}")
            for i in range(n):
                content[i] = values[i]
            fresh = register_push(&self.r, time_ns, 1, content, n)
        row_of(&self.r.now, row)
        return bool(fresh), [row[i] for i in range(FIELD_COUNT)]

    @property
    def refresh_ns(self):
        return self.r.refresh_ns
