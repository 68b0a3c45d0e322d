"""The command coco-jax serve."""

import pathlib
import re
import signal
import socket
import subprocess
import sys

import pytest

from coco_jax import serve
from coco_jax.errors import UserError
from coco_jax.recognition import model_flags
from tests.helpers.runs import ROOT, environment
from tests.helpers.uploads import ask, request

pytest.importorskip("gradio")


def test_a_port_that_is_taken_is_an_error_before_the_model_is_loaded(parse, monkeypatch):
    monkeypatch.setattr(model_flags, "loader", lambda values: None)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        parse(serve, f"--port={port}")
        with pytest.raises(
            UserError, match=rf"--port={port}: Address already in use; choose another"
        ):
            serve.command([])
    parse(serve, "--host=no.such.address.invalid")
    with pytest.raises(UserError, match="choose another"):
        serve.command([])


@pytest.mark.faults
def test_command_answers_until_it_is_interrupted(trained_run, video_path, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "coco_jax.serve", "--port=0", f"--model={trained_run}"],
        cwd=ROOT, env=environment() | {"TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        port = int(next(filter(None, (re.match(r"http://127.0.0.1:(\d+) ", x) for x in lines)))[1])
        reply = ask(port, video_path.read_bytes(), actions="run, swim")
        assert reply.status == 200, reply
        assert {row["action"] for row in reply.body["actions"]} == {"run", "swim"}
        assert request(port, "GET", "/").status == 200
        assert list(pathlib.Path(tmp_path).glob("coco_jax_serve_*"))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert process.returncode == 130
    assert list(pathlib.Path(tmp_path).glob("coco_jax_serve_*")) == []
