"""What a user gets: the wheel, the lock file, the container, the scripts of the checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import Any, Final

import pytest

from relay import __version__
from relay.settings import Settings, env_name

ROOT: Final = Path(__file__).parents[1]
PYPROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def built(target: str, folder: Path) -> Path:
    """Build a ``wheel`` or ``sdist`` of the checkout into ``folder``, without the network."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a folder of its own; what it depends on is found in this venv."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--disable-pip-version-check", "--target", folder, wheel],
        check=True, capture_output=True, timeout=100,
    )  # fmt: skip
    return folder


def test_the_wheel_has_all_of_the_package_and_the_page(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = [
        path for path in (ROOT / "relay").rglob("*") if path.is_file() and path.suffix != ".pyc"
    ]
    assert {str(path.relative_to(ROOT)) for path in ours} <= names
    assert {str(path.relative_to(ROOT)) for path in ours if path.suffix == ".lua"}
    page = [path for path in (ROOT / "web").rglob("*") if path.is_file()]
    assert {f"relay/{path.relative_to(ROOT)}" for path in page} <= names


def test_the_wheel_has_nothing_else(wheel: Path) -> None:
    for name in zipfile.ZipFile(wheel).namelist():
        assert name.startswith(("relay/", f"relay-{__version__}.dist-info/")), name
        assert not name.endswith(".pyc")


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    name = f"relay-{__version__}.dist-info/METADATA"
    metadata = message_from_bytes(zipfile.ZipFile(wheel).read(name))
    assert metadata["Name"] == "relay"
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.11"


def test_the_installed_command_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import relay, pathlib; print(pathlib.Path(relay.__file__).parent / 'web')"
    environ = os.environ | {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    where = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert where.stdout.strip() == str(installed / "relay" / "web")
    shown = subprocess.run(
        [installed / "bin" / "relay", "--version"],
        cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert shown.stdout == f"relay {__version__}\n"


def test_the_source_distribution_can_build_the_wheel(tmp_path: Path) -> None:
    with tarfile.open(built("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "relay/cli/__init__.py"} <= names
    assert {"web/relay.js", "web/index.html"} <= names
    assert not any(name.startswith((".venv", "node_modules", ".git/")) for name in names)


def test_the_lock_file_names_no_registry() -> None:
    text = (ROOT / "package-lock.json").read_text()
    packages = json.loads(text)["packages"]
    assert not any("resolved" in package for package in packages.values())
    assert all("integrity" in package for name, package in packages.items() if name)
    assert "registry" not in text
    assert "omit-lockfile-registry-resolved=true" in (ROOT / ".npmrc").read_text()


def test_the_lock_file_fits_the_package() -> None:
    package = json.loads((ROOT / "package.json").read_text())
    locked = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    assert locked[""]["devDependencies"] == package["devDependencies"]
    for name, version in package["devDependencies"].items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version), f"{name} is not pinned"
        assert locked[f"node_modules/{name}"]["version"] == version


# -- containers ---------------------------------------------------------------------------------


def test_the_image_has_what_the_wheel_is_built_from() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = {
        name
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for name in line.split()[1:-1]
    }
    build = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        "pyproject.toml",
        PYPROJECT["project"]["readme"],
        *PYPROJECT["project"]["license-files"],
    }
    assert copied == needed | set(build["packages"]) | set(build["force-include"])
    let_in = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in let_in if line.startswith("!")} == copied


def test_the_image_runs_as_nobody_in_particular_and_tells_its_health() -> None:
    text = (ROOT / "Dockerfile").read_text()
    last = text[text.rindex("FROM ") :]
    assert "\nUSER relay\n" in last
    assert '\nCMD ["relay", "serve", "--host", "0.0.0.0"]\n' in last
    assert "/healthz" in last


def test_the_health_check_is_a_python_program() -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    words = re.search(r"^HEALTHCHECK .*?CMD (\[.*\])$", text, re.MULTILINE)
    assert words is not None
    python, flag, code = json.loads(words[1])
    assert (python, flag) == ("python", "-c")
    compile(code, "Dockerfile", "exec")


def compose_service(name: str) -> str:
    """Return the text of a service (or of the shared part) of compose.yaml."""
    text = (ROOT / "compose.yaml").read_text()
    part = re.search(rf"^( {{0,2}}){re.escape(name)}:.*\n((?:\1 +.*\n|\n)*)", text, re.MULTILINE)
    assert part is not None, name
    return part[2]


def test_compose_runs_two_relays_on_one_redis() -> None:
    for name, port in (("relay-1", 8001), ("relay-2", 8002)):
        assert f'"127.0.0.1:{port}:8000"' in compose_service(name)
        assert "<<: *relay" in compose_service(name)
    assert "redis://redis:6379/0" in compose_service("x-relay")
    assert '"--maxmemory-policy", "noeviction"' in compose_service("redis")


def test_compose_sets_only_settings_that_exist_and_demands_credentials() -> None:
    names = re.findall(r"^ +(RELAY_\w+): (\S+)", compose_service("x-relay"), re.MULTILINE)
    known = {env_name(field) for field in Settings.__struct_fields__}
    assert {name for name, _ in names} <= known
    given = dict(names)
    for name in ("RELAY_API_KEY", "RELAY_API_SECRET"):
        assert given[name].startswith(f"${{{name}:?")


# -- make and CI --------------------------------------------------------------------------------


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make as a user would, also when the tests themselves were started by make."""
    inherited = ("ARGS", "MAKE", "MFLAGS", "PYTHON")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(inherited)}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("target", ["demo", "install", "test", "check", "bench", "soak", "clean"])
def test_make_has_and_explains_every_target(target: str) -> None:
    assert f"make {target} " in make("help").stdout
    assert make("--dry-run", target).returncode == 0


def test_the_javascript_tests_run_before_pytest_whose_closing_line_is_the_last() -> None:
    steps = make("--dry-run", "--always-make", "test").stdout
    assert steps.index("node --test tests/web/") < steps.index("-m pytest")
    assert "-m pytest" in steps.rstrip().splitlines()[-1]


def test_an_old_python_is_told(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit\nexit 1\n')
    old.chmod(0o755)
    answer = make("--always-make", f"PYTHON={old}", ".venv/bin/python")
    assert answer.returncode == 2
    assert "Python 3.9.2 is too old, 3.11 or newer is needed" in answer.stderr


def test_a_python_without_venv_is_told(tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text('#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\n')
    bare.chmod(0o755)
    answer = make("--always-make", f"PYTHON={bare}", ".venv/bin/python")
    assert answer.returncode == 2
    assert "apt-get install python3-venv" in answer.stderr


def test_ci_checks_then_tests_and_is_a_program() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make --no-print-directory check test" in script.read_text()
