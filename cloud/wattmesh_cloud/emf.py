"""Figures for CloudWatch in its embedded metric format, under the names that Prometheus and the console know.

One line of JSON a set of labels; an agent (or Lambda) ships the lines as log events and CloudWatch makes metrics of them
(CloudWatch user guide, "Specification: Embedded metric format"). Counters are told as what they grew by since the last time.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_AT_ONCE = 100
"""Metrics of one line, at most."""
_MOST_BYTES = 20_000_000

Labels = tuple[tuple[str, str], ...]


def emf_line(namespace: str, time_ns: int, labels: Labels, values: Mapping[str, float]) -> str:
    """One event: metrics that share their labels, at most a hundred."""
    directive = {
        "Namespace": namespace,
        "Dimensions": [[name for name, _ in labels]],
        "Metrics": [{"Name": n} for n in values],
    }
    head = {"Timestamp": time_ns // 1_000_000, "CloudWatchMetrics": [directive]}
    return json.dumps({"_aws": head, **dict(labels), **values}, separators=(",", ":"))


class EmfLog:
    """Appends figures to a file that an agent tails; a full file is moved aside once (``.1``).

    Args:
        path: The file; its folder is made.
        namespace: In CloudWatch.
    """

    def __init__(self, path: Path, namespace: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._namespace = path, namespace
        self._before: dict[tuple[str, Labels], float] = {}

    def lines(self, text: str, time_ns: int) -> list[str]:
        """The events of Prometheus's text."""
        groups: dict[Labels, dict[str, float]] = defaultdict(dict)
        for line in text.splitlines():
            found = _SAMPLE.match(line)
            if found is None:
                continue
            name, given, number = found.groups()
            labels = tuple((key, value.replace('\\"', '"')) for key, value in _LABEL.findall(given or ""))
            value = float(number)
            if name.endswith("_total"):
                grown = value - self._before.get((name, labels), 0.0)
                self._before[name, labels] = value
                value = value if grown < 0 else grown  # it began anew
            groups[labels][name] = value
        made = []
        for labels, values in groups.items():
            names = list(values)
            for at in range(0, len(names), _AT_ONCE):
                part = {name: values[name] for name in names[at : at + _AT_ONCE]}
                made.append(emf_line(self._namespace, time_ns, labels, part))
        return made

    def write(self, text: str, time_ns: int) -> None:
        """Append the events of Prometheus's text; raises ``OSError``."""
        content = "".join(f"{line}\n" for line in self.lines(text, time_ns))
        if self._path.exists() and self._path.stat().st_size + len(content) > _MOST_BYTES:
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(content)
