"""The package comes, the unit starts, and a user in no special group uses it."""

import json
import pwd
import subprocess

from machine import *

VISITOR, OTHER = "visitor", "other"


def install():
    with step("install"):
        run("dpkg", "--install", "/srv/clawbox.deb", timeout=600)
    with step("the unit is active"):
        until("it is active", is_active)
        run("systemctl", "is-enabled", "clawbox.service")
        run("systemd-analyze", "--man=no", "verify", "clawbox.service")
        status = run("clawbox", "status")
        print(status)
    expect("Notify" in run("systemctl", "show", "clawbox.service", "-p", "Type").title(), "Type")
    for user in (VISITOR, OTHER):
        run("useradd", "--create-home", user)


def as_user(user):
    return ["runuser", "-u", user, "--"]


def users():
    file = policy("visitor", more="")
    command = [PYTHON, ATTEMPT]
    with step("a user in no special group runs a command"):
        expect(run("id", "-Gn", VISITOR).split() == [VISITOR], "it has groups")
        home = pwd.getpwnam(VISITOR).pw_dir
        out = OUT / "visitor"
        before = arrived_elsewhere()
        child = subprocess.Popen(
            [*as_user(VISITOR), "clawbox", "run", "--name", "visit", "--policy", str(file), "--",
             *command, str(out), f"connect:{SITE}", f"connect:{ELSEWHERE}", f"read:{SECRET}", "hold"],
            cwd=home, stdout=subprocess.DEVNULL,
        )
        site, elsewhere, secret = lines(out, 3)
        expect(site == "ok" and is_denied(elsewhere) and is_denied(secret), out.read_text())
        equal(arrived_elsewhere(), before, "connections that arrived")
    with step("the user sees it and others do not"):
        mine = sandboxes(*as_user(VISITOR))
        equal([found["name"] for found in mine], ["visit"])
        equal(sandboxes(*as_user(OTHER)), [])
        equal([found["owner"] for found in sandboxes()], [VISITOR])
        both_denied(mine[0]["trail"])
        refused = run(*as_user(OTHER), "clawbox", "stop", "visit", status=2)
        expect("visit" in refused, refused)
    with step("reload"):
        pid = main_pid()
        run("systemctl", "reload", "clawbox.service")
        equal(main_pid(), pid)
        json.loads(run("clawbox", "status", "--format", "json"))
    with step("the user stops it"):
        run(*as_user(VISITOR), "clawbox", "stop", "visit", "--timeout", "5s")
        child.wait(60)
        equal(sandboxes(), [])
