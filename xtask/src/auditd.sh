#!/bin/bash
# A compile with connects in between, under nothing, under clawbox and under auditd with rules for connect and
# openat, in turn: what each adds to it, takes of a processor, writes and loses. For a guest of its own: auditd's
# rules slow every process until they are gone. Ratios of one run count; the rounds before auditd have none of its
# rules, and nothing of clawbox's is loaded after.
set -u
ROUNDS=${ROUNDS:-3} UNITS=${UNITS:-8}
work=/work
mkdir -p $work /run/clawbox /etc/audit/plugins.d
chmod 1777 $work
cd $work

for unit in $(seq "$UNITS"); do
    cat >unit$unit.c <<END
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/socket.h>
int unit$unit(int n) { printf("%d %zu", n, strlen(getenv("HOME"))); return socket(n, 0, 0) + getpid(); }
END
done
cat >compile.sh <<'END'
#!/bin/bash
for unit in unit*.c; do
    gcc -O0 -c "$unit" -o "$1/${unit%.c}.o" || exit 1
    for n in 1 2 3 4 5 6 7 8; do exec 3>/dev/udp/127.0.0.1/443 && exec 3>&-; done
done
END
cat >policy.yaml <<END
version: 1
filesystem_policy:
  read_only: [/usr, /lib, /lib64, /bin, /etc, /proc, /dev]
  read_write: [/dev/null, /tmp, $work]
execution: { from_writable: allow }
network_policies:
  here:
    endpoints: [{ host: 127.0.0.1, port: 443, transport: udp, host_loopback: true }]
    binaries: [{ path: /usr/bin/bash }]
END
cat >agent.yaml <<END
name: beside
socket: /run/clawbox/clawbox.sock
state: /run/state
trails: /run/trails
lsm: require
END
chmod 755 compile.sh

# Microseconds; in a guest that counts instructions they are those of its one processor, whoever else the host
# works for.
now() { echo "${EPOCHREALTIME/[.,]/}"; }
# Ticks that a process has had.
ticks() { cut -d' ' -f14,15 "/proc/$1/stat" | tr ' ' '+' | { read -r sum; echo $((sum)); }; }
bytes() { du -sbc "$@" 2>/dev/null | tail -1 | cut -f1; }

# Prints NAME, microseconds of a compile, the agent's ticks of 10 ms, its bytes.
row() {
    local name=$1 agent=$2 logs=$3 began ended ticks=0 before=0
    shift 3
    [ "$agent" = 0 ] || ticks=$(ticks "$agent")
    [ "$logs" = - ] || before=$(bytes $logs)
    began=$(now)
    "$@" || { echo "bench: $name failed"; exit 1; }
    ended=$(now)
    # What is still on its way is written.
    sync
    sleep 2
    [ "$agent" = 0 ] || ticks=$(($(ticks "$agent") - ticks))
    [ "$logs" = - ] || before=$(($(bytes $logs) - before))
    echo "row $name $((ended - began)) $ticks $before"
}
out() { mkdir -p "$work/out"; chmod 777 "$work/out"; }
sandboxed() { clawbox run --policy policy.yaml --audit-level "$1" -- ./compile.sh out; }
out
./compile.sh out || { echo "bench: nothing is compiled here"; exit 1; }

for _ in $(seq "$ROUNDS"); do row nothing 0 - ./compile.sh out; done
clawbox daemon --config agent.yaml >daemon.log 2>&1 &
agent=$!
for _ in $(seq 900); do [ -S /run/clawbox/clawbox.sock ] && clawbox list >/dev/null 2>&1 && break; sleep 1; done
sandboxed summary || { cat daemon.log; exit 1; }
for _ in $(seq "$ROUNDS"); do
    row outside 0 - ./compile.sh out
    row clawbox $agent "/run/state /run/trails" sandboxed summary
    row clawbox-all $agent "/run/state /run/trails" sandboxed all
done
echo "lost clawbox $(clawbox status --format json | grep events_lost | tr -dc 0-9)"
clawbox audit query --config agent.yaml --count-by action,verdict | head -20
kill $agent
wait $agent
clawbox uninstall --config agent.yaml || exit 1

for _ in $(seq "$ROUNDS"); do row nothing-again 0 - ./compile.sh out; done
# Debian's own settings, but for a group that this guest has not, and its log where clawbox's is: in memory.
mkdir -p /run/audit /var
[ -e /var/run ] || ln -s /run /var/run
sed -i 's/^log_group.*/log_group = root/; s/^use_libwrap.*/use_libwrap = no/' /etc/audit/auditd.conf
sed -i 's,^log_file.*,log_file = /run/audit/audit.log,' /etc/audit/auditd.conf
chmod 640 /etc/audit/auditd.conf
auditd -n >auditd.log 2>&1 &
auditd=$!
for _ in $(seq 60); do auditctl -s 2>/dev/null | grep -q "pid $auditd" && break; sleep 1; done
auditctl -s | grep -q "pid $auditd" || { cat auditd.log; auditctl -s; sleep 2; exit 1; }
auditctl -D >/dev/null
auditctl -b 8192 >/dev/null
auditctl -a always,exit -F arch=b64 -S connect,openat >/dev/null || { cat auditd.log; exit 1; }
for _ in $(seq "$ROUNDS"); do row auditd $auditd /run/audit ./compile.sh out; done
echo "lost auditd $(auditctl -s | grep '^lost' | tr -dc 0-9)"
echo "events auditd $(cat /run/audit/audit.log* | grep -c type=SYSCALL)"
auditctl -D >/dev/null
kill $auditd
wait $auditd
exit 0
