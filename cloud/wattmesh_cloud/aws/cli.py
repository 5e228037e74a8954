"""``wattmesh aws plan|deploy|status|destroy|keys|cost|invoke FILE``."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from wattmesh_a2a.errors import ConfigurationError

from wattmesh_cloud.aws.cost import fixed_month, fleet_month, site_month
from wattmesh_cloud.aws.deployment import DeploymentModel, load_deployment

if TYPE_CHECKING:  # it needs boto3
    from wattmesh_cloud.aws.deploy import Deployment


def aws(argv: list[str]) -> int:
    """A deployment in the account of the environment's credentials."""
    parser = argparse.ArgumentParser(
        prog="wattmesh aws", description="Deploy to AWS: planned first, confirmed, looked for."
    )
    parser.add_argument("action", choices=("plan", "deploy", "status", "destroy", "keys", "cost", "invoke"))
    parser.add_argument("file", type=Path, help="the deployment's file")
    parser.add_argument("folder", type=Path, nargs="?", help="keys: the folder of SITE.key files")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--with-data", action="store_true", help="destroy: the tables and the lake as well, for ever")
    parser.add_argument(
        "--agent", help="invoke: market-supervisor, grid-optimisation, forecasting, producer or consumer"
    )
    parser.add_argument("--payload", type=Path, help="invoke: a file with the JSON object that its entry point takes")
    arguments = parser.parse_args(argv)
    if arguments.action == "invoke" and (arguments.agent is None or arguments.payload is None):
        parser.error("invoke needs --agent and --payload")
    if arguments.action == "keys" and arguments.folder is None:
        parser.error("keys needs the folder of SITE.key files")
    model = load_deployment(arguments.file)
    if arguments.action == "cost":
        print(costs(model))
        return 0
    try:
        from wattmesh_cloud.aws.deploy import Deployment
    except ModuleNotFoundError as error:
        if error.name not in {"boto3", "botocore"}:
            raise
        print("wattmesh aws needs boto3: pip install 'wattmesh[aws]'", file=sys.stderr)
        return 2
    from wattmesh_a2a.clock import SystemClock

    deployment = Deployment(model, SystemClock())
    match arguments.action:
        case "plan":
            print(planned(deployment, model))
            return 0
        case "deploy":
            return deployed(deployment, model, yes=arguments.yes)
        case "status":
            return told(deployment)
        case "invoke":
            print(
                json.dumps(deployment.invoke(arguments.agent, payload_of(arguments.payload)), indent=2, sort_keys=True)
            )
            return 0
        case "keys":
            from wattmesh_a2a.signing import read_key

            found = {path.stem: read_key(path).hex() for path in sorted(arguments.folder.glob("*.key"))}
            deployment.put_keys(found)
            print(f"{len(found)} keys are where the telemetry function reads them")
            return 0
        case _:
            return destroyed(deployment, model, yes=arguments.yes, with_data=arguments.with_data)


def payload_of(path: Path) -> dict[str, object]:
    """A file's JSON object; raises :class:`ConfigurationError` where it holds none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{path} holds no JSON object")
    return found


def costs(model: DeploymentModel) -> str:
    """The estimate as text."""
    one, fleet, fixed = (
        site_month(model.load),
        fleet_month(model.sites, model.load),
        fixed_month(model.standby is not None),
    )
    lines = [f"Estimate for {model.sites} sites ({model.telemetry}), US dollars a month by list prices:"]
    lines += [f"  {name:<12}{value:>12,.2f}" for name, value in fleet.items() if name != "total"]
    lines += [f"  {name:<12}{value:>12,.2f}   whatever the sites" for name, value in fixed.items()]
    lines.append(f"  {'total':<12}{fleet['total'] + sum(fixed.values()):>12,.2f}")
    lines.append(f"IoT Core alone: {one.total:.3f} a site. Agents are charged by use and not estimated.")
    return "\n".join(lines)


def planned(deployment: Deployment, model: DeploymentModel) -> str:
    """The plan as text."""
    changes = deployment.plan()
    lines = [f"Plan for {model.environment} in {model.region}:"]
    for stack, region in dict.fromkeys((one.stack, one.region) for one in changes):
        lines.append(f"  {stack} ({region})")
        own = [one for one in changes if (one.stack, one.region) == (stack, region)]
        for one in own:
            mark = {"Add": "+", "Remove": "-"}.get(one.action, "~")
            anew = "   MADE ANEW, what it holds is lost" if one.replaced else ""
            lines.append(f"    {mark} {one.name:<32}{one.kind}{anew}")
    if not changes:
        lines.append("  nothing: all is as it should be")
    counted = Counter(one.action for one in changes)
    lines.append(f"{counted['Add']} to add, {counted['Modify']} to change, {counted['Remove']} to remove")
    lines.append(costs(model))
    return "\n".join(lines)


def deployed(deployment: Deployment, model: DeploymentModel, *, yes: bool) -> int:
    """Plan, ask, do, look."""
    print(planned(deployment, model))
    if not yes and not confirmed(f"Type {model.environment} to deploy: ", model.environment):
        print("nothing was done")
        return 1
    deployment.deploy(print)
    return told(deployment)


def destroyed(deployment: Deployment, model: DeploymentModel, *, yes: bool, with_data: bool) -> int:
    """Ask, do."""
    word = f"{model.environment} and its data" if with_data else model.environment
    if with_data:
        print("The tables, the lake and the logs will be deleted for ever, in every region of this deployment.")
    if not (yes and not with_data) and not confirmed(f"Type '{word}' to destroy: ", word):
        print("nothing was done")
        return 1
    deployment.destroy(print, with_data=with_data)
    return 0


def told(deployment: Deployment) -> int:
    """What is there; 1 where something is missing or not right."""
    states, resources = deployment.status()
    for stack, state in states:
        own = [one for one in resources if (one.stack, one.region) == (stack.name, stack.region)]
        counted = Counter({True: "found", False: "missing", None: "not asked"}[one.found] for one in own)
        said = ", ".join(f"{counted[word]} {word}" for word in ("found", "missing", "not asked") if counted[word])
        print(f"{stack.name} ({stack.region}): {state}{'; resources by their own services: ' + said if said else ''}")
        for one in own:
            if one.found is not True:
                print(f"  {'MISSING' if one.found is False else 'not asked'}: {one.name} {one.kind} {one.physical}")
    good = all(state in {"CREATE_COMPLETE", "UPDATE_COMPLETE"} for _, state in states)
    return 0 if good and not any(one.found is False for one in resources) else 1


def confirmed(question: str, wanted: str) -> bool:
    """Whether somebody at a terminal wrote exactly this."""
    if not sys.stdin.isatty():
        print("nobody is there to say yes; use --yes", file=sys.stderr)
        return False
    return input(question).strip() == wanted
