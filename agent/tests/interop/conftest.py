# SPDX-License-Identifier: Apache-2.0
"""Other people's Modbus programs, made ready once under build/ and started for a test.

What a machine lacks is said in the reason of the skip, with the Debian package that has it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BUILD = Path(__file__).parents[3] / "build" / "interop"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def needed(program: str, package: str) -> str:
    """Return a program's path, or skip."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not on this machine (Debian: {package})")
    return found


def stamped(directory: Path, *sources: Path) -> tuple[Path, str]:
    """Return where a recipe's digest is kept, and what it is now."""
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return directory / "recipe", digest


@pytest.fixture(scope="session")
def libmodbus_server() -> list[str]:
    """Compile the libmodbus server."""
    compiler, flags_of = needed("cc", "gcc"), needed("pkg-config", "pkg-config")
    flags = subprocess.run([flags_of, "--cflags", "--libs", "libmodbus"], capture_output=True, text=True, check=False)
    if flags.returncode:
        pytest.skip("libmodbus is not on this machine (Debian: libmodbus-dev)")
    source, directory = HERE / "libmodbus_server.c", BUILD / "libmodbus"
    stamp, digest = stamped(directory, source)
    if not stamp.exists() or stamp.read_text(encoding="ascii") != digest:
        directory.mkdir(parents=True, exist_ok=True)
        command = [compiler, "-O2", "-Wall", "-Werror", "-o", str(directory / "server"), str(source)]
        subprocess.run([*command, *flags.stdout.split()], check=True)
        stamp.write_text(digest, encoding="ascii")
    return [str(directory / "server")]


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Install the locked packages from npm."""
    npm, directory = needed("npm", "npm"), BUILD / "npm"
    sources = (HERE / "package.json", HERE / "package-lock.json")
    stamp, digest = stamped(directory, *sources)
    if not stamp.exists() or stamp.read_text(encoding="ascii") != digest:
        directory.mkdir(parents=True, exist_ok=True)
        for source in sources:
            shutil.copy(source, directory)
        # serialport, an option of modbus-serial, is native code that no test here needs.
        command = [npm, "ci", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"npm could not install what the lock names: {done.stderr.strip().splitlines()[-1:]}")
        stamp.write_text(digest, encoding="ascii")
    return directory / "node_modules"


@pytest.fixture
def javascript(node_modules: Path) -> Callable[[str], list[str]]:
    """Return the command that runs a JavaScript server."""
    return lambda name: [needed("env", "coreutils"), f"NODE_PATH={node_modules}", "node", str(HERE / name)]


@contextmanager
def started(command: list[str]) -> Iterator[int]:
    """Run a server that prints its port; yield that, and end the server."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], int]]:
    """Return what starts a server and gives its port; all end with the test."""
    with ExitStack() as servers:
        yield lambda command: servers.enter_context(started(command))


@pytest.fixture
def mbpoll() -> Callable[..., list[int]]:
    """Return a reader that shares nothing with us: holding registers (or table `-t`) from a PDU address on."""
    program = needed("mbpoll", "mbpoll")

    def read(port: int, address: int, count: int, table: str = "4") -> list[int]:
        command = [program, "-m", "tcp", "-a", "1", "-0", "-r", str(address), "-c", str(count), "-t", table, "-1", "-q"]
        printed = subprocess.run(
            [*command, "-p", str(port), "127.0.0.1"], capture_output=True, text=True, check=True
        ).stdout
        values = [line.split("]:", 1)[1].split()[0] for line in printed.splitlines() if line.startswith("[")]
        return [int(value) for value in values]

    return read
