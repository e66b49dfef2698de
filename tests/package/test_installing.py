"""The commands that remedies name install what is missing, from where Segue came."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from kit.paths import ROOT
from segue import installing
from segue.installing import REQUIREMENTS, install_command

PACKAGE = Path(installing.__file__).parent


class Installed:
    """An installation that recorded where it came from."""

    def __init__(self, origin: object) -> None:
        self.text = origin if isinstance(origin, str | None) else json.dumps(origin)

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.text


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Segue somewhere else than in a checkout, installed from a place."""

    def install(origin: object) -> None:
        monkeypatch.setattr(installing, "PACKAGE", tmp_path / "site-packages" / "segue")
        monkeypatch.setattr(metadata, "distribution", lambda name: Installed(origin))

    return install


def test_from_a_checkout():
    assert install_command("cpu") == f"pip install --editable '{ROOT}[cpu]'"


def test_from_an_index(installed):
    installed(None)
    assert install_command("cuda13") == "pip install 'segue[cuda13]'"


@pytest.mark.parametrize("folder", ["a checkout", "plain", "it's"])
def test_from_a_folder(installed, tmp_path, folder):
    path = tmp_path / folder
    path.mkdir()
    installed({"url": path.as_uri(), "dir_info": {}})
    quoted = str(path).replace("'", "'\"'\"'")
    assert install_command("cpu") == f"pip install '{quoted}[cpu]'"


@pytest.mark.parametrize(
    ("origin", "what"),
    [
        (
            {
                "url": "https://example.org/segue.git",
                "vcs_info": {"vcs": "git", "commit_id": "abc", "requested_revision": "main"},
            },
            "'segue[cpu] @ git+https://example.org/segue.git@main'",
        ),
        (
            {"url": "https://example.org/segue.git", "vcs_info": {"vcs": "git"}},
            "'segue[cpu] @ git+https://example.org/segue.git'",
        ),
        (
            {"url": "https://example.org/segue.whl", "archive_info": {}},
            "'segue[cpu] @ https://example.org/segue.whl'",
        ),
        # What the extra would install: the place is gone, or nobody knows it.
        ({"url": "file:///gone/segue", "dir_info": {}}, "'mlx[cpu]' mkl"),
        ({"url": 5}, "'mlx[cpu]' mkl"),
        ([], "'mlx[cpu]' mkl"),
        ("{", "'mlx[cpu]' mkl"),
    ],
)
def test_from_elsewhere(installed, origin, what):
    installed(origin)
    assert install_command("cpu") == f"pip install {what}"


def test_without_an_installation(tmp_path, monkeypatch):
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installing, "PACKAGE", tmp_path / "segue")
    monkeypatch.setattr(metadata, "distribution", missing)
    assert install_command("cuda12") == "pip install 'mlx[cuda12]'"


def test_another_project_beside_the_package_is_no_checkout(installed, tmp_path):
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "pyproject.toml").write_text('[project]\nname = "other"\n')
    installed(None)
    assert install_command("cpu") == "pip install 'segue[cpu]'"


def test_the_extras_are_those_of_the_project():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {
        name: tuple(re.split(r"[<>=;]", requirement)[0] for requirement in requirements)
        for name, requirements in extras["optional-dependencies"].items()
    }
    assert found == REQUIREMENTS


def test_no_text_names_the_package_by_itself():
    texts = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert [path for path, text in texts.items() if re.search(r"pip install '?segue", text)] == []
