#!/usr/bin/busybox sh
# The first process of a test VM: makes a host-like system, runs one command, reports its status.
# The second serial port carries what xtask waits for; a guest that dies never writes the last line.
bb=/usr/bin/busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8

if [ "$1" != on-disk ]; then
    $bb mount -t devtmpfs -o nosuid devtmpfs /dev
    exec </dev/null >/dev/ttyS0 2>&1
    while read -r module; do
        $bb insmod "/vm/modules/$module" || echo "vm: cannot load $module"
    done </vm/modules.order
    if [ -d /brought ]; then
        # Copied from within the disk: links in it are absolute.
        $bb mount -t ext4 /dev/vda /disk && $bb mkdir /disk/brought &&
            $bb mount --bind /brought /disk/brought &&
            $bb chroot /disk $bb cp -a /brought/. / && $bb umount /disk/brought &&
            $bb rmdir /disk/brought && $bb mount --move /dev /disk/dev &&
            exec $bb switch_root /disk /init on-disk
        echo "vm: the disk cannot be made the root directory"
        $bb reboot -f
    fi
fi
$bb mkdir -p /dev/pts /dev/shm
$bb mount -t devpts devpts /dev/pts
$bb mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm
$bb mount -t proc -o nosuid,nodev,noexec proc /proc
$bb mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
$bb mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
$bb mount -t bpf -o nosuid,nodev,noexec bpf /sys/fs/bpf
$bb mount -t securityfs securityfs /sys/kernel/security
$bb mount -t tracefs tracefs /sys/kernel/tracing
$bb mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs /run
$bb mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /tmp
$bb ln -s /proc/self/fd /dev/fd
$bb ln -s /proc/self/fd/0 /dev/stdin
$bb ln -s /proc/self/fd/1 /dev/stdout
$bb ln -s /proc/self/fd/2 /dev/stderr

$bb stty -onlcr <&1
$bb hostname clawbox-vm
$bb ip link set lo up

# Tells what every task waits in once nothing has come out of the first port for four minutes: xtask
# takes the machine away after five. What went out is counted by the driver, or on 7.x by interrupts.
tell_what_stands_still() {
    last= still=0
    while $bb sleep 30; do
        said=$($bb grep -h -e ^0: -e ttyS0 /proc/tty/driver/serial /proc/interrupts)
        [ -n "$said" ] || return
        if [ "$said" = "$last" ]; then still=$((still + 1)); else still=0; fi
        last=$said
        [ $still = 8 ] || continue
        for task in /proc/[0-9]*/task/[0-9]*; do
            # Threads of the kernel have no command line; those that are idle say nothing.
            command=$($bb tr '\0' ' ' <"$task/cmdline")
            [ -n "$command" ] || $bb grep -q '^State:.D' "$task/status" || continue
            echo "vm: $task $command waits in:"
            $bb head -n 6 "$task/stack"
        done
    done
}
tell_what_stands_still 2>/dev/null &

echo clawbox-vm-ready >/dev/ttyS1
cd /root
/vm/command
status=$?
# Setting a terminal waits until all its output is out; then xtask pulls the plug.
$bb stty onlcr <&1
echo "clawbox-vm-exit: $status" >/dev/ttyS1
$bb sleep 10
$bb reboot -f
