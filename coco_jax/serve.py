"""Serves a page and a JSON endpoint that name the actions in uploaded videos.

coco-jax serve

It uses the pretrained recogniser; with --model, a model that was trained or saved; with --towers,
published towers. docs/serve.md describes the endpoint and the limits.
"""

import socket
import sys

from absl import flags

from coco_jax.command import run_command
from coco_jax.errors import UserError
from coco_jax.recognition import model_flags

LOCAL = "127.0.0.1"


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("host", LOCAL, "The address to listen on; others may then use the server.")
    flags.DEFINE_integer("port", 7860, "The port; 0 takes a free one.", 0, 65535)
    model_flags.define_flags()
    flags.DEFINE_integer("max_megabytes", 200, "Size of an upload.", 1)
    flags.DEFINE_float("max_seconds", 120.0, "Length of a video.", 1.0)
    flags.DEFINE_float("timeout", 300.0, "Seconds for an upload, and for an answer.", 1.0)
    flags.DEFINE_integer("queue", 64, "Videos that are answered or wait at the same time.", 1)
    flags.DEFINE_bool("page", True, "Serve the page; otherwise the JSON endpoint alone.")


def command(argv: list[str]) -> None:
    """Loads the model, then serves until Ctrl-C."""
    del argv
    import uvicorn

    from coco_jax.serving.answers import Limits
    from coco_jax.serving.app import make_app
    from coco_jax.serving.limits import LOCAL_NAMES

    values = flags.FLAGS
    load = model_flags.loader(values)
    listener = _listen(values.host, values.port)
    limits = Limits(
        size=values.max_megabytes << 20,
        duration=values.max_seconds,
        seconds=values.timeout,
        places=values.queue,
    )
    hosts = LOCAL_NAMES if values.host == LOCAL else None
    app = make_app(load(), limits, hosts, values.page)
    config = uvicorn.Config(app, log_level="warning", server_header=False, ws="none")
    host = f"[{values.host}]" if ":" in values.host else values.host
    address = f"http://{host}:{listener.getsockname()[1]}"
    listener.listen()  # from now on requests wait for the server
    print(f"{address} (stop with Ctrl-C)", file=sys.stderr, flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; before the model is loaded, which takes seconds.

    Raises:
      UserError: the address or port cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"--host={host} --port={port}: {error.strerror}; choose another port, or 0 for a free one"
        ) from error
    return listener


def main() -> None:
    """Runs the command with the flags of sys.argv."""
    define_flags()
    run_command(command, "coco_jax.serve")


if __name__ == "__main__":
    main()
