"""A screen of its own (Xvfb), and the windows on it, which are reached by the keyboard.

Runs under Debian's Python, in a D-Bus session of its own.
"""

import os
import re
import subprocess
import time

import dbus

# Longer than any step takes on a busy machine: only a hanging one takes longer.
PATIENCE = 300


# What the test drives: waiting makes no sense once it has ended.
program = None


def start_screen():
    """Starts an X server; GTK and Qt find it in the environment. This program is alone in its network and with its sockets."""
    os.environ["DISPLAY"] = ":1"
    # A server that resets itself when its last client leaves refuses one that comes meanwhile.
    command = ["Xvfb", ":1", "-nolock", "-noreset", "-screen", "0", "1200x900x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command)
    wait("the screen", lambda: subprocess.run(["xdotool", "getdisplaygeometry"], capture_output=True).returncode == 0)
    return server


def wait(what, condition):
    """Waits until the condition holds; returns its value."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            if found := condition():
                return found
        except dbus.DBusException:
            # A program that has not come yet.
            pass
        if program and program.poll() is not None:
            raise SystemExit(f"the client has ended with {program.returncode}, before {what}")
        if time.monotonic() > end:
            raise SystemExit(f"did not happen: {what}")
        time.sleep(0.1)


def windows(title):
    """The windows with exactly this title."""
    search = ["xdotool", "search", "--onlyvisible", "--name", f"^{re.escape(title)}$"]
    return subprocess.run(search, capture_output=True, text=True, timeout=PATIENCE).stdout.split()


def _keys(window, *arguments):
    # Without a window manager nobody else gives a window the keyboard.
    subprocess.run(["xdotool", "windowfocus", window, *arguments], stderr=subprocess.DEVNULL, timeout=PATIENCE)


def type_into(title, text):
    window = wait(f"the window {title}", lambda: windows(title))[-1]
    _keys(window, "type", "--", text)


def press(title, key):
    for window in windows(title)[-1:]:
        _keys(window, "key", key)


def press_until(title, key, opened):
    """Presses a key in a window until it opens another one; returns that."""

    def is_open():
        press(title, key)
        # A second press would open a second window.
        for _ in range(30):
            if found := windows(opened):
                return found
            time.sleep(0.1)
        return None

    return wait(f"the window {opened}", is_open)


def width(window):
    """How wide a window is."""
    geometry = subprocess.run(["xdotool", "getwindowgeometry", "--shell", window], capture_output=True, text=True, timeout=PATIENCE)
    return next((int(line[6:]) for line in geometry.stdout.splitlines() if line.startswith("WIDTH=")), 0)


def click_at(window, x, y):
    command = ["xdotool", "mousemove", "--window", window, str(x), str(y), "click", "1"]
    subprocess.run(command, stderr=subprocess.DEVNULL, timeout=PATIENCE)


def press_until_gone(title, *keys):
    """Presses keys that answer a window."""
    window = wait(f"the window {title}", lambda: windows(title))[-1]

    def is_gone():
        if window not in windows(title):
            return True
        _keys(window, "key", *keys)
        # The next keys would reach the window below it.
        for _ in range(30):
            if window not in windows(title):
                return True
            time.sleep(0.1)
        return False

    wait(f"the answer to {title}", is_gone)


def screenshot(path):
    subprocess.run(["import", "-window", "root", str(path)], check=True)
