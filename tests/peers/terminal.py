"""A person at a terminal: runs a program in a pseudo-terminal, types, and reads the screen (pyte draws it).

Settings: command (a list), environment, controls (whether it is the program's controlling terminal), steps: a list of ["wait", text on the screen], ["type", text],
["gone", text no longer on the screen], ["prompt"] (waits until the last line is an empty prompt; what is typed before
may be lost), ["say", text to print for the test] or ["end"] (waits for the program). Reports the screen after each step, the exit
status, and whether the terminal echoes and edits lines again (a controlling terminal is gone then, and cannot be asked).
"""

import asyncio
import fcntl
import json
import os
import pty
import struct
import termios

import pyte
from peer import TIMEOUT, main


async def story(settings):
    screen = pyte.Screen(100, 30)
    stream = pyte.ByteStream(screen)
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    environment = {**os.environ, **settings["environment"], "TERM": "xterm"}

    def control():
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    program = await asyncio.create_subprocess_exec(
        *settings["command"], stdin=follower, stdout=follower, stderr=follower, env=environment,
        preexec_fn=control if settings.get("controls") else None,
    )  # fmt: skip
    loop = asyncio.get_running_loop()
    loop.add_reader(leader, lambda: stream.feed(os.read(leader, 65536)))
    text = lambda: "\n".join(line.rstrip() for line in screen.display).rstrip()  # noqa: E731

    async def until(done, what):
        for _ in range(20 * TIMEOUT):
            if done():
                return
            await asyncio.sleep(0.05)
        raise RuntimeError(f"{what} did not happen:\n{text()}")

    screens = []
    for step, *what in settings["steps"]:
        if step == "wait":
            await until(lambda: what[0] in text(), what)
        elif step == "gone":
            await until(lambda: what[0] not in text(), what)
        elif step == "type":
            os.write(leader, what[0].encode())
        elif step == "prompt":
            await until(lambda: text().endswith("\n>"), "the prompt")
        elif step == "say":
            print(json.dumps({"said": what[0]}), flush=True)
        elif step == "end":
            await asyncio.wait_for(program.wait(), TIMEOUT)
        screens.append(text())
    modes = 0 if settings.get("controls") else termios.tcgetattr(follower)[3]
    return {
        "screens": screens,
        "status": program.returncode,
        "modes": bool(modes & termios.ECHO) and bool(modes & termios.ICANON),
    }


main(story)
