"""The README says what is true: its settings, its links, its commands, and the API's description beside it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.memory.plans import RECIPES
from pipelines.memory.table import CARDS_GIB, markdown
from server.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
ROWS = dict(re.findall(r"^\| `(FLUX_\w+)` \| (.+?) \|", README, re.MULTILINE))


def shown(default: Any) -> str:
    return "–" if default in (None, (), {}) else f"`{default}`"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_a_row_with_its_default(name: str) -> None:
    field = Settings.model_fields[name]
    assert ROWS[f"FLUX_{name.upper()}"] == shown(field.get_default(call_default_factory=True))
    assert field.description in README


def test_no_row_is_left_of_a_setting_that_is_gone() -> None:
    assert set(ROWS) == {f"FLUX_{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize("page", ["README.md", "server/README.md", "benchmarks/README.md", "CHANGELOG.md"])
def test_links_to_files_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / page).read_text("utf-8")):
        assert ((ROOT / page).parent / target).exists(), target


def test_every_flux_server_command_and_option_of_the_readme_exists() -> None:
    for command, options in re.findall(
        r"flux-server (serve|demo|doctor|plans|openapi|weights \w+|jobs \w+)((?: --[\w-]+| [\w.…/~]+)*)", README
    ):
        help_text = subprocess.run(
            [sys.executable, "-P", "-m", "server", *command.split(), "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": "", "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
        ).stdout
        for option in re.findall(r"--[\w-]+", options):
            assert option in help_text, (command, option)


def test_the_table_of_memory_plans_is_what_the_code_computes() -> None:
    table = "\n".join(markdown(CARDS_GIB, 64 * 10**9))
    assert table in README
    assert all(f"`{recipe.name}`" in README for recipe in RECIPES)


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make (\w+)", README))
    assert named <= targets
    assert {"demo", "test", "check", "venv"} <= named


def test_every_endpoint_of_the_readme_is_in_the_api() -> None:
    paths = set(json.loads((ROOT / "openapi.json").read_text("utf-8"))["paths"])
    named = set(re.findall(r"`(?:GET|POST) (/[\w/{}.-]+)`", README))
    expanded = {path.replace("{model}", "flux-dev").replace("{id}", "{request_id}") for path in named}
    assert expanded <= paths


def test_the_checked_in_api_description_is_current() -> None:
    from server.app import create_app

    current = create_app(Settings()).openapi()
    assert json.loads((ROOT / "openapi.json").read_text("utf-8")) == json.loads(json.dumps(current))


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in README
    assert (ROOT / ".ci" / "run").read_text().strip().endswith("make test")


def test_curl_examples_of_the_readme_work(server: Any, tmp_path: Path, photo: bytes) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo)
    examples = re.findall(r"^curl .+$", README, re.MULTILINE)
    assert len(examples) >= 3
    known = ""
    for example in examples:
        line = example.replace("http://127.0.0.1:8000", server.base).replace("SG_…", "SG_0123456789abcdef")
        line = line.replace("REQUEST_ID", known)
        done = subprocess.run(
            ["bash", "-c", f"{line} --silent --show-error --fail-with-body"],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        if "request_id" in done.stdout:
            known = json.loads(done.stdout)["request_id"]
    assert (tmp_path / "fox.jpg").read_bytes()[:2] == b"\xff\xd8"
    server.finish(known)
