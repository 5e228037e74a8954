"""The kernel's estimate and its interpreted twin's are the same, whatever comes in."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_edge.reflex import CAUSES
from wattmesh_edge.reflex.estimator import RegisterEstimator
from wattmesh_edge.reflex.kernel import Kernel

ENDPOINT = {
    "host": "127.0.0.1", "port": 1, "unit": 1, "function": 4, "address": 0, "type": "f32", "word_order": "big",
    "scale": 1.0, "sign": 1,
}  # fmt: skip
value = st.one_of(st.none(), st.floats(58, 62), st.sampled_from([0.0, 49.0, 71.0, float("nan"), float("inf")]))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(5, 300), value), min_size=1, max_size=90))
def test_kernel_and_twin_agree(samples):
    kernel = Kernel(
        ENDPOINT, None, period_ns=20_000_000, nominal_hz=60.0, low_hz=59.8, high_hz=60.2, exit_hz=0.02,
        debounce_ns=60_000_000, dead_band_hz=0.036, droop=0.05, rated_w=0.0,
    )  # fmt: skip
    twin, now = RegisterEstimator(60.0), 10**12
    for gap_ms, sample in samples:
        now += gap_ms * 1_000_000
        kernel.feed(now, sample)
        estimate = twin.update(now, sample)
        snapshot = kernel.snapshot()
        assert CAUSES[snapshot["cause"]] == estimate.cause
        assert snapshot["frequency_hz"] == estimate.frequency_hz
        if estimate.rocof_hz_per_s is None:
            assert snapshot["rocof_hz_per_s"] is None
        else:
            assert snapshot["rocof_hz_per_s"] == pytest.approx(estimate.rocof_hz_per_s, abs=1e-6)
