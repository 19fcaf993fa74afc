"""Removing ends what runs in sandboxes, before anything in them is free; a purge leaves nothing."""

import subprocess

import under_load
import units
from machine import *

LEFT = ["/etc/clawbox/agent.yaml", "/var/lib/clawbox", "/var/log/clawbox", "/run/clawbox"]


def check():
    if not sandboxes():
        with step("sandboxes live when the package goes"):
            under_load.start_adversaries()
    before = arrived_elsewhere()
    with step("remove"):
        run("dpkg", "--remove", "clawbox", timeout=600)
    with step("nothing that was in a sandbox goes on"):
        equal(arrived_elsewhere(), before, "connections that arrived")
        equal([under_load.tally(name)[1] for name in under_load.TALLIES], [0, 0], "breaches")
        # Who has asked for a sandbox is no part of it.
        told = run("pgrep", "-a", "-f", f"^{PYTHON} {ATTEMPT}", status=None)
        expect(not told, f"still there: {told}")
        expect(not is_active("agent@hammer.service"), "the unit is active")
    with step("the kernel has nothing of it"):
        for path in ("/sys/fs/bpf/clawbox", "/sys/fs/cgroup/clawbox"):
            expect(not os.path.exists(path), f"{path} is there")
    with step("units start as they did"):
        (OUT / "plain").unlink(missing_ok=True)
        run("systemctl", "reset-failed")
        run("systemctl", "start", "agent@plain.service")
        equal(lines(OUT / "plain", 3), ["ok", "ok", "ok"])
        run("systemctl", "stop", "agent@plain.service")
    with step("purge"):
        run("dpkg", "--purge", "clawbox", timeout=600)
        for path in LEFT:
            expect(not os.path.exists(path), f"{path} is left")
        expect(run("getent", "group", "clawbox", status=2) == "", "the group is there")
