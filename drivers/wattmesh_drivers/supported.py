"""The table of supported devices (``docs/devices.md``), made from the templates and the recordings.

``python -m wattmesh_drivers.supported RECORDINGS`` prints the page.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from wattmesh_drivers.recording import header_of
from wattmesh_drivers.template import Template, load_template, template_ids

_GRADES = {
    "hardware": "recorded on hardware",
    "peer": "read from independent software",
    "simulated": "read from our simulation",
    "": "from documents",
}


def grades(recordings: Path) -> dict[str, str]:
    """Template → the best grade of its recordings; raises ConfigurationError where one of them is none."""
    best: dict[str, str] = {}
    order = list(_GRADES)
    for path in sorted(recordings.glob("*.jsonl")):
        header = header_of(path)
        known = best.get(header["template"], "")
        best[header["template"]] = min(known, header["grade"], key=order.index)
    return best


def _controls(template: Template) -> str:
    shown = []
    for name, control in template.controls.items():
        notes = []
        if control.watchdog is not None:
            notes.append(f"falls back after {control.watchdog.seconds:g} s")
        if control.storage == "flash":
            notes.append(f"at most {control.writes_per_day} writes a day")
        shown.append(f"`{name}`" + (f" ({', '.join(notes)})" if notes else ""))
    return ", ".join(shown) or "–"


def table(known: Mapping[str, str] | None = None) -> str:
    """Markdown, a row a template.

    Args:
        known: Template → grade; none leaves all at "from documents".
    """
    rows: list[Sequence[str]] = []
    for name in template_ids():
        template = load_template(name)
        protocol = {"modbus": "Modbus", "sunspec": "SunSpec", "opcua": "OPC UA"}[template.protocol]
        rows.append(
            (
                f"`{name}`",
                str(template.kind),
                template.manufacturer,
                "; ".join(template.products),
                protocol,
                str(len(template.points)),
                _controls(template),
                _GRADES[(known or {}).get(name, "")],
            )
        )
    head = ("template", "kind", "manufacturer", "products", "speaks", "points", "controls", "checked")
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(recordings: Path) -> str:
    """The whole of ``docs/devices.md``."""
    return (
        "# Supported devices\n\n"
        "Made by `python -m wattmesh_drivers.supported tests/recordings/devices > docs/devices.md`; a test holds it in step.\n"
        "A template of your own is a YAML file: name its path where a template's name goes; `firmware_configs/device.schema.json`\n"
        'tells your editor its words. "Checked" says how far a map has been proven; send a recording\n'
        "(`wattmesh device record`) of your device and it becomes a test.\n\n"
        f"{table(grades(recordings))}\n\n"
        "## Caveats\n\n"
        + "\n".join(
            f"- `{name}`: {' '.join(template.caveats)}"
            for name in template_ids()
            if (template := load_template(name)).caveats
        )
        + "\n"
    )


if __name__ == "__main__":
    sys.stdout.write(page(Path(sys.argv[1])))
