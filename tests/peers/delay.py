"""Sends each packet that the kernel routes into a tun device back out of it, some milliseconds later.

Arguments: the device, which must exist, and the milliseconds. Prints `ready`.
"""

import fcntl
import heapq
import os
import select
import struct
import sys
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000

name, pause = sys.argv[1], int(sys.argv[2]) / 1000
tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
print("ready", flush=True)
waiting, count = [], 0
while True:
    due = max(0, waiting[0][0] - time.monotonic()) if waiting else None
    readable, _, _ = select.select([tun], [], [], due)
    if readable:
        packet = os.read(tun, 65536)
        count += 1
        heapq.heappush(waiting, (time.monotonic() + pause, count, packet))
    while waiting and waiting[0][0] <= time.monotonic():
        os.write(tun, heapq.heappop(waiting)[2])
