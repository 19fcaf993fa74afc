"""A standing rule for a label catches podman's containers, and those alone."""

import shutil
import subprocess

import units
from machine import *

ROOTFS = pathlib.Path("/srv/rootfs")
STEPS = [f"connect:{ELSEWHERE}", f"read:{SECRET}", f"connect:{SITE}", "hold"]
LIBRARIES = ["libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1"]


def make_rootfs():
    """The machine's Python and what it takes, as a root directory."""
    for directory in ("dev", "proc", "sys", "tmp", "etc", "srv/out", "usr/bin", "usr/lib64", "run"):
        (ROOTFS / directory).mkdir(parents=True)
    for link in ("bin", "lib", "lib64"):
        (ROOTFS / link).symlink_to(f"usr/{link}")
    shutil.copy(PYTHON, ROOTFS / PYTHON[1:])
    shutil.copy(os.path.realpath("/bin/sh"), ROOTFS / "usr/bin/sh")
    library = ROOTFS / "usr/lib/x86_64-linux-gnu"
    library.mkdir(parents=True)
    for name in LIBRARIES:
        shutil.copy(f"/lib/x86_64-linux-gnu/{name}", library / name)
    shutil.copy("/lib64/ld-linux-x86-64.so.2", ROOTFS / "usr/lib64/ld-linux-x86-64.so.2")
    python = f"/usr/lib/{os.path.basename(PYTHON)}"
    shutil.copytree(python, ROOTFS / python[1:])
    (ROOTFS / ATTEMPT[1:]).parent.mkdir(parents=True)
    shutil.copy(ATTEMPT, ROOTFS / ATTEMPT[1:])
    shutil.copy(SECRET, ROOTFS / "srv/secret")


def podman(*command, status=0, timeout=PATIENCE):
    return run("podman", *command, status=status, timeout=timeout)


def start(name, *options, steps=STEPS, manager="systemd"):
    (OUT / name).unlink(missing_ok=True)
    podman("--cgroup-manager", manager, "run", "--detach", "--name", name, "--log-driver", "k8s-file", *options,
           "--volume", f"{OUT}:{OUT}", "--rootfs", str(ROOTFS),
           PYTHON, ATTEMPT, str(OUT / name), *steps)
    return podman("inspect", "--format", "{{.Id}}", name).strip()


def caught(name, number, site):
    words = lines(OUT / name, 3)
    text = (OUT / name).read_text()
    expect(is_denied(words[0]) and is_denied(words[1]) and words[2] == site, text)
    found = until("it is listed", lambda: sandbox_in(number))
    both_denied(found["trail"], ROOTFS)
    return found


def first_process(name):
    return podman("inspect", "--format", "{{.State.Pid}}", name).strip()


def is_stopped(process):
    return pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1].startswith("T")


def at_once(before):
    """Eight containers that are begun together, every second of which is labelled."""
    names = {f"many{number}": "on" if number % 2 else "off" for number in range(8)}
    started = []
    for name, label in names.items():
        started.append(subprocess.Popen(
            ["podman", "run", "--rm", "--name", name, "--network", "host", "--label", f"clawbox={label}",
             "--volume", f"{OUT}:{OUT}", "--rootfs", str(ROOTFS), PYTHON, ATTEMPT, str(OUT / name),
             *STEPS[:3]], stdout=subprocess.DEVNULL))
    for child in started:
        equal(child.wait(PATIENCE), 0, "podman's status")
    for name, label in names.items():
        words = lines(OUT / name, 3)
        denied = [is_denied(word) for word in words]
        equal(denied, [True, True, False] if label == "on" else [False] * 3, name)
    equal(arrived_elsewhere(), before + 4, "connections that arrived")


def check():
    with step("a rule for containers is in force"):
        make_rootfs()
        file = policy("container")
        units.rule("container", "{ container: { labels: { clawbox: 'on' } } }", file)
        run("systemctl", "restart", "clawbox.service")
        until("it is active", is_active)
    before = arrived_elsewhere()
    with step("a container with the label is caught"):
        number = start("caught", "--network", "host", "--label", "clawbox=on")
        caught("caught", number, "ok")
        equal(arrived_elsewhere(), before, "connections that arrived")
    with step("so is one with a network of its own"):
        number = start("alone", "--network", "none", "--label", "clawbox=on")
        caught("alone", number, "ENETUNREACH")
    with step("what podman starts in it is under the policy"):
        told = podman("exec", "caught", PYTHON, ATTEMPT, "-", *STEPS[:3])
        words = [line.split()[-1] for line in told.splitlines()]
        expect(is_denied(words[0]) and is_denied(words[1]) and words[2] == "ok", told)
        equal(arrived_elsewhere(), before, "connections that arrived")
    with step("a container without the label is not touched"):
        number = start("free", "--network", "host", "--label", "clawbox=off")
        equal(lines(OUT / "free", 3), ["ok", "ok", "ok"])
        expect(not sandbox_in(number), "it is a sandbox")
        equal(arrived_elsewhere(), before + 1, "connections that arrived")
    with step("a container that is in the foreground says its status"):
        (OUT / "short").unlink(missing_ok=True)
        told = podman("run", "--rm", "--name", "short", "--network", "host", "--label", "clawbox=on",
                      "--volume", f"{OUT}:{OUT}", "--rootfs", str(ROOTFS), PYTHON, ATTEMPT,
                      str(OUT / "short"), *STEPS[:3])
        expect(told.count("\n") == 3, told)
        equal(arrived_elsewhere(), before + 1, "connections that arrived")
    with step("what is started while there is no agent waits for one"):
        run("systemctl", "stop", "clawbox.service")
        numbers = {}
        for name, label in (("late", "on"), ("later", "off")):
            # The engine itself is not kept waiting.
            numbers[name] = start(name, "--network", "host", "--label", f"clawbox={label}")
            until("it is held", lambda: is_stopped(first_process(name)))
            expect(not (OUT / name).exists(), "it has done something")
        run("systemctl", "start", "clawbox.service")
        caught("late", numbers["late"], "ok")
        equal(lines(OUT / "later", 3), ["ok", "ok", "ok"])
        equal(arrived_elsewhere(), before + 2, "connections that arrived")
        podman("rm", "--force", "--time", "1", "late", "later")
    before += 1
    with step("so is one in a hierarchy of podman's own"):
        number = start("own", "--network", "host", "--label", "clawbox=on", manager="cgroupfs")
        caught("own", number, "ok")
        equal(arrived_elsewhere(), before + 1, "connections that arrived")
        podman("rm", "--force", "--time", "1", "own")
    with step("several at once are each what they are"):
        at_once(before + 1)
    before += 4
    with step("stopping a container ends its sandbox"):
        for name in ("caught", "alone", "free"):
            podman("stop", "--time", "2", name)
        until("they have ended", lambda: not sandboxes())
    with step("a container that is started again is caught again"):
        (OUT / "caught").unlink()
        podman("start", "caught")
        number = podman("inspect", "--format", "{{.Id}}", "caught").strip()
        caught("caught", number, "ok")
        equal(arrived_elsewhere(), before + 1, "connections that arrived")
        podman("rm", "--force", "--time", "1", "caught", "alone", "free")
        until("it has ended", lambda: not sandboxes())
