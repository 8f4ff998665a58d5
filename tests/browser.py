"""A real browser without a window, told what to do through Chromium's pipe of the DevTools protocol: two file
descriptors and JSON between zero bytes, so that no driver and no package is needed."""

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
PATIENCE = 60  # seconds for one answer, on a machine with other work


def installed() -> str | None:
    return os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page. `faults` are errors of scripts and of the console, what was refused, and what asked for the network."""

    def __init__(self):
        self.profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        told, self.writing = os.pipe()
        self.reading, answers = os.pipe()
        # The browser reads descriptor 3 and writes 4; a shell puts the pipes there, whatever their numbers are here.
        command = [
            installed(), "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
            "--disable-background-networking", "--disable-dev-shm-usage", f"--user-data-dir={self.profile.name}",
        ]  # fmt: skip
        script = f'exec 3<&{told} 4>&{answers}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "browser", *command], pass_fds=(told, answers),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(told)
        os.close(answers)
        self.number, self.session, self.rest, self.faults = 0, None, b"", []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.writing)
        os.close(self.reading)
        self.profile.cleanup()

    def call(self, method, **params):
        """One command and its answer; what the page reports meanwhile is kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer.get("method"), answer.get("params", {}))

    def _next(self):
        until = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            assert select.select([self.reading], [], [], max(0, until - time.monotonic()))[0], "the browser is silent"
            read = os.read(self.reading, 1 << 16)
            assert read, "the browser has ended"
            self.rest += read
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event, params):
        if event == "Runtime.exceptionThrown":
            self.faults.append(params["exceptionDetails"]["exception"].get("description"))
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.faults.append([argument.get("value") for argument in params["args"]])
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.faults.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent" and params["request"]["url"].startswith(("http", "ws")):
            self.faults.append(params["request"]["url"])

    def open(self, path: Path):
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState == 'complete'")

    def run(self, script):
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]["exception"].get("description")
        return answer["result"].get("value")

    def wait(self, script):
        until = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < until, f"never true: {script}"
            time.sleep(0.05)

    def press(self, key, code=None, text=""):
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text if kind == "keyDown" else "",
                windowsVirtualKeyCode=code or {"Enter": 13, "ArrowDown": 40, "Tab": 9}.get(key, 0),
            )  # fmt: skip
