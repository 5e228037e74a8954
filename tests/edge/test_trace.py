"""For any moment: what was decided, by whom, and what came of it."""

import sqlite3

from wattmesh_a2a.control import Decision
from wattmesh_edge.trace import KEEP_NS, DecisionTrace, why

S = 10**9


def decision(second, target, by="plan", limit=None):
    return Decision(
        asset_id="battery", time_ns=second * S, target_w=target, decided_by=by, limited_by=limit, requested_w=target - 100,
        remaining_w=-100.0 if limit else 0.0,
    )  # fmt: skip


def test_why_finds_the_decision_in_force(tmp_path):
    path = tmp_path / "g.sqlite"
    trace = DecisionTrace(sqlite3.connect(path))
    assert trace.note(decision(100, -500), "Applied")
    assert not trace.note(decision(101, -510), "Applied"), "hardly another one"
    assert trace.note(decision(110, -900, limit="connection limit"), "Applied")
    assert trace.note(decision(120, -900, limit="connection limit"), "Failed")
    assert not trace.note(decision(121, -900, limit="connection limit"), "Failed"), "a failure is said once"
    assert trace.note(decision(130, -900, limit="connection limit"), "Applied"), "and its end once"
    trace.commit()
    assert why(path, 99 * S) == []
    assert why(path, 109 * S) == ["battery: -500 W by plan, for 9 s (Applied)"]
    assert "connection limit left -100 W unmet" in why(path, 115 * S)[0]
    assert "(Failed)" in why(path, 125 * S)[0]
    assert "(Applied)" in why(path, 131 * S)[0]
    trace.prune(KEEP_NS + 115 * S)
    trace.commit()
    assert why(path, 112 * S) == []
