#!/usr/bin/env python3
"""A systemctl for a machine without systemd: runs the daemons of real units, for tests of pages that say `systemctl`.

It knows start, stop, restart, enable and disable (with or without --now) of services, and what their units need: User, Type,
RuntimeDirectory, StateDirectory, LoadCredential, WorkingDirectory, ExecStart and ExecStop. It returns when a unit with
Type=notify has said that it is ready. A unit with Type=simple says nothing, so EVENTS has the line of its log that tells
that it accepts connections. Output goes to /run/units/UNIT.log.
"""

import os
import pwd
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

UNITS = [Path(root) / "systemd/system" for root in ("/etc", "/usr/lib", "/lib")]
STATE = Path("/run/units")
EVENTS = {"prosody": (Path("/var/log/prosody/prosody.log"), "Activated service 'c2s'")}
# A daemon that needs longer hangs.
LONGEST = 120


def unit(name):
    """The settings of a service; of several lines with one key, the last."""
    for directory in UNITS:
        if (path := directory / f"{name}.service").exists():
            lines = (line.split("=", 1) for line in path.read_text().splitlines() if not line.startswith("#"))
            return {line[0]: line[1] for line in lines if len(line) == 2}
    sys.exit(f"Failed: Unit {name}.service not found.")


def as_user(user):
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]


def directory(path, user, mode):
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    shutil.chown(path, user, user)


def pid_of(name):
    try:
        return int((STATE / f"{name}.pid").read_text())
    except FileNotFoundError:
        return None


def running(name):
    """A handle of the daemon's process, or None."""
    pid = pid_of(name)
    try:
        handle = pid and os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # A process that has ended makes its handle readable.
    return handle if handle and not ended(handle, 0) else None


def ended(handle, seconds):
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def start(name):
    if running(name):
        return
    settings = unit(name)
    user = settings.get("User", "root")
    environment = {"PATH": os.environ["PATH"], "HOME": pwd.getpwnam(user).pw_dir, "LANG": "C.UTF-8"}
    if runtime := settings.get("RuntimeDirectory"):
        directory(Path("/run") / runtime, user, 0o755)
    if state := settings.get("StateDirectory"):
        directory(Path("/var/lib") / state, user, int(settings.get("StateDirectoryMode", "755"), 8))
    if credential := settings.get("LoadCredential"):
        key, source = credential.split(":", 1)
        credentials = Path("/run/credentials") / f"{name}.service"
        directory(credentials, user, 0o500)
        (credentials / key).unlink(missing_ok=True)
        shutil.copyfile(source, credentials / key)
        (credentials / key).chmod(0o400)
        shutil.chown(credentials / key, user, user)
        environment["CREDENTIALS_DIRECTORY"] = str(credentials)

    ready = None
    if settings["Type"] == "notify":
        path = STATE / f"{name}.notify"
        path.unlink(missing_ok=True)
        ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ready.bind(str(path))
        path.chmod(0o666)
        environment["NOTIFY_SOCKET"] = str(path)
    else:
        log, line = EVENTS[name]
        # Only what the daemon writes from now on counts.
        begin = log.stat().st_size + 1 if log.exists() else 1
    with open(STATE / f"{name}.log", "ab") as output:
        daemon = subprocess.Popen(
            as_user(user) + shlex.split(settings["ExecStart"]),
            cwd=settings.get("WorkingDirectory", "/"), env=environment, stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True,
        )
    (STATE / f"{name}.pid").write_text(str(daemon.pid))
    handle = os.pidfd_open(daemon.pid)
    if ready:
        source = ready
    else:
        tail = subprocess.Popen(["tail", "-F", "-c", f"+{begin}", log], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        source = tail.stdout
    seen = b""
    while (b"READY=1" if ready else line.encode()) not in seen:
        readable, _, _ = select.select([source, handle], [], [], LONGEST)
        if source in readable:
            seen += ready.recv(4096) if ready else os.read(source.fileno(), 65536)
        else:
            sys.exit(f"Job for {name}.service failed: " + ("it ended" if handle in readable else "it did not get ready"))
    if not ready:
        tail.kill()


def stop(name):
    handle = running(name)
    if not handle:
        return
    settings = unit(name)
    if command := settings.get("ExecStop"):
        subprocess.run(as_user(settings.get("User", "root")) + shlex.split(command), stdin=subprocess.DEVNULL)
    else:
        signal.pidfd_send_signal(handle, signal.SIGTERM)
    if not ended(handle, LONGEST):
        sys.exit(f"Job for {name}.service failed: it did not stop")
    (STATE / f"{name}.pid").unlink()


def main(arguments):
    STATE.mkdir(exist_ok=True)
    now = "--now" in arguments
    verb, *names = [argument for argument in arguments if argument != "--now"]
    for name in (name.removesuffix(".service") for name in names):
        unit(name)
        if verb in ("stop", "restart") or verb == "disable" and now:
            stop(name)
        if verb in ("start", "restart") or verb == "enable" and now:
            start(name)
        if verb not in ("start", "stop", "restart", "enable", "disable"):
            sys.exit(f"Unknown command verb {verb}.")


main(sys.argv[1:])
