"""A standing rule catches a new systemd unit before it has done anything, with what systemd itself does to
start it left alone."""

import pathlib
import socket

from machine import *

UNITS = pathlib.Path("/etc/systemd/system")
RULES = pathlib.Path("/etc/clawbox/sandboxes.d")
LISTEN = 7071

TEMPLATE = f"""[Service]
ExecStart={PYTHON} {ATTEMPT} {OUT}/%i connect:{ELSEWHERE} read:{SECRET} connect:{SITE} hold
"""
# What systemd does between making the cgroup and starting the program.
SETTINGS = {
    "plain": "",
    "user": "User=visitor\nSupplementaryGroups=other\n",
    "hardened": "PrivateTmp=yes\nProtectSystem=strict\nReadWritePaths=/srv/out\nProtectHome=yes\n"
    "PrivateDevices=yes\nNoNewPrivileges=yes\nDynamicUser=yes\nStateDirectory=hardened\n"
    "SystemCallFilter=@system-service\n",
    "steps": f"ExecStartPre={PYTHON} {ATTEMPT} {OUT}/pre connect:{ELSEWHERE} connect:{SITE}\n"
    "Type=exec\nExecStopPost=/usr/bin/touch /srv/out/post\n",
    "network": "PrivateNetwork=yes\n",
}


def rule(name, wanted, file):
    RULES.mkdir(exist_ok=True)
    (RULES / f"{name}.yaml").write_text(f"name: {name}\nmatch: {wanted}\npolicy: {file}\n")


def start(name):
    (OUT / name).unlink(missing_ok=True)
    run("systemctl", "start", f"agent@{name}.service")


def caught(name, site="ok"):
    """A unit that has just been started is a sandbox, and nothing has got through."""
    words = lines(OUT / name, 3)
    text = (OUT / name).read_text()
    expect(is_denied(words[0]) and is_denied(words[1]) and words[2] == site, text)
    expect(is_active(f"agent@{name}.service"), "the unit is not active")
    found = until("it is listed", lambda: sandbox_in(f"agent@{name}.service"))
    both_denied(found["trail"])
    return found


def stopped(name):
    run("systemctl", "stop", f"agent@{name}.service")
    until("the sandbox has ended", lambda: not sandbox_in(f"agent@{name}.service"))


def check():
    with step("a standing rule is in force after a reload"):
        file = policy("unit", f"listen: {{ ports: [{LISTEN}] }}\n")
        rule("agent", "{ unit: 'agent@*.service' }", file)
        (UNITS / "agent@.service").write_text(TEMPLATE)
        for name, settings in SETTINGS.items():
            directory = UNITS / f"agent@{name}.service.d"
            directory.mkdir()
            (directory / "own.conf").write_text(f"[Service]\n{settings}")
        run("systemctl", "daemon-reload")
        run("systemctl", "reload", "clawbox.service")
        # A reload is over when the signal is sent.
        until("the rule is in force", lambda: "rules are in force" in run(
            "journalctl", "-u", "clawbox.service", "-o", "cat", "--no-pager"))
        before = arrived_elsewhere()
    for name in SETTINGS:
        with step(f"a new unit is caught: {name}"):
            start(name)
            found = caught(name, "ENETUNREACH" if name == "network" else "ok")
            equal(arrived_elsewhere(), before, "connections that arrived")
            if name == "steps":
                words = lines(OUT / "pre", 2)
                expect(is_denied(words[0]) and words[1] == "ok", (OUT / "pre").read_text())
    with step("a unit that is started again is caught again"):
        (OUT / "plain").unlink()
        run("systemctl", "restart", "agent@plain.service")
        again = caught("plain")
        equal(arrived_elsewhere(), before, "connections that arrived")
    with step("stopping a unit ends its sandbox"):
        for name in SETTINGS:
            stopped(name)
        until("what systemd runs at the end has run", lambda: (OUT / "post").exists())
        equal(sandboxes(), [])
    with step("a unit that a socket starts keeps its listener"):
        activated(before)


def activated(before):
    (UNITS / "agent@listen.socket").write_text(
        f"[Socket]\nListenStream=127.0.0.1:{LISTEN}\nService=agent@listen.service\n")
    directory = UNITS / "agent@listen.service.d"
    directory.mkdir()
    (directory / "own.conf").write_text(
        "[Service]\nExecStart=\n"
        f"ExecStart={PYTHON} {ATTEMPT} {OUT}/listen connect:{ELSEWHERE} read:{SECRET} serve hold\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "agent@listen.socket")
    with socket.create_connection(("127.0.0.1", LISTEN), PATIENCE) as made:
        made.send(b"y")
        equal(made.recv(1), b"y", "what the unit answers")
    caught("listen")
    equal(arrived_elsewhere(), before, "connections that arrived")
    run("systemctl", "stop", "agent@listen.socket", "agent@listen.service")
    until("the sandbox has ended", lambda: not sandbox_in("agent@listen.service"))
