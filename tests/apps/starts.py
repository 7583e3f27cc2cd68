"""Starting the command very often: a server that forks it once it is loaded, or a process of its own
where the case asks for one."""

from __future__ import annotations

import array
import os
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from command import COMMAND

ADDRESS_SPACE = 8 << 30  # of each start
SANITIZED = "ASAN_OPTIONS" in os.environ
SOURCE = Path(__file__).with_name("fork_server.c")


@dataclass(frozen=True)
class Streams:
    """What a command reads, where it writes, and the folder that it is started in."""

    stdin: BinaryIO
    stdout: BinaryIO
    stderr: BinaryIO
    folder: Path


def confine(process: int) -> None:
    """What a bad input may cost this machine: a command that asks for all of its memory gets some,
    and is the first to be ended."""
    Path(f"/proc/{process}/oom_score_adj").write_text("1000")
    if not SANITIZED:  # sanitizers reserve more than any machine has
        resource.prlimit(process, resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))


class ForkServer:
    """The loaded command, waiting to be forked. Requests may come from several threads."""

    def __init__(self, build: Path) -> None:
        library = build / "fork_server.so"
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise OSError("no C compiler")
        compile_command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(compile_command, check=True, capture_output=True)
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {**os.environ, "LD_PRELOAD": str(library), "FORK_SERVER_SOCKET": str(theirs.fileno())}
        self.process = subprocess.Popen([COMMAND], env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        confine(self.process.pid)

    def run(
        self, arguments: Sequence[str | bytes], streams: Streams, user: int, seconds: float
    ) -> int | None:
        """As subprocess.run: the exit code, minus the signal that ended it, or None where it was
        killed for taking too long."""
        text = b"".join(os.fsencode(part) + b"\0" for part in (str(user), *arguments))
        ours, theirs = socket.socketpair()
        folder = os.open(streams.folder, os.O_RDONLY | os.O_DIRECTORY)
        with ours, theirs:
            files = [streams.stdin.fileno(), streams.stdout.fileno(), streams.stderr.fileno(), folder]
            descriptors = array.array("i", [*files, theirs.fileno()])
            self.socket.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
            os.close(folder)
            theirs.close()
            group = int.from_bytes(ours.recv(4), "little")
            ours.settimeout(seconds)
            try:
                status = ours.recv(4)
            except TimeoutError:
                os.killpg(group, signal.SIGKILL)
                return None
            return os.waitstatus_to_exitcode(int.from_bytes(status, "little"))

    def close(self) -> None:
        self.socket.close()
        self.process.wait()


def run_alone(
    arguments: Sequence[str | bytes], streams: Streams, user: int, seconds: float, shell: str
) -> int | None:
    """A process of its own, started by a line of the shell in which "$@" is the command."""
    process = subprocess.Popen(
        ["sh", "-c", shell, "sh", os.fspath(COMMAND), *arguments],
        stdin=streams.stdin,
        stdout=streams.stdout,
        stderr=streams.stderr,
        cwd=streams.folder,
        start_new_session=True,
        user=user or None,
        group=user or None,
        extra_groups=[] if user else None,
    )
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None
