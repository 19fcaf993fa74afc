"""What an agent tries: `attempt.py RESULTS STEP...`. Each step's outcome is a line of RESULTS and of
standard output, written whole; `hammer` never ends and says what came of all its tries so far."""

import errno
import os
import socket
import sys
import time

PORT = 7


def outcome(what):
    try:
        what()
        return "ok"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def connect(address):
    with socket.create_connection((address, PORT), 20) as made:
        made.send(b"x")
        made.recv(1)


def read(path):
    with open(path, "rb") as file:
        file.read(1)


def write(path):
    with open(path, "ab") as file:
        file.write(b"x")


def serve(_):
    """Echoes one byte of one connection to the listener that systemd has handed over."""
    with socket.socket(fileno=3) as listener:
        made, _ = listener.accept()
        made.send(made.recv(1))
        made.close()


def hammer(spec):
    """Tries what is forbidden all the time, and now and then what is allowed."""
    site, elsewhere, secret, tally = spec.split(",")
    tries = breaches = allowed = 0
    longest, last = 0.0, time.monotonic()
    while True:
        for forbidden in (lambda: connect(elsewhere), lambda: read(secret)):
            tries += 1
            if outcome(forbidden) not in ("EPERM", "EACCES"):
                breaches += 1
        if outcome(lambda: connect(site)) == "ok":
            allowed += 1
            longest = max(longest, time.monotonic() - last)
            last = time.monotonic()
        with open(tally + ".new", "w") as file:
            file.write(f"{tries} {breaches} {allowed} {longest:.1f}\n")
        os.rename(tally + ".new", tally)


def hold(_):
    while True:
        time.sleep(3600)


STEPS = dict(connect=connect, read=read, write=write, serve=serve, hammer=hammer, hold=hold)

results = open(sys.argv[1], "w", buffering=1) if sys.argv[1] != "-" else None
for step in sys.argv[2:]:
    name, _, argument = step.partition(":")
    line = f"{step} {outcome(lambda: STEPS[name](argument))}"
    if results:
        results.write(line + "\n")
    print(line, flush=True)
