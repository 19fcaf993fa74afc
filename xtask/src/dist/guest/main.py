"""The check of the package on a machine that systemd has booted: runs as a unit, tells each step on the
console, and its status on the second serial port. The first step that fails ends it."""

import os
import pathlib
import sys
import traceback

sys.dont_write_bytecode = True

import containers
import machine
import package
import removal
import under_load
import units

PARTS = [
    ("users", package.users),
    ("units", units.check),
    ("containers", containers.check),
    ("load", under_load.check),
    ("removal", removal.check),
]


# By it podman knows that a unit has started it; it is to do as it does for who has logged in.
os.environ.pop("INVOCATION_ID", None)


def main():
    only = pathlib.Path(__file__).with_name("only").read_text().split()
    unknown = [name for name in only if name not in dict(PARTS)]
    assert not unknown, f"there are no such parts: {unknown}"
    machine.make_far_side()
    package.install()
    for name, part in PARTS:
        if not only or name in only:
            part()


def end(status):
    with open("/dev/ttyS1", "w") as report:
        report.write(f"clawbox-vm-exit: {status}\n")


try:
    main()
except BaseException as error:
    print(f"check: {machine.current}: FAILED: {error}")
    traceback.print_exc()
    machine.tell_all()
    end(1)
else:
    print("check: the package holds what it promises")
    end(0)
