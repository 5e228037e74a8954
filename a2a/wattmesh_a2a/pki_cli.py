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
            if options.iot_core is not None:
                print(_bridge(options, authority.org))
    return 0


def _bridge(options: argparse.Namespace, org: str) -> Path:
    names = ("thing", "thing_certificate", "thing_key", "amazon_ca", "unit", "rule")
    missing = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is None]
    if missing:
        raise ConfigurationError(f"--iot-core needs {', '.join(missing)} as well")
    return write_bridge(
        options.target / "mosquitto.conf",
        endpoint=options.iot_core,
        thing=options.thing,
        certificate=options.thing_certificate,
        key=options.thing_key,
        ca=options.amazon_ca,
        org=org,
        unit=options.unit,
        rule=options.rule,
        prefix=options.prefix,
    )


def write_bridge(
    config: Path,
    *,
    endpoint: str,
    thing: str,
    certificate: Path,
    key: Path,
    ca: Path,
    org: str,
    unit: str,
    rule: str,
    prefix: str = "a2a/v1",
) -> Path:
    """Append a bridge to AWS IoT Core to a mosquitto's configuration; raises :class:`ConfigurationError`.

    Args:
        config: The broker's file.
        endpoint: ``HOST`` or ``HOST:PORT`` of the account's data endpoint.
        thing: The thing's name, which is the client id.
        certificate: Of the thing.
        key: Its private key.
        ca: Amazon's root certificate.
        org: Organisation of the addresses.
        unit: The site whose messages go up and down.
        rule: Name of the telemetry rule (Basic Ingest).
        prefix: Of the A2A topics.
    """
    for path in (certificate, key, ca):
        if not path.is_file():
            raise ConfigurationError(f"{path}: no such file")
    values = {
        "endpoint": endpoint if ":" in endpoint else f"{endpoint}:8883", "thing": thing, "org": org, "unit": unit, "rule": rule,
        "prefix": prefix, "certificate": str(certificate.resolve()), "key": str(key.resolve()),
        "amazon_root_ca": str(ca.resolve()),
    }  # fmt: skip
    wrong = [name for name, value in values.items() if not value.isprintable() or not value or " " in value]
    if wrong:
        raise ConfigurationError(f"{', '.join(wrong)}: no spaces or control characters in mosquitto's file")
    text = (importlib.resources.files("firmware_configs") / "broker/bridge-iot-core.conf").read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    before = config.read_text(encoding="utf-8")
    if "connection iot-core" in before:
        raise ConfigurationError(f"{config} has a bridge to IoT Core already")
    config.write_text(f"{before}\n{text}", encoding="utf-8")
    return config


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
    broker.add_argument("--iot-core", metavar="HOST[:PORT]", help="be a bridge to this AWS IoT Core endpoint, too")
    broker.add_argument("--thing", help="its thing's name")
    for name, what in (("certificate", "certificate"), ("key", "private key")):
        broker.add_argument(f"--thing-{name}", type=Path, help=f"the thing's {what}")
    broker.add_argument("--amazon-ca", type=Path, help="Amazon's root certificate")
    broker.add_argument("--unit", help="the site whose messages go up and down")
    broker.add_argument("--rule", help="the telemetry rule (Basic Ingest)")
    return parser
