#!/bin/sh
# Process 1 of a host: gives it control groups of its own to see and mount, then becomes what was asked for.
set -eu
if grep -q '^0::' /proc/self/cgroup && ! grep -q '^[1-9][0-9]*:[^:=]' /proc/self/cgroup; then
  umount -R /sys/fs/cgroup 2>/dev/null || true
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
  while umount /sys/fs/cgroup/* /sys/fs/cgroup 2>/dev/null; do :; done
  mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
  cut -d: -f2 /proc/self/cgroup | while read -r name; do
    case $name in
      '') continue ;;
      name=*) folder=${name#name=} option=none,$name ;;
      *) folder=$name option=$name ;;
    esac
    mkdir "/sys/fs/cgroup/$folder"
    mount -t cgroup -o "$option" cgroup "/sys/fs/cgroup/$folder"
  done
fi
exec "$@"
