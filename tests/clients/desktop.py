"""A screen of its own (Xvfb), and the windows on it as assistive technologies see them (AT-SPI).

Runs under Debian's Python, in a D-Bus session of its own.
"""

import os
import re
import subprocess
import sys
import time

import dbus
import gi

gi.require_version("Atspi", "2.0")
from gi.repository import Atspi, GLib

# Longer than any step takes on a busy machine: only a hanging one takes longer.
PATIENCE = 300


def start_screen():
    """Starts an X server; GTK and Qt find it in the environment. It ends with this program's session."""
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1200x900x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    # It chooses a number that is free, also if others start at the same moment.
    number = os.fdopen(reading).readline().strip()
    if not number:
        raise SystemExit("Xvfb does not start")
    os.environ["DISPLAY"] = ":" + number
    return server


def wait(what, condition):
    """Waits until the condition holds; returns its value."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            if found := condition():
                return found
        except (GLib.Error, dbus.DBusException):
            # A widget that has just gone, or a program that has not come yet.
            pass
        if time.monotonic() > end:
            print(outline(), file=sys.stderr)
            raise SystemExit(f"did not happen: {what}")
        time.sleep(0.1)


def walk(node):
    if node is None:
        return
    yield node
    for number in range(node.get_child_count()):
        yield from walk(node.get_child_at_index(number))


def applications():
    desktop = Atspi.get_desktop(0)
    return [desktop.get_child_at_index(number) for number in range(desktop.get_child_count())]


def labels(node):
    return [node.get_name() or "", node.get_description() or ""]


def find(role, label=None, within=None):
    """The first widget of this role with this name or description, on the screen or in another widget."""
    for place in [within] if within else applications():
        try:
            for node in walk(place):
                if node.get_role_name() == role and (label is None or label in labels(node)):
                    return node
        except GLib.Error:
            # A program or a window that has just gone.
            continue
    return None


def click(node):
    if not Atspi.Action.do_action(node.get_action_iface(), 0):
        raise SystemExit(f"cannot be clicked: {labels(node)}")


def wait_and_click(role, label):
    click(wait(f"{role} {label}", lambda: find(role, label)))


def fill(field, text):
    """Gives a field a text."""

    def has_it():
        Atspi.EditableText.set_text_contents(field, text)
        return Atspi.Text.get_text(field, 0, len(text) + 1) == text

    wait("the text of a field", has_it)


def windows(title):
    """The windows with exactly this title."""
    search = ["xdotool", "search", "--onlyvisible", "--name", f"^{re.escape(title)}$"]
    return subprocess.run(search, capture_output=True, text=True, timeout=PATIENCE).stdout.split()


def _keys(window, *arguments):
    # Without a window manager nobody else gives a window the keyboard.
    subprocess.run(["xdotool", "windowfocus", window, *arguments], stderr=subprocess.DEVNULL, timeout=PATIENCE)


def type_into(title, text):
    window = wait(f"the window {title}", lambda: windows(title))[-1]
    _keys(window, "type", text)


def press(title, key):
    for window in windows(title)[-1:]:
        _keys(window, "key", key)


def click_at(window, x, y):
    command = ["xdotool", "mousemove", "--window", window, str(x), str(y), "click", "1"]
    subprocess.run(command, stderr=subprocess.DEVNULL, timeout=PATIENCE)


def press_until_gone(title, key):
    """Presses a key that answers a window."""
    window = wait(f"the window {title}", lambda: windows(title))[-1]

    def is_gone():
        if window not in windows(title):
            return True
        _keys(window, "key", key)
        return False

    wait(f"the answer to {title}", is_gone)


def screenshot(path):
    subprocess.run(["import", "-window", "root", str(path)], check=True)


def outline():
    """All widgets, for the report of a failure."""
    lines = []
    for application in applications():
        try:
            lines += [f"{node.get_role_name()} {labels(node)}" for node in walk(application)]
        except GLib.Error as error:
            lines.append(str(error))
    return "\n".join(lines)
