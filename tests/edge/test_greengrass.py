"""The Greengrass component: what the lite nucleus takes (facts/aws.md), and a build that can be repeated."""

import re
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "edge" / "greengrass"
RECIPE = yaml.safe_load((FOLDER / "recipe.yaml").read_text())
TOP = {"RecipeFormatVersion", "ComponentName", "ComponentVersion", "ComponentDescription", "ComponentPublisher"}


def test_the_recipe_has_what_every_nucleus_asks_for_with_exact_keys():
    assert RECIPE["RecipeFormatVersion"] == "2020-01-25"
    assert set(RECIPE) == TOP | {"ComponentConfiguration", "Manifests"}
    assert re.fullmatch(r"[a-zA-Z0-9-_.]{1,128}", RECIPE["ComponentName"])
    assert set(RECIPE["ComponentConfiguration"]) == {"DefaultConfiguration"}


@pytest.mark.parametrize("manifest", RECIPE["Manifests"], ids=lambda one: one["Platform"]["architecture"])
def test_each_manifest_suits_the_lite_nucleus(manifest):
    assert set(manifest) == {"Platform", "Lifecycle", "Artifacts"}
    platform = manifest["Platform"]
    assert (platform["os"], platform["runtime"]) == ("linux", "*")
    assert set(manifest["Lifecycle"]) <= {"install", "run"}, "shutdown, recover and skipif are missing there"
    install, run = manifest["Lifecycle"]["install"]["Script"], manifest["Lifecycle"]["run"]["Script"]
    assert "--no-index" in install, "nothing comes from a registry on a site"
    assert "{work:path}/venv" in install
    assert run.startswith("exec "), "signals reach the gateway and not a shell"
    (artifact,) = manifest["Artifacts"]
    name = Path(artifact["Uri"]).stem
    assert artifact["Unarchive"] == "ZIP"
    assert f"{{artifacts:decompressedPath}}/{name}/wheels" in install
    assert platform["architecture"] in name
    variables = set(re.findall(r"\{([a-zA-Z]+:[^}]*)\}", install + run))
    assert variables <= {"work:path", "artifacts:decompressedPath", "configuration:/SiteFile"}


def test_the_two_architectures_differ_in_their_wheels_alone():
    amd64, aarch64 = (yaml.safe_dump(one) for one in RECIPE["Manifests"])
    assert amd64.replace("amd64", "aarch64") == aarch64


def test_no_secret_and_no_wildcard_stands_in_the_files():
    text = (FOLDER / "recipe.yaml").read_text() + (FOLDER / "policy.json").read_text()
    assert "accessControl" not in text, "it talks to IoT Core itself: no IPC policy is needed"
    assert not re.search(r'"Resource": \[?"\*"', text)


def build(tmp_path, out, **wheels):
    folders = []
    for name, files in wheels.items():
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for file in files:
            (folder / file).write_bytes(file.encode())
        folders.append(str(folder))
    command = ["/bin/sh", str(FOLDER / "build.sh"), str(tmp_path / out), "my-bucket", *folders]
    return subprocess.run(command, capture_output=True, text=True, check=False)


X86 = ["wattmesh-1.2.3-cp311-cp311-manylinux_2_17_x86_64.whl", "paho_mqtt-2.1.0-py3-none-any.whl"]
ARM = ["wattmesh-1.2.3-cp311-cp311-manylinux_2_17_aarch64.whl", "paho_mqtt-2.1.0-py3-none-any.whl"]


def test_the_build_bundles_wheels_and_can_be_repeated_bit_for_bit(tmp_path):
    for out in ("one", "two"):
        done = build(tmp_path, out, amd64=X86, aarch64=ARM)
        assert done.returncode == 0, done.stderr
    recipe = (tmp_path / "one" / "recipe.yaml").read_text()
    assert "@VERSION@" not in recipe
    assert "s3://my-bucket/io.wattmesh.Gateway/1.2.3/wattmesh-aarch64.zip" in recipe
    assert yaml.safe_load(recipe)["ComponentVersion"] == "1.2.3"
    for name in ("wattmesh-amd64.zip", "wattmesh-aarch64.zip"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with zipfile.ZipFile(tmp_path / "one" / "wattmesh-aarch64.zip") as archive:
        assert sorted(archive.namelist()) == sorted(f"wheels/{name}" for name in ARM)


@pytest.mark.parametrize(
    ("amd64", "aarch64", "text"),
    [
        (X86, X86, "is not for aarch64"),
        (X86, [ARM[0].replace("1.2.3", "1.2.4")], "versions differ"),
        (X86, [], "holds no wattmesh"),
        (X86, [*ARM, ARM[0].replace("1.2.3", "1.2.4")], "more than one version"),
    ],
)
def test_wheels_that_do_not_fit_are_refused(tmp_path, amd64, aarch64, text):
    done = build(tmp_path, "out", amd64=amd64, aarch64=aarch64)
    assert done.returncode == 2
    assert text in done.stderr
