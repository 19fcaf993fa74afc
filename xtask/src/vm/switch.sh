#!/usr/bin/busybox sh
# The first process of a VM with a whole Debian on its disk: makes that the root directory and hands over
# to its systemd. From then on a unit of that system tells xtask what comes of it.
bb=/usr/bin/busybox

$bb mount -t devtmpfs -o nosuid devtmpfs /dev
exec </dev/null >/dev/ttyS0 2>&1
while read -r module; do
    $bb insmod "/vm/modules/$module" || echo "vm: cannot load $module"
done </vm/modules.order
if $bb mount -t ext4 /dev/vda /disk; then
    echo clawbox-vm-ready >/dev/ttyS1
    $bb mount --move /dev /disk/dev && exec $bb switch_root /disk /sbin/init
fi
echo "vm: the disk cannot be made the root directory"
$bb reboot -f
