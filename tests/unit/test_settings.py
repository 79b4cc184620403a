"""Settings: where they come from, what wins, what is refused, and that nothing secret is said about them."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

import pipelines
import server
import weights
from server.cli import cli
from server.settings import Settings, environment_without_settings, is_loopback

KEY, OTHER = "SG_0123456789abcdef", "SG_fedcba9876543210"


@pytest.fixture(autouse=True)
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No setting comes from outside; returns the settings file's path, which nobody has written yet."""
    for name in os.environ:
        if name.upper().startswith("FLUX_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "flux-server.toml"


# Where settings come from.


def test_without_anything_the_server_listens_on_this_machine_only() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.api_keys) == ("127.0.0.1", 8000, ())


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUX_PORT", "8123")
    monkeypatch.setenv("FLUX_DATA_DIR", "/somewhere")
    monkeypatch.setenv("FLUX_CREDITS", f'{{"{KEY}": 1.5}}')
    monkeypatch.setenv("FLUX_API_KEYS", KEY)
    monkeypatch.setenv("FLUX_FETCH_URLS", "false")
    settings = Settings()
    assert (settings.port, settings.data_dir, settings.fetch_urls) == (8123, Path("/somewhere"), False)
    assert settings.credits == {KEY: 1.5}


def test_settings_come_from_the_file_in_the_working_folder(config: Path) -> None:
    config.write_text(f'port = 8124\napi_keys = ["{KEY}", "{OTHER}"]\n[credits]\n{KEY} = 2\n')
    settings = Settings()
    assert (settings.port, settings.api_keys, settings.credits) == (8124, (KEY, OTHER), {KEY: 2.0})


def test_the_environment_can_name_another_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("port = 1")
    other = config.with_name("other.toml")
    other.write_text("port = 8125")
    monkeypatch.setenv("FLUX_CONFIG", str(other))
    assert Settings().port == 8125


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text('port = 1\nqueue_limit = 1\nwait_limit_s = 1\nlog_level = "error"')
    monkeypatch.setenv("FLUX_PORT", "2")
    monkeypatch.setenv("FLUX_QUEUE_LIMIT", "2")
    settings = Settings(port=3)
    assert (settings.port, settings.queue_limit, settings.wait_limit_s) == (3, 2, 1.0)
    assert settings.log_level == "error"


def test_files_of_environment_variables_are_not_read(config: Path) -> None:
    config.with_name(".env").write_text("FLUX_PORT=9999\n")
    assert Settings().port == 8000


@pytest.mark.parametrize(
    ("text", "names"),
    [("a", ("a",)), ("a,b", ("a", "b")), (" a , b,,c ,", ("a", "b", "c")), ("", ()), (" , ", ())],
)
@pytest.mark.parametrize("field", ["api_keys", "fetch_hosts", "fetch_private_hosts"])
def test_lists_are_split_at_commas(
    monkeypatch: pytest.MonkeyPatch, field: str, text: str, names: tuple[str, ...]
) -> None:
    monkeypatch.setenv(f"FLUX_{field.upper()}", text)
    assert getattr(Settings(), field) == names


def test_networks_are_split_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUX_TRUSTED_PROXIES", "10.0.0.0/8, 127.0.0.1,::1")
    assert Settings().trusted_proxies == ("10.0.0.0/8", "127.0.0.1", "::1")
    monkeypatch.setenv("FLUX_TRUSTED_PROXIES", "10.0.0.0/8,proxy.example")
    with pytest.raises(ValidationError, match="trusted_proxies"):
        Settings()


def test_settings_never_change() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 9
    assert isinstance(Settings(api_keys=["a"]).api_keys, tuple)


# What is refused.


def test_unknown_names_are_refused(config: Path) -> None:
    with pytest.raises(ValidationError, match="prot"):
        Settings(prot=8000)
    config.write_text("prot = 8000")
    with pytest.raises(ValidationError, match="prot"):
        Settings()


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.5", "10.1.2.3", "203.0.113.9", "example.org", "", "127.1"]
)
def test_a_public_address_needs_a_key(host: str) -> None:
    with pytest.raises(ValidationError, match="without an API key"):
        Settings(host=host)
    with pytest.raises(ValidationError, match="without an API key"):
        Settings(host=host, api_keys=" , ")
    assert Settings(host=host, api_keys=(KEY,)).host == host


@pytest.mark.parametrize("keys", [("",), ("  ",), ("", " ")])
def test_an_empty_key_is_no_key(keys: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="without an API key"):
        Settings(host="0.0.0.0", api_keys=keys)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.8.7", "::1", "localhost"])
def test_this_machines_own_addresses_need_none(host: str) -> None:
    assert is_loopback(host)
    assert Settings(host=host).host == host


@pytest.mark.parametrize(
    "host",
    ["", "0.0.0.0", "::", "128.0.0.1", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.1 ", "0x7f.1"],
)
def test_nothing_else_is_taken_for_this_machine(host: str) -> None:
    assert not is_loopback(host)


def test_credits_of_unknown_keys_are_refused() -> None:
    assert Settings(api_keys=(KEY,), credits={KEY: 1}).credits == {KEY: 1.0}
    with pytest.raises(ValidationError, match="credits name 1 key"):
        Settings(api_keys=(KEY,), credits={KEY: 1, OTHER: 1})


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("port", [0, 65535], [-1, 65536]),
        ("queue_limit", [1], [0]),
        ("wait_limit_s", [0.1], [0, -1]),
        ("result_ttl_s", [0.1], [0]),
        ("drain_limit_s", [0], [-0.1]),
        ("max_body_bytes", [1], [0]),
        ("min_free_bytes", [0], [-1]),
        ("log_level", ["debug", "error"], ["loud", "DEBUG"]),
        ("no_credits_status_v2", [402, 406], [401, 403]),
        ("public_url", ["https://x.example", None], ["x.example", "ftp://x.example"]),
    ],
)
def test_limits_are_held(field: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert getattr(Settings(**{field: value}), field) == value
    for value in bad:
        with pytest.raises(ValidationError, match=field):
            Settings(**{field: value})


def test_a_public_url_has_no_slash_at_its_end() -> None:
    assert Settings(public_url="https://x.example/flux//").public_url == "https://x.example/flux"


# Nothing secret is said.

MISTAKES: dict[str, dict[str, Any]] = {
    "credits of another key": {"api_keys": (KEY,), "credits": {OTHER: 1}},
    "credits that are no number": {"api_keys": (KEY,), "credits": {KEY: "plenty"}},
    "a wrong setting beside the keys": {"api_keys": (KEY,), "port": -1},
    "keys that are no list": {"api_keys": {KEY: OTHER}},
    "keys that are no text": {"api_keys": [KEY, 7]},
    "an unknown setting beside the keys": {"api_keys": (KEY,), "prot": 1},
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_refusal_names_the_setting_and_never_a_key(mistake: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(**mistake)
    places = [str(part) for item in refused.value.errors() for part in item["loc"]]
    for secret in (KEY, OTHER):
        assert secret not in str(refused.value)
        assert secret not in repr(refused.value)
        assert secret not in places


@pytest.fixture
def run() -> Any:
    """Runs `flux-server doctor`, which reads the settings before it does anything else."""
    runner = CliRunner()
    return lambda: runner.invoke(cli, ["doctor"])


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("FLUX_PORT", "eighty", "port"),
        ("FLUX_CREDITS", f'{{"{OTHER}": 1}}', "credits"),
        ("FLUX_CREDITS", f'{{"{KEY}": "plenty"}}', "credits"),
        ("FLUX_CREDITS", f"{KEY}=1", "credits"),
        ("FLUX_CREDITS", f'["{KEY}"]', "credits"),
    ],
)
def test_the_command_says_in_a_line_what_is_wrong_and_no_key(
    run: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str, field: str
) -> None:
    monkeypatch.setenv("FLUX_API_KEYS", KEY)
    monkeypatch.setenv(name, value)
    ended = run()
    assert ended.exit_code == 2, ended.exception
    assert field in ended.output
    for secret in (KEY, OTHER, "plenty"):
        assert secret not in ended.output


def test_the_command_says_which_file_cannot_be_read(run: Any, config: Path) -> None:
    config.write_text(f'api_keys = "{KEY}')
    ended = run()
    assert ended.exit_code == 2, ended.exception
    assert "flux-server.toml" in ended.output
    assert KEY not in ended.output


def test_a_file_that_is_asked_for_and_missing_is_an_error(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUX_CONFIG", "nowhere.toml")
    ended = run()
    assert ended.exit_code == 2, ended.exception
    assert "nowhere.toml" in ended.output


# One file reads the environment.


def test_a_child_with_default_settings_gets_everything_but_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUX_PORT", "1")
    monkeypatch.setenv("FLUXCAPACITOR", "kept")
    environment = environment_without_settings()
    assert "FLUX_PORT" not in environment
    assert environment["FLUXCAPACITOR"] == "kept"
    assert environment["PATH"] == os.environ["PATH"]


def sources() -> list[Path]:
    found = [path for package in (server, pipelines, weights) for path in Path(package.__path__[0]).rglob("*.py")]
    assert len(found) > 40
    return found


def reads_of_the_environment(path: Path) -> list[str]:
    """Where a file looks at the environment. `os.environ |= …` and `os.environ[…] = …` only write to it."""
    tree = ast.parse(path.read_text("utf-8"))
    written = {
        id(target.value if isinstance(target, ast.Subscript) else target)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AugAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and id(node) not in written:
            names = {node.attr}
        else:
            continue
        if names & {"environ", "environb", "getenv", "getenvb"}:
            found.append(f"{path.name}:{node.lineno}")
    return found


def test_only_the_settings_read_the_environment() -> None:
    readers = {path for path in sources() if reads_of_the_environment(path)}
    assert readers == {Path(server.__path__[0]) / "settings.py"}


def test_only_the_workers_entry_writes_to_the_environment() -> None:
    writers = {path for path in sources() if "environ" in path.read_text("utf-8").replace("environment", "")}
    folder = Path(server.__path__[0])
    assert writers <= {folder / "settings.py", folder / "worker" / "main.py"}


def test_files_may_not_go_before_the_requests_that_name_them() -> None:
    with pytest.raises(ValidationError, match=r"file_ttl_s \(59\) is shorter than result_ttl_s \(60\)"):
        Settings(result_ttl_s=60, file_ttl_s=59)
    assert Settings(result_ttl_s=60, file_ttl_s=60).file_ttl_s == 60
