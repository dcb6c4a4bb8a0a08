"""How a client speaks to its coordinator: by TLS with a certificate, or in plain text within this machine (docs/security.md)."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc

_COORDINATOR = "coordinator.headwater.internal"  # a DNS name that certificates of coordinators bear
_FOLDER, _INSECURE, _TOKEN = "HEADWATER_TLS_DIR", "HEADWATER_INSECURE", "HEADWATER_TOKEN_FILE"
_TOKENS = re.compile(r"[!-~]{1,4096}")
_FILES = ("ca.crt", "tls.crt", "tls.key")
_ISSUE = "`coord certs issue client NAME` makes it"

Stamp = tuple[tuple[int, int, int], ...]
"""Tells whether the files of a certificate have changed."""


class _Bearer(grpc.AuthMetadataPlugin):
    """Adds the token to each call."""

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        try:
            callback((("authorization", "Bearer " + self._read()),), None)
        except ValueError as e:
            callback((), e)


class Security:
    """The certificate of a client, if it has one. folder and insecure are by default what the environment says; folder "" is plain
    text whatever it says."""

    def __init__(self, folder: str | os.PathLike[str] | None = None, insecure: bool | None = None, token: str | os.PathLike[str] | None = None) -> None:
        if folder is None:
            folder = "" if insecure else os.environ.get(_FOLDER, "")
        if insecure is None:
            insecure = not folder and os.environ.get(_INSECURE, "").lower() in ("1", "t", "true")
        self.folder, self.insecure = os.fspath(folder), insecure
        if self.folder and insecure:
            raise ValueError("tls and insecure contradict each other: leave out one of them")
        if token is None and self.folder and os.environ.get(_TOKEN):
            token = Path(os.environ[_TOKEN])
        self._token = token
        self._kept: str | None = None  # path of a file of it, once a program needs one
        if token is not None:
            if not self.folder:
                raise ValueError(f"token: it is sent by TLS alone: give the folder of ca.crt by tls= ({_FOLDER})")
            self._read_token()
        if self.folder:
            self.stamp()

    def _read_token(self) -> str:
        """The token now: a path is read again each time."""
        token = self._token
        if isinstance(token, os.PathLike):
            try:
                token = Path(token).read_text("ascii").strip()
            except (OSError, UnicodeDecodeError) as e:
                raise ValueError(f"token: {os.fspath(self._token)} can't be read: {e.__class__.__name__}") from None  # type: ignore[arg-type]
        if not isinstance(token, str) or not _TOKENS.fullmatch(token):
            raise ValueError("token is not 1 to 4096 letters, digits and signs")  # and not what it is
        return token

    def _files(self) -> tuple[str, ...]:
        """The files that are needed: a token stands for the certificate if there is none."""
        if self._token is not None and not Path(self.folder, _FILES[1]).exists():
            return _FILES[:1]
        return _FILES

    def stamp(self) -> Stamp:
        """What the files are now. A ValueError says which is missing."""
        found = []
        for name in self._files():
            path = Path(self.folder, name)
            try:
                stat = path.stat()
            except OSError as e:
                raise ValueError(f"tls: {path} can't be read: {e.strerror}; {_ISSUE}") from None
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return tuple(found)

    def check(self, address: str, proxied: bool) -> None:
        """Refuses to send plain text to another machine."""
        if not self.folder and not self.insecure and not address.startswith("unix:") and _remote(address.rpartition(":")[0].strip("[]"), proxied):
            raise ValueError(f"{address} is another machine, and there is no certificate: give one by tls= ({_FOLDER}), {_ISSUE}, or say insecure=True")

    def channel(self, target: str, options: list[tuple[str, object]]) -> grpc.Channel:
        """A channel to a coordinator."""
        if not self.folder or target.startswith("unix:"):
            return grpc.insecure_channel(target, options=options)
        authority, *own = (Path(self.folder, name).read_bytes() for name in self._files())
        certificate, key = own or (None, None)
        # Whoever has this name in its certificate is a coordinator, at whatever address.
        named = [*options, ("grpc.ssl_target_name_override", _COORDINATOR)]
        credentials = grpc.ssl_channel_credentials(authority, key, certificate)
        if self._token is not None:
            credentials = grpc.composite_channel_credentials(credentials, grpc.metadata_call_credentials(_Bearer(self._read_token)))
        return grpc.secure_channel(target, credentials, options=named)

    def flags(self) -> list[str]:
        """The flags that have a program speak in the same way."""
        if not self.folder:
            return ["--insecure"] if self.insecure else []
        flags = ["--tls-dir", self.folder]
        return flags if self._token is None else [*flags, "--token-file", self._token_file()]

    def _token_file(self) -> str:
        """A file of the token, for a program: one that this user alone may read and that goes with this object, unless there is one."""
        if isinstance(self._token, os.PathLike):
            return os.fspath(self._token)
        if self._kept is None:
            made, self._kept = tempfile.mkstemp(prefix="headwater-token-")
            weakref.finalize(self, _remove, self._kept, os.getpid())
            with os.fdopen(made, "w", encoding="ascii") as file:
                file.write(self._read_token())
        return self._kept


def _remove(path: str, owner: int) -> None:
    """Removes a file that a process has made; not in a child of its fork."""
    if os.getpid() == owner:
        with suppress(OSError):
            os.unlink(path)


def _remote(host: str, proxied: bool) -> bool:
    """Whether a host is another machine. One that can't be resolved is not found out; a proxy would resolve it by itself."""
    if host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        pass
    if proxied:
        return True
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return any(not ipaddress.ip_address(str(a[4][0]).partition("%")[0]).is_loopback for a in found)


_SAID = [
    (re.compile(r"CERTIFICATE_VERIFY_FAILED"), "what answers shows a certificate of an authority that ca.crt does not have, or one that has expired: both ends need certificates of one authority"),
    (re.compile(r"Hostname Verification Check failed|not a valid peer|is not in peer certificate"), "what answers is no coordinator by its certificate"),
    (re.compile(r"WRONG_VERSION_NUMBER|WRONG_SSL_VERSION|Invalid SSL"), "what answers speaks no TLS: it was started without --tls-dir, or it is no Headwater server"),
]


def in_own_words(text: str) -> str | None:
    """What gRPC's words say of a peer that this end does not trust; None if they say nothing of that."""
    return next((said for pattern, said in _SAID if pattern.search(text)), None)
