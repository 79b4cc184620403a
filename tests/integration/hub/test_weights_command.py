"""`flux-server weights` as people and scripts run it: processes, their output and their exit status."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

MIB = 1 << 20
TOKEN = {"HF_TOKEN": "hf_standin"}


def test_a_licence_then_a_gate_then_a_whole_model(pull_command: Any, filled: Any, tmp_path: Path) -> None:
    refused = pull_command("pull", "dev")
    assert refused.returncode == 3
    assert "read https://example.org/strict and, if you accept it, pass --accept-licence" in refused.stderr
    assert filled.log == []

    closed = pull_command("pull", "dev", "--accept-licence")
    assert closed.returncode == 3
    assert "accept them on https://huggingface.co/black-forest-labs/FLUX.1-dev" in closed.stderr
    assert (tmp_path / "weights/licences.json").exists()

    done = pull_command("pull", "dev", "--json", **TOKEN)
    assert done.returncode == 0, done.stderr
    (pulled,) = json.loads(done.stdout)["models"]
    assert pulled["folder"] == "weights/FLUX.1-dev"
    assert pulled["downloaded_bytes"] > 12_000
    assert "Strict License" in done.stderr

    again = pull_command("pull", "dev")
    assert again.returncode == 0
    assert "already complete in weights/FLUX.1-dev" in again.stdout

    found = pull_command("locate", "dev")
    assert (found.returncode, found.stdout) == (0, "weights/FLUX.1-dev\n")
    assert pull_command("verify", "--full").returncode == 0


def test_a_pull_that_was_killed_goes_on_where_it_was(
    pull_command: Any, filled: Any, samples: Any, command_line: Any, hub_environment: Any, tmp_path: Path
) -> None:
    content = samples.safetensors({"tensor": ("U8", (6 * MIB,))})
    filled.repositories["someone/estimator-hf"].files["model.safetensors"] = content
    filled.fail("model.safetensors", cut_after=3 * MIB, times=1)
    process = subprocess.Popen(
        command_line("pull", "estimator"), env=hub_environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    for line in process.stderr:
        if "trying again" in line:
            break
    process.kill()
    process.wait()
    process.stderr.close()
    folder = tmp_path / "weights/estimator-hf"
    assert not (folder / "model.safetensors").exists()

    done = pull_command("pull", "estimator")
    assert done.returncode == 0, done.stderr
    assert (folder / "model.safetensors").read_bytes() == content
    assert filled.ranges("model.safetensors")[-1] == f"bytes={3 * MIB}-"
    assert "3.1 MB there from before" in done.stdout


def test_statuses_of_what_can_go_wrong(pull_command: Any, filled: Any, tmp_path: Path) -> None:
    unknown = pull_command("pull", "flux-deph-dev")
    assert unknown.returncode == 2
    assert "did you mean flux-depth-dev" in unknown.stderr
    assert pull_command("pull").returncode == 2

    filled.fail("model.safetensors", content=b"x" * 800)
    wrong = pull_command("pull", "estimator", "--json")
    assert wrong.returncode == 5
    error = json.loads(wrong.stdout)["error"]
    assert (error["kind"], error["status"]) == ("WrongContent", 5)
    assert not (tmp_path / "weights/estimator-hf/model.safetensors").exists()

    pickle = pull_command("pull", "unknown")
    assert pickle.returncode == 1
    assert "is a pickle" in pickle.stderr
    offline = pull_command("pull", "estimator", HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert "HF_HUB_OFFLINE" in offline.stderr


def test_a_full_disk_has_a_status_of_its_own(pull_command: Any, filled: Any, tmp_path: Path) -> None:
    content = filled.repositories["someone/estimator-hf"].files["model.safetensors"]
    part = tmp_path / f"weights/estimator-hf/.partial/model.safetensors.{hashlib.sha256(content).hexdigest()[:16]}.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    full = pull_command("pull", "estimator")
    assert full.returncode == 4
    assert "free some space and run this again" in full.stderr


def test_the_licence_is_asked_for_on_a_terminal(command_line: Any, hub_environment: Any, tmp_path: Path) -> None:
    command, environment = command_line("pull", "flux-depth-lora"), hub_environment | {"TERM": "xterm"}
    for answer, status in (("n", 3), ("y", 0)):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        shown = _talk(ours, r"Do you accept Strict License\?", answer)
        assert process.wait(30) == status, shown
    assert "flux-depth-lora: Strict License, https://example.org/strict" in shown
    assert "downloading" in shown
    record = json.loads((tmp_path / "weights/licences.json").read_text())
    assert record["strict"]["how"] == "yes at the prompt"


def _talk(terminal: int, question: str, answer: str) -> str:
    """Answers the question on a terminal and returns all that was shown until the program closed it."""
    shown, answered, until = "", False, time.monotonic() + 30
    while time.monotonic() < until:
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        try:
            shown += os.read(terminal, 65536).decode(errors="replace")
        except OSError:
            break
        if not answered and re.search(question, shown):
            os.write(terminal, f"{answer}\n".encode())
            answered = True
    os.close(terminal)
    return shown


def test_ctrl_c_ends_politely(
    filled: Any, command_line: Any, hub_environment: Any, tmp_path: Path, samples: Any
) -> None:
    filled.repositories["someone/estimator-hf"].files["model.safetensors"] = samples.safetensors({})
    filled.fail("model.safetensors", status=503, times=99)
    process = subprocess.Popen(
        command_line("pull", "estimator"), env=hub_environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    seen = ""
    while "trying again" not in seen:
        seen = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 130
    assert "goes on from there" in rest
    assert "Traceback" not in rest
