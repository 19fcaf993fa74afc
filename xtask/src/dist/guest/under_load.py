"""The agent is killed and upgraded while adversaries in two sandboxes try what is forbidden, all the time."""

import signal
import subprocess

import units
from machine import *

KILLS = 20
SPEC = f"{SITE},{ELSEWHERE},{SECRET}"
TALLIES = {"visitor": OUT / "tally-visitor", "unit": OUT / "tally-unit"}


def tally(name):
    """What an adversary has tried, what of it went through, what was allowed, and the longest wait for
    something that is."""
    path = TALLIES[name]
    if not path.exists():
        return 0, 0, 0, 0.0
    tries, breaches, allowed, longest = path.read_text().split()
    return int(tries), int(breaches), int(allowed), float(longest)


def go_on(why):
    """Waits until each adversary has tried more, and each has been let do what is allowed."""
    before = {name: tally(name) for name in TALLIES}

    def have_gone_on():
        found = {name: tally(name) for name in TALLIES}
        equal([found[name][1] for name in found], [0, 0], "breaches")
        return all(found[name][0] > before[name][0] and found[name][2] > before[name][2] for name in found)

    until(f"both go on after {why}", have_gone_on)


def start_adversaries():
    file = policy("visitor")
    units.rule("agent", "{ unit: 'agent@*.service' }", policy("unit"))
    (units.UNITS / "agent@.service").write_text(units.TEMPLATE)
    directory = units.UNITS / "agent@hammer.service.d"
    directory.mkdir(exist_ok=True)
    (directory / "own.conf").write_text(
        f"[Service]\nExecStart=\nStandardOutput=null\n"
        f"ExecStart={PYTHON} {ATTEMPT} - hammer:{SPEC},{TALLIES['unit']}\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "clawbox.service")
    until("it is active", is_active)
    subprocess.Popen(
        ["runuser", "-u", "visitor", "--", "clawbox", "run", "--name", "hammer", "--policy", str(file),
         "--", PYTHON, ATTEMPT, "-", f"hammer:{SPEC},{TALLIES['visitor']}"],
        cwd="/home/visitor", stdout=subprocess.DEVNULL)
    run("systemctl", "start", "agent@hammer.service")
    until("both are at it", lambda: all(tally(name)[2] for name in TALLIES))


def check():
    before = arrived_elsewhere()
    with step("adversaries begin"):
        start_adversaries()
        equal(len(sandboxes()), 2, "sandboxes")
    with step(f"the agent is killed {KILLS} times under load"):
        for number in range(KILLS):
            pid = main_pid()
            os.kill(pid, signal.SIGKILL)
            until("systemd has started it again", lambda: is_active() and main_pid() not in (0, pid))
            equal(len(sandboxes()), 2, "sandboxes")
            equal(arrived_elsewhere(), before, "connections that arrived")
            go_on(f"kill {number + 1}")
            print(f"check: kill {number + 1}: both go on, and nothing has gone through")
    with step("it is upgraded under load"):
        pid = main_pid()
        run("dpkg", "--install", "/srv/newer.deb", timeout=600)
        until("it is active", is_active)
        expect(main_pid() != pid, "the agent was not restarted")
        expect("+1" in run("dpkg-query", "--show", "clawbox"), "it is the old one")
        equal(len(sandboxes()), 2, "sandboxes")
        go_on("the upgrade")
    equal(arrived_elsewhere(), before, "connections that arrived")
    for name in TALLIES:
        tries, _, allowed, longest = tally(name)
        print(f"check: {name}: {tries} forbidden, none went through; {allowed} allowed, "
              f"{longest:.1f} s apart at most")
    with step("who was attacked from is told"):
        for found in sandboxes():
            both_denied(found["trail"])
