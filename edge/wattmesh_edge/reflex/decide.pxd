"""From estimates to events and setpoints, as plain structures (see estimators.pxd)."""

from libc.stdint cimport int64_t

from wattmesh_edge.reflex.estimators cimport Estimate

cdef enum:
    POINTS = 12
    BLOCKS = 4
    TRIPS = 12
    WATCHES = 5
    KINDS = 9

cdef enum:          # in the order of KINDS in __init__.py
    UNDER_FREQUENCY
    OVER_FREQUENCY
    ROCOF
    UNDER_VOLTAGE
    OVER_VOLTAGE
    INVALID
    PHASE_STEP_SEEN
    ISLANDING
    TRIPPED

cdef struct Event:
    int kind
    int cause            # of INVALID
    int64_t number
    int64_t start_ns     # the quantity's own time
    int64_t end_ns       # 0 while under way
    int64_t sample_ns    # receipt of the sample that was first answered
    int64_t write_ns     # when those bytes had gone out; 0 where nothing was written
    double extreme_hz
    double extreme_rocof
    double extreme_pu
    double step_deg
    double response_w

cdef struct Watch:
    int kind, over, beyond, active
    double enter, leave
    int64_t debounce_ns, since_ns, since_own_ns

cdef struct Block:
    double trigger_hz, power_pu, recovery_pu_per_s
    int64_t confirm_ns, hold_ns, rearm_ns
    int state            # 0 armed, 1 confirming, 2 holding, 3 recovering, 4 waiting to be armed again
    int64_t since_ns
    double now_pu

cdef struct Trip:
    int voltage, over, running
    double threshold
    int64_t after_ns, since_ns

cdef struct Limits:
    double baseline_w
    double min_w
    double max_w
    double safe_w
    double out_wh        # what may still be discharged and charged from this moment on
    double in_wh
    int64_t time_ns      # 0: nothing published yet

cdef struct Decider:
    # settings
    double nominal_hz, rated_w, min_change_w
    int responds, knows_voltage
    int inhibited         # measures, but too slowly to begin a response
    int64_t spacing_ns    # between samples of a register; 0 for a waveform
    int points
    double deviation_hz[POINTS]
    double share_pu[POINTS]
    double tau_s, ramp_pu_per_s, recovery_pu_per_s, return_pu_per_s
    int64_t delay_ns, invalid_hold_ns, invalid_event_ns, limits_age_ns, min_interval_ns, settle_ns
    int block_count, trip_count
    Block blocks[BLOCKS]
    Trip trips[TRIPS]
    double island_deg
    int64_t island_ns
    double enter_low_hz, enter_high_hz, enter_low_pu, enter_high_pu
    int64_t enter_after_ns, enter_ramp_ns
    # state
    Watch watches[WATCHES]
    Event open[KINDS]
    int is_open[KINDS]
    int64_t numbers
    int64_t steps_seen, step_ns
    int was_valid
    int64_t invalid_since_ns, valid_since_ns
    int64_t last_ns
    int64_t outside_since_ns
    double continuous_pu
    int tripped           # 0 in service, 1 waiting, 2 ramping
    int64_t enter_since_ns
    int returning
    int fallen            # 0, or 1: at the safe setpoint as the measurement or the limits are gone
    double baseline_w
    int64_t sampled_ns
    double target_w       # wanted now, before the smallest change
    double delta_pu
    int responding
    int has_written
    double written_w
    int64_t written_ns
    double charged_wh     # since the limits were published
    int64_t limits_ns
    # what was finished by the last step
    int finished_count
    Event finished[KINDS * 2]

cdef void decide_setup(Decider *d, double nominal_hz) noexcept
cdef int decide_step(Decider *d, const Estimate *e, int64_t now, const Limits *limits, double *wanted) noexcept nogil
cdef void decide_wrote(Decider *d, double value, int64_t sampled, int64_t written) noexcept nogil
cdef void decide_end(Decider *d, int64_t now) noexcept nogil
