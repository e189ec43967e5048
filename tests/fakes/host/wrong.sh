#!/bin/sh
# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# wrong.sh FOLDER COMMAND...: runs a command on a host with which much is wrong. It plays the parts that no test can have
# or may touch, in a mount namespace of its own: nothing outside of it changes. Needs root, a C compiler and util-linux.
# FOLDER is made, and gets hosts.yml, an inventory whose Python is wrong too (another architecture, an hour behind).
set -eu
here=$(dirname "$(readlink -f "$0")")
folder=$1
shift
if [ "${GPUFLEET_WRONG:-}" != inside ]; then
    GPUFLEET_WRONG=inside exec unshare --mount "$here/wrong.sh" "$folder" "$@"
fi
mkdir -p "$folder/bin" "$folder/etc" "$folder/hub" "$folder/docker"

# A distribution that nobody has heard of, with little memory and hardly any shared memory.
printf 'ID=unheard\nVERSION_ID=1\nPRETTY_NAME="Unheard Linux 1"\n' >"$folder/os-release"
mount --bind "$folder/os-release" /etc/os-release
printf 'MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\n' >"$folder/meminfo"
mount --bind "$folder/meminfo" /proc/meminfo
mount -t tmpfs -o size=32m none /dev/shm

# Disks: a folder that nobody can write, and one without room for weights.
mount -t tmpfs -o ro none "$folder/etc"
mount -t tmpfs -o size=64m none "$folder/hub"

# A daemon.json that somebody broke.
[ -d /etc/docker ] || mkdir /etc/docker
mount --bind "$folder/docker" /etc/docker
printf '{"runtimes": {' >/etc/docker/daemon.json

# A GPU and an NVSwitch on the PCI bus, and a fabric manager of another version than the driver's.
for device in 0000:1b:00.0/0x030200 0000:05:00.0/0x068000; do
    mkdir -p "$folder/pci/${device%/*}"
    echo 0x10de >"$folder/pci/${device%/*}/vendor"
    echo "${device#*/}" >"$folder/pci/${device%/*}/class"
done
mount --bind "$folder/pci" /sys/bus/pci/devices
printf '#!/bin/sh\necho "Fabric Manager version is : 575.57.08"\n' >"$folder/bin/nv-fabricmanager"

# A Python on another architecture, whose clock is an hour behind.
cc -shared -fPIC -o "$folder/clock.so" "$here/clock.c"
cat >"$folder/bin/python3" <<END
#!/bin/sh
export LD_PRELOAD=$folder/clock.so GPUFLEET_CLOCK_OFFSET=-3600
exec setarch linux32 /usr/bin/python3 "\$@"
END
chmod 755 "$folder/bin/nv-fabricmanager" "$folder/bin/python3"
printf 'all:\n  hosts:\n    localhost:\n      ansible_python_interpreter: %s\n' "$folder/bin/python3" >"$folder/hosts.yml"

PATH="$folder/bin:$PATH"
export PATH
exec "$@"
