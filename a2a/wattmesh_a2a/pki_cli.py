"""``wattmesh pki init|issue|rotate|revoke|crl|list|broker``."""

from __future__ import annotations

import argparse
import importlib.resources
from pathlib import Path

from wattmesh_a2a.errors import ConfigurationError

_BROKER_FILES = {"mosquitto.conf": "broker/mosquitto.conf", "acl": "broker/acl.conf"}


def main(argv: list[str]) -> int:
    """Run the command; mistakes of the user are raised as :class:`WattmeshError`."""
    try:
        from wattmesh_a2a.pki import Authority
    except ImportError as error:
        raise ConfigurationError("this command needs the package cryptography; install wattmesh[pki]") from error
    options = _parser().parse_args(argv)
    if options.action == "init":
        authority = Authority.create(options.folder, options.org)
        print(f"{authority.folder}: authority of {authority.org}; keep ca.key where no device can read it")
        return 0
    authority = Authority(options.folder)
    match options.action:
        case "issue":
            print(authority.issue(options.name, hosts=options.host))
        case "rotate":
            print(authority.rotate(options.name))
            print(f"when the new one is in use: wattmesh pki revoke {options.folder} {options.name} --keep-newest")
        case "revoke":
            for serial in authority.revoke(options.name, keep_newest=options.keep_newest):
                print(f"revoked {serial:x}")
            print(f"give {authority.folder / 'crl.pem'} to the broker (and SIGHUP) and to whoever verifies")
        case "crl":
            print(authority.write_crl())
        case "list":
            for serial, name, begins, until, revoked in authority.entries():
                print(f"{serial:040x}  {name:<24}  {begins}  {until}  {'revoked ' + revoked if revoked else ''}")
        case "broker":
            for path in write_broker(
                authority.folder, options.target, authority.org, options.port, options.bind, options.prefix
            ):
                print(path)
    return 0


def write_broker(
    authority: Path, target: Path, org: str, port: int, bind: str = "0.0.0.0", prefix: str = "a2a/v1"
) -> list[Path]:
    """Write mosquitto's configuration and access list for an organisation; its certificate is the one issued as ``broker``."""
    if not (authority / "broker/certificate.pem").is_file():
        raise ConfigurationError(
            f"issue the broker's certificate first: wattmesh pki issue {authority} broker --host NAME"
        )
    target.mkdir(parents=True, exist_ok=True)
    values = {
        "port": str(port), "bind": bind, "org": org, "prefix": prefix, "folder": str(target.resolve()),
        "authority": str(authority.resolve()),
    }  # fmt: skip
    made = []
    for name, resource in _BROKER_FILES.items():
        text = (importlib.resources.files("firmware_configs") / resource).read_text(encoding="utf-8")
        for key, value in values.items():
            text = text.replace(f"{{{key}}}", value)
        path = target / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600 if name == "acl" else 0o644)
        made.append(path)
    return made


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wattmesh pki")
    actions = parser.add_subparsers(dest="action", required=True)

    def action(name: str, help_text: str, *names: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=help_text)
        made.add_argument("folder", type=Path, help="the authority's folder")
        for one in names:
            made.add_argument(one)
        return made

    action("init", "a new private authority of an organisation", "org")
    issue = action("issue", "a key and a certificate for a site, the cloud, the broker or an operator", "name")
    issue.add_argument("--host", action="append", default=[], help="a server's name or address; may be given again")
    action("rotate", "a new key and certificate; the old one stays valid until it is revoked", "name")
    revoke = action("revoke", "revoke a name's certificates and write the list anew", "name")
    revoke.add_argument("--keep-newest", action="store_true", help="only those that were replaced")
    action("crl", "write the list of revoked certificates anew (at least every 30 days)")
    action("list", "what was issued")
    broker = action("broker", "mosquitto's configuration for this organisation")
    broker.add_argument("target", type=Path)
    broker.add_argument("--port", type=int, default=8883)
    broker.add_argument("--bind", default="0.0.0.0")
    broker.add_argument("--prefix", default="a2a/v1")
    return parser
