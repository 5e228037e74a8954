"""The audit log: what was changed, taken out, put in, moved or cut is found."""

import json

import pytest
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_cloud.audit import AuditLog, verify


@pytest.fixture(params=[None, b"key"])
def written(request, tmp_path):
    path = tmp_path / "audit.log"
    log = AuditLog(path, request.param)
    for number in range(5):
        log.write(number, "operator:ann", "market.halt", "done", {"reason": f"r{number}", "long": "x" * 9000})
    anchor = log.anchor()
    log.close()
    return path, request.param, anchor


def test_a_whole_log_goes_on_after_a_restart_and_a_torn_end(written):
    path, key, anchor = written
    assert verify(path.read_bytes(), key, anchor).fault is None
    with path.open("ab") as file:
        file.write(b'{"sequence": 5, "torn')
    log = AuditLog(path, key)
    log.write(9, "site:home-1", "telemetry", "refused")
    assert log.anchor()["entries"] == 6
    log.close()
    assert verify(path.read_bytes(), key, anchor).fault is None
    assert all(len(line) < 2000 for line in path.read_text().splitlines())


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda lines: [*lines[:2], lines[2].replace(b"r2", b"rX"), *lines[3:]], "entry 2 was changed"),
        (lambda lines: [*lines[:2], *lines[3:]], "entry 2 does not follow"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "entry 0 does not follow"),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], "entry 3 does not follow"),
        (lambda lines: lines[:4], "missing at the end"),
        (lambda lines: [], "missing at the end"),
        (lambda lines: [*lines, b"not json"], "entry 5 cannot be read"),
        (lambda lines: [*lines, b"[]"], "entry 5 cannot be read"),
    ],
)
def test_every_change_is_found(written, change, fault):
    path, key, anchor = written
    content = b"\n".join(change(path.read_bytes().splitlines()))
    assert fault in verify(content, key, anchor).fault


def test_who_has_no_key_cannot_make_a_chain_anew(tmp_path):
    forged = AuditLog(tmp_path / "forged.log")
    forged.write(1, "operator:eve", "market.resume", "done")
    forged.close()
    assert verify((tmp_path / "forged.log").read_bytes(), b"key").fault == "entry 0 was changed"


def test_a_changed_log_is_not_written_on(written):
    path, key, _ = written
    lines = path.read_bytes().splitlines(keepends=True)
    entry = json.loads(lines[1])
    lines[1] = json.dumps({**entry, "actor": "nobody"}).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(ConfigurationError, match="evidence"):
        AuditLog(path, key)
