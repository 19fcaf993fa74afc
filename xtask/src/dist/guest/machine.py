"""What all parts of the check use: steps, commands, the far side of the machine's only network, and what
clawbox says of its sandboxes."""

import contextlib
import json
import os
import pathlib
import selectors
import socket
import subprocess
import sys
import time

# Addresses of nobody's: the machine has no network but a pair of interfaces of its own.
HERE, SITE, ELSEWHERE = "93.184.216.10", "93.184.216.34", "93.184.216.35"
PORT = 7
PYTHON = os.path.realpath("/usr/bin/python3")
ATTEMPT = "/usr/local/lib/clawbox-check/attempt.py"
STATE = pathlib.Path("/run/clawbox-check")
OUT = pathlib.Path("/srv/out")
SECRET = pathlib.Path("/srv/secret")
# An emulated processor takes its time.
PATIENCE = 180

current = "begin"


@contextlib.contextmanager
def step(name):
    global current
    current = name
    start = time.monotonic()
    print(f"check: {name} ...")
    yield
    print(f"check: {name}: ok ({time.monotonic() - start:.1f} s)")


def run(*command, status=0, timeout=PATIENCE, **more):
    """Runs a command to its end; what it has printed."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=timeout,
        stdin=subprocess.DEVNULL, **more
    )
    if status is not None and done.returncode != status:
        raise AssertionError(
            f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done.stdout if status == 0 else done.stdout + done.stderr


def expect(is_so, what):
    if not is_so:
        raise AssertionError(what)


def equal(found, wanted, what=""):
    expect(found == wanted, f"{what}: {found!r}, and not {wanted!r}")


def until(what, is_so, patience=PATIENCE):
    """Waits for something that comes of another process's doing; what that is."""
    start = time.monotonic()
    while not (found := is_so()):
        expect(time.monotonic() - start < patience, f"not within {patience} s: {what}")
        time.sleep(0.1)
    return found


# The far side.


def make_far_side():
    STATE.mkdir()
    far = subprocess.Popen(["unshare", "--net", sys.executable, __file__, "far"])
    until("the far side is there", lambda: (STATE / "far").exists())
    pid = str(far.pid)
    run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", pid)
    run("ip", "address", "add", f"{HERE}/24", "dev", "near")
    run("ip", "link", "set", "near", "up")
    there = ["nsenter", "--net", "--target", pid, "ip"]
    for address in (SITE, ELSEWHERE):
        run(*there, "address", "add", f"{address}/24", "dev", "far")
    run(*there, "link", "set", "far", "up")
    until("the far side answers", lambda: subprocess.call(
        [sys.executable, ATTEMPT, "-", f"connect:{SITE}"], stdout=subprocess.DEVNULL) == 0)
    SECRET.write_text("secret\n")
    OUT.mkdir()
    OUT.chmod(0o1777)


def serve_far():
    """Echoes a byte on each connection, and writes down to which address each was made."""
    listener = socket.create_server(("0.0.0.0", PORT), backlog=1024)
    listener.setblocking(False)
    ready = selectors.DefaultSelector()
    ready.register(listener, selectors.EVENT_READ)
    arrived = open(STATE / "arrived", "a", buffering=1)
    (STATE / "far").touch()
    while True:
        for key, _ in ready.select():
            if key.fileobj is listener:
                made, _ = listener.accept()
                arrived.write(made.getsockname()[0] + "\n")
                ready.register(made, selectors.EVENT_READ)
                continue
            made = key.fileobj
            with contextlib.suppress(OSError):
                if data := made.recv(16):
                    made.send(data)
                    continue
            ready.unregister(made)
            made.close()


def arrived_elsewhere():
    """Connections that were made to where no policy here allows any."""
    # Connections are taken in their order: what came before this one has been written down.
    with socket.create_connection((SITE, PORT), 60) as made:
        made.send(b"x")
        made.recv(1)
    return (STATE / "arrived").read_text().split().count(ELSEWHERE)


# clawbox.


def policy(name, more=""):
    """A policy that allows one program one address and one directory."""
    path = pathlib.Path("/etc/clawbox") / f"{name}.yaml"
    path.write_text(
        "version: 1\n"
        "filesystem_policy:\n"
        f"  read_only: [/usr, /lib, /lib64, /bin, /etc, /proc]\n"
        f"  read_write: [/dev/null, {OUT}]\n"
        "network_policies:\n"
        "  site:\n"
        f"    endpoints: [{{ host: {SITE}, port: {PORT} }}]\n"
        f"    binaries: [{{ path: {PYTHON} }}]\n" + more
    )
    return path


def sandboxes(*prefix):
    return json.loads(run(*prefix, "clawbox", "list", "--format", "json"))


def sandbox(name):
    """The one of this name, if it runs."""
    return next((found for found in sandboxes() if found["name"] == name), None)


def sandbox_in(part):
    """The one whose cgroup's path has this in it, if it runs."""
    return next((found for found in sandboxes() if part in found["cgroup"]), None)


def denials(trail):
    """What was denied in a sandbox, as class and object."""
    found = []
    for line in pathlib.Path(trail).read_text().splitlines():
        record = json.loads(line)
        if record["verdict"] == "deny":
            object = record["object"]
            found.append((record["class"], object.get("ip") or object.get("path")))
    return found


def both_denied(trail, root=""):
    """Waits until the trail has the forbidden connection and the forbidden file, by its path on the host."""
    forbidden = {("network", ELSEWHERE), ("file", f"{root}{SECRET}")}
    until(f"{trail} has both", lambda: forbidden <= set(denials(trail)))


def lines(path, number):
    """Waits until a file has so many lines; these, by their last word."""
    path = pathlib.Path(path)

    def enough():
        found = path.read_text().splitlines() if path.exists() else []
        return found if len(found) >= number else None

    return [line.split()[-1] for line in until(f"{path} has {number} lines", enough)]


def is_denied(word):
    return word in ("EPERM", "EACCES")


def main_pid(unit="clawbox.service"):
    return int(run("systemctl", "show", "--property", "MainPID", "--value", unit))


def is_active(unit="clawbox.service"):
    return run("systemctl", "is-active", unit, status=None).strip() == "active"


def tell_all():
    """For who has to find out what went wrong."""
    for command in (
        ["journalctl", "--no-pager", "-n", "60", "-o", "cat", "-u", "clawbox.service"],
        ["journalctl", "--no-pager", "-n", "40", "-o", "short-monotonic"],
        ["systemctl", "--no-pager", "--failed"],
        ["systemd-cgls", "--no-pager"],
        ["ps", "axo", "pid,ppid,stat,wchan:20,args"],
        ["clawbox", "list"],
        ["sh", "-c", "tail -n 12 /var/log/clawbox/*.jsonl"],
        ["sh", "-c", "tail -n 5 /srv/out/*"],
    ):
        print(f"--- {' '.join(command)}")
        with contextlib.suppress(Exception):
            print(run(*command, status=None, timeout=60))


if __name__ == "__main__" and sys.argv[1:] == ["far"]:
    serve_far()
