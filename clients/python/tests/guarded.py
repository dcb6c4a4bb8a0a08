"""A cluster with certificates and tenants, of the program's processes."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import headwater

COORD = os.environ["HEADWATER_COORD"]  # conftest.py says which it is by default


def issue(folder: Path, *of: tuple[str, str]) -> None:
    if not folder.exists():
        subprocess.run([COORD, "certs", "init", "--dir", folder], check=True, stdout=subprocess.DEVNULL)
    for role, name in of:
        subprocess.run([COORD, "certs", "issue", role, name, "--dir", folder], check=True, stdout=subprocess.DEVNULL)


def serving(stack: ExitStack, *command: str) -> str:
    """The address of a process that serves."""
    process = stack.enter_context(subprocess.Popen([COORD, *command, "--listen", "127.0.0.1:0", "--gossip", "", "--log-format", "json"], stderr=subprocess.PIPE, text=True))
    stack.callback(process.terminate)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("{") and json.loads(line)["msg"] == "serving":
            return str(json.loads(line)["address"])
    pytest.fail(f"{command} did not serve")


class Guarded:
    """A coordinator and two workers with certificates, which know the client ann by hers and bob by his token.

    certs  the folder of their authority
    trust  a folder of ca.crt alone
    workers  the workers' names and addresses, as coordinators take them
    """

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.certs, self.trust = root / "certs", root / "trust"
        issue(self.certs, ("coordinator", "c1"), ("worker", "w1"), ("worker", "w2"), ("client", "ann"))
        self.trust.mkdir()
        (self.trust / "ca.crt").write_bytes((self.certs / "ca.crt").read_bytes())
        added = subprocess.run([COORD, "tenants", "add", "bob", "--file", root / "tenants"], check=True, stdout=subprocess.PIPE, text=True)
        self.token = added.stdout.strip()
        self.workers = ",".join(f"{w}={serving(stack, 'worker', 'serve', '--name', w, '--memory', '64MiB', '--tls-dir', f'{self.certs}/worker-{w}')}" for w in ("w1", "w2"))
        secured = ["--tls-dir", f"{self.certs}/coordinator-c1", "--tenants", f"{root}/tenants"]
        self.address = serving(stack, "serve", "--name", "c1", "--workers", self.workers, "--data-dir", f"{root}/data", *secured)

    def dial(self, who: str, **options: Any) -> headwater.Client:
        """A client by a certificate, ann, or by a token, bob."""
        shown: dict[str, Any] = {"tls": self.certs / "client-ann"} if who == "certificate" else {"tls": self.trust, "token": self.token}
        return headwater.Client(self.address, timeout=60, **shown, **options)
