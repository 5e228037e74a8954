"""The command ``wattmesh``: finds a component's sub-command by entry point and imports only that component."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

from wattmesh_a2a.errors import WattmeshError


def main() -> int:
    """Run ``wattmesh SUB-COMMAND …``; a mistake of the user is one line on standard error and exit code 2."""
    commands = {entry.name: entry for entry in entry_points(group="wattmesh.commands")}
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in {"-h", "--help"}:
        print("usage: wattmesh COMMAND …\n\ncommands: " + ", ".join(sorted(commands)))
        return 0 if arguments else 2
    entry = commands.get(arguments[0])
    if entry is None:
        print(
            f"wattmesh: there is no command {arguments[0]!r}; there are: {', '.join(sorted(commands))}", file=sys.stderr
        )
        return 2
    try:
        return int(entry.load()(arguments[1:]))
    except WattmeshError as error:
        print(f"wattmesh {arguments[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
