"""Serving the page: one address, one private folder for uploads, nothing from elsewhere."""

from __future__ import annotations

import errno
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from faceattr_lightning.errors import ConfigError

if TYPE_CHECKING:
    import gradio as gr

_SECONDS_TO_END = 2
_MOST_CONNECTIONS = 100
# Of an upload that was broken off, or that nothing was asked about; it is looked for as often.
_SECONDS_UPLOADED = 60
# What surrounds a file in a request.
_FORM = 2**16
# Whatever a part of gradio may ask for, a browser fetches nothing from elsewhere.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; form-action 'self'"
)
_PROBLEMS = {
    errno.EADDRINUSE: "another program listens there; choose another task.port, or 0 for any that is free",
    errno.EACCES: "there is no permission to listen there; choose a task.port of at least 1024",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose another task.host",
}


@contextmanager
def listening(host: str, port: int) -> Iterator[tuple[socket.socket, str]]:
    """Give a socket that listens, and the page's address.

    Args:
        host: address or name of this machine.
        port: 0 for any that is free.

    Raises:
        ConfigError: it can't listen there.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        problem = _PROBLEMS.get(number or 0, str(error))
        raise ConfigError([f"task.host, task.port: the page can't be at {host}, port {port}: {problem}."]) from error
    with listener:
        shown = f"[{host}]" if ":" in host else host
        yield listener, f"http://{shown}:{listener.getsockname()[1]}"


@contextmanager
def upload_folder() -> Iterator[Path]:
    """Give a folder that only this user may open, for gradio's files; old ones are deleted, and it is at the end."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="faceattr-demo-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        ended = threading.Event()
        threading.Thread(target=_delete_old, args=(folder, ended), daemon=True).start()
        try:
            yield folder
        finally:
            ended.set()
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM end the program with exit status 143, and Ctrl-C what is inside, both after their clean-up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def serve(page: gr.Blocks, listener: socket.socket, most_megabytes: int, css: str) -> None:
    """Answer browsers until a signal comes.

    Args:
        page: is shown.
        listener: listens.
        most_megabytes: of an upload, 2^20 bytes each.
        css: of the page.
    """
    import fastapi
    import gradio as gr
    import uvicorn

    app = gr.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None),
        page,
        path="/",
        server_name=listener.getsockname()[0],
        server_port=listener.getsockname()[1],
        footer_links=[],
        # It would keep photos in the browser.
        run_history=False,
        app_kwargs={"openapi_url": None},
        show_error=False,
        max_file_size=most_megabytes * 2**20,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        # Fonts of the system.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=css,
    )
    # As gradio's own server has them; without, it takes any file of this machine that a browser names for an upload.
    page.has_launched = page.is_running = True
    app.add_middleware(_OnlyFromHere)
    app.add_middleware(_LimitedBodies, most=most_megabytes * 2**20 + _FORM)
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_SECONDS_TO_END,
        limit_concurrency=_MOST_CONNECTIONS,
    )
    uvicorn.Server(config).run(sockets=[listener])


class _OnlyFromHere:
    """Adds the headers that keep a browser from fetching anything elsewhere.

    Args:
        app: an ASGI application.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = {"content-security-policy": _POLICY, "referrer-policy": "no-referrer"}
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name.encode(), value.encode()) for name, value in added.items()),
                ]
            await send(message)

        await self.app(scope, receive, sent)


class _LimitedBodies:
    """Refuses a request with a longer body; gradio limits each file of an upload, but not how many there are.

    Args:
        app: an ASGI application.
        most: bytes.
    """

    def __init__(self, app: Any, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import PlainTextResponse

        stated = dict(scope.get("headers", ())).get(b"content-length", b"0")
        if int(stated) > self.most:
            await PlainTextResponse(f"At most {self.most:,} bytes are taken.", 413)(scope, receive, send)
            return
        taken = 0

        async def received() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            # Of a body that does not state its length: as if the browser had gone.
            return {"type": "http.disconnect"} if taken > self.most else message

        await self.app(scope, received, send)


def _delete_old(folder: Path, ended: threading.Event) -> None:
    """Delete files that were left, until the page has ended."""
    while not ended.wait(_SECONDS_UPLOADED):
        for path in folder.rglob("*"):
            with suppress(OSError):
                if path.is_file() and time.time() - path.stat().st_mtime > _SECONDS_UPLOADED:
                    path.unlink()


def _end(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)
