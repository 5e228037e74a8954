"""Frequency estimators as plain structures: no pointer inside, so that a copy of one is the whole state (see kernel.pyx)."""

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    MAX_CYCLE = 1024   # samples in a cycle: 51.2 kS/s at 50 Hz
    MAX_FIT = 80       # points of the report's fit
    MAX_SLOW = 64      # points of the 500 ms fit
    MAX_FIR = 512      # taps of the M-class filter
    MAX_REGISTER = 64  # samples of a register kept
    WATCHED = 4        # values read beside the frequency of a register

cdef enum:       # why a measurement is (in)valid; names in __init__.py, in this order
    VALID
    WARMING_UP
    NO_ANSWER
    OUT_OF_RANGE
    LOW_VOLTAGE
    PHASE_STEP
    GAP
    STUCK
    RAILED
    TIME_BACK
    RATE_CHANGED
    SOURCE_BAD

cdef struct Estimate:
    int64_t time_ns      # what the fast estimate refers to
    int64_t made_ns      # the newest sample in it
    double frequency_hz
    double rocof         # of the fast fit, Hz/s
    int64_t report_ns    # what the report's fit refers to: 33 ms late at most, longer and so quieter than the fast one
    double frequency_report
    double rocof_report
    double frequency_100
    double rocof_100
    double frequency_500
    double rocof_500
    double voltage_v     # rms of the fundamental, phase to neutral
    double voltage_pu
    double sigma_hz
    double phase_turns   # of the fundamental against cos at nominal/LO frequency, at time_ns
    double step_deg      # the last phase step
    int64_t steps        # how many there were
    int64_t delay_ns
    int cause

cdef struct Fit:
    int count
    double slope[MAX_FIT]
    double curve[MAX_FIT]
    double centre        # Σ of the square weights' polynomial at the middle, for the value there

cdef struct Waveform:
    # settings
    int phases
    int n, n1, n2, decimation, guarded, fir
    double rate_hz, lo_hz, nominal_hz, ns_per_sample, gain, nominal_v, rail, low_pu
    double delay_samples, guard_turns
    double lo_cos[MAX_CYCLE]
    double lo_sin[MAX_CYCLE]
    double taps[MAX_FIR]
    double fir_f, fir_h
    Fit fast, report, slow100, slow500
    int slow_every, stuck_limit, railed_limit
    # filters
    int64_t index, epoch_ns
    int lo, p1, p2
    int64_t s1re, s1im, s2re, s2im
    int64_t z1re[MAX_CYCLE]
    int64_t z1im[MAX_CYCLE]
    int64_t z2re[MAX_CYCLE]
    int64_t z2im[MAX_CYCLE]
    int fir_at
    double fir_re[2 * MAX_FIR]
    double fir_im[2 * MAX_FIR]
    int countdown, report_countdown
    # phase history, 2**40 a turn, modulo 2**64
    int64_t raw_turns, turns
    int fast_at, slow_at, slow_n, slow_countdown
    int64_t fast_h[2 * MAX_FIT]
    int64_t slow_h[2 * MAX_SLOW]
    double level_h[2 * MAX_FIT]  # beside fast_h, so that the voltage is of the estimate's own time
    # validity
    int64_t clean_from    # index from which on all samples count
    int bad_cause
    int acquired          # valid at least once since clean_from
    int same, railed
    double last_a, last_b, last_c
    double reference_v
    int low
    # guard against phase steps
    int64_t held_from, held_until
    double before_turns, before_slope
    int64_t before_index
    double older_turns, older_slope
    int64_t older_index
    double image_f, image_r1, image_r2, image_h1, image_h2
    Estimate now

cdef struct Register:
    double nominal_hz, widest_hz, fastest_rocof, low_pu, nominal_v
    int64_t stale_ns, frozen_ns, declared_ns
    int64_t times[MAX_REGISTER]
    double values[MAX_REGISTER]
    int count
    double last[WATCHED + 1]
    int watched
    int started
    int64_t last_change_ns, last_poll_ns, last_answer_ns, last_sample_ns
    int64_t intervals[16]
    int interval_at, interval_n
    int64_t refresh_ns
    double suspect_hz
    int suspect
    int low
    double reference_v    # the level that is followed where no nominal voltage is known
    int64_t repeats
    Estimate now

cdef int waveform_setup(Waveform *w, double rate_hz, double nominal_hz, int phases, int m_class, double nominal_v,
                        double rail, double unit_v, int guarded, double report_hz) noexcept
cdef int waveform_push(Waveform *w, double a, double b, double c) noexcept nogil
cdef void waveform_bad(Waveform *w, int cause) noexcept nogil

cdef void register_setup(Register *r, double nominal_hz, double nominal_v, int64_t declared_ns) noexcept
cdef int register_push(Register *r, int64_t t, int answered, const double *values, int watched) noexcept nogil
