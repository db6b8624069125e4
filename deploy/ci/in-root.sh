#!/bin/sh
# Runs a command of another Debian, with this machine's devices and one directory of its files: in-root.sh ROOT DIRECTORY COMMAND...
set -eu
# Only this command sees the mounts, and they end with it. All programs replace themselves, so signals reach the last.
exec unshare --mount --propagation private sh -euc '
    root=$1 directory=$2
    shift 2
    mount --rbind /dev "$root/dev"
    mount --rbind /proc "$root/proc"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    mkdir -p "$root$directory"
    mount --bind "$directory" "$root$directory"
    exec chroot "$root" "$@"
' sh "$@"
