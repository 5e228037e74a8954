"""The block plan is as cheap as any: against every possible grouping."""

from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_drivers.modbus.plan import Span, plan_blocks

spans = st.lists(
    st.tuples(st.integers(0, 200), st.integers(1, 4)).map(lambda p: Span(function=3, start=p[0], end=p[0] + p[1])),
    min_size=1,
    max_size=7,
)


def cheapest(ordered, limit, cost):
    """By trying every way of cutting the ordered spans."""
    if not ordered:
        return 0.0
    best = float("inf")
    for size in range(1, len(ordered) + 1):
        start, end = ordered[0].start, max(span.end for span in ordered[:size])
        if end - start <= limit:
            best = min(best, cost + end - start + cheapest(ordered[size:], limit, cost))
    return best


@settings(max_examples=400, deadline=None)
@given(spans, st.integers(4, 60), st.sampled_from([1.0, 20.0, 80.0]))
def test_the_plan_is_optimal_and_covers_every_span(members, limit, cost):
    blocks = plan_blocks(members, limit, request_cost=cost)
    for span in members:
        assert any(block.start <= span.start and span.end <= block.start + block.count for block in blocks)
    assert all(block.count <= limit for block in blocks)
    ordered = sorted(members, key=lambda span: (span.start, span.end))
    assert sum(cost + block.count for block in blocks) <= cheapest(ordered, limit, cost) + 1e-9


def test_no_block_crosses_a_register_that_the_device_refuses():
    members = [Span(function=3, start=at, end=at + 1) for at in (0, 5, 10)]
    assert len(plan_blocks(members, 100)) == 1
    blocks = plan_blocks(members, 100, barriers=frozenset({7}))
    assert [(block.start, block.count) for block in blocks] == [(0, 6), (10, 1)]
