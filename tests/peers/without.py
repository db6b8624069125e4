"""Runs a program for which the kernel refuses system calls, like a seccomp profile: without.py CALL… -- PROGRAM ARGUMENTS…"""

import ctypes
import os
import platform
import struct
import sys

NUMBERS = {
    "x86_64": {"splice": 275, "getsockopt": 55},
    "aarch64": {"splice": 76, "getsockopt": 209},
}
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, EPERM = 0x7FFF0000, 0x00050001


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def refuse(calls):
    instructions = [struct.pack("HBBI", LOAD, 0, 0, 0)]
    for call in calls:
        number = NUMBERS[platform.machine()][call]
        instructions.append(struct.pack("HBBI", JUMP_IF_EQUAL, 0, 1, number))
        instructions.append(struct.pack("HBBI", RETURN, 0, 0, EPERM))
    instructions.append(struct.pack("HBBI", RETURN, 0, 0, ALLOW))
    code = ctypes.create_string_buffer(b"".join(instructions))
    program = Program(len(instructions), ctypes.cast(code, ctypes.c_void_p).value)
    libc = ctypes.CDLL(None, use_errno=True)
    for args in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, FILTER, ctypes.byref(program), 0, 0)):
        if libc.prctl(*args) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    end = sys.argv.index("--")
    refuse(sys.argv[1:end])
    os.execvp(sys.argv[end + 1], sys.argv[end + 1 :])
