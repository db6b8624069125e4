"""Shows pages in Gajim's own command window (GTK 3, under Xvfb), and looks for every text in it.

Runs under Debian's Python. Only the network is replaced: Gajim's library parses the pages.
Settings: `pages` (a file), `home`, and `screenshots`: for the name of a page, the file to write. The report has the number of
pages, and their faults.
"""

import json
import os
import sys
import time
from pathlib import Path

settings = json.loads(sys.argv[1])
os.environ["HOME"] = settings["home"]

import gi

gi.require_version("Gdk", "3.0")
gi.require_version("Gtk", "3.0")
gi.require_version("GtkSource", "4")
from gi.repository import Gdk, Gtk

from gajim.common import app, configpaths
from gajim.common.settings import Settings

configpaths.set_config_root(settings["home"])
configpaths.init()
configpaths.create_paths()
app.settings = Settings()
app.settings.init()
from gajim.gtk.css_config import CSSConfig

app.css_config = CSSConfig()

from gajim.gtk.adhoc import AdHocCommands
from nbxmpp.modules.adhoc import _parse_actions, _parse_notes
from nbxmpp.namespaces import Namespace
from nbxmpp.simplexml import Node
from nbxmpp.structs import AdHocCommand, AdHocStatus

from common import Page, missing


class Answers:
    """Gajim's module for commands: answers at once."""

    def __init__(self):
        self.page = None

    def get_module(self, _name):
        return self

    def request_command_list(self, jid, callback):
        self.given = [AdHocCommand(jid=jid, node="node", name="command", sessionid=None, status=None, data=None,
                                   actions=None, default=None, notes=None)]  # fmt: skip
        callback(self)

    def finish(self):
        return self.given

    def show(self, window, page):
        command = Node(node=page)
        actions, default = _parse_actions(command)
        self.given = AdHocCommand(
            jid="xtls.example.test", node=command.getAttr("node"), name=None, sessionid=command.getAttr("sessionid"),
            status=AdHocStatus(command.getAttr("status")), data=command.getTag("x", namespace=Namespace.DATA),
            actions=actions, default=default, notes=_parse_notes(command))  # fmt: skip
        window._received_stage(self)


def texts(widget):
    """("text" or "fault", text) of all widgets that are mapped."""
    if not widget.get_mapped():
        return
    if isinstance(widget, Gtk.Label):
        yield "text", widget.get_layout().get_text()
        if widget.get_layout().is_ellipsized():
            yield "fault", f"an ellipsis in {widget.get_layout().get_text()!r}"
    elif isinstance(widget, Gtk.Entry):
        yield "text", widget.get_text()
        if widget.get_layout().get_pixel_size()[0] > widget.get_allocated_width():
            yield "fault", f"{widget.get_text()!r} is wider than its field"
    elif isinstance(widget, Gtk.TextView):
        yield "text", widget.get_buffer().get_property("text")
    elif isinstance(widget, Gtk.ComboBox):
        chosen = widget.get_active_iter()
        yield "text", widget.get_model()[chosen][0] if chosen else ""
    elif isinstance(widget, Gtk.TreeView):
        for row in widget.get_model():
            yield from (("text", value) for value in row if isinstance(value, str))
    if isinstance(widget, Gtk.ScrolledWindow):
        across = widget.get_hadjustment()
        if across.get_upper() > across.get_page_size() + 1:
            yield "fault", "it must be scrolled sideways"
    if isinstance(widget, Gtk.Container):
        children = []
        widget.forall(children.append)
        for child in children:
            yield from texts(child)


def settle():
    """Lets GTK lay out and draw."""
    for _ in range(50):
        while Gtk.events_pending():
            Gtk.main_iteration()
        if not Gtk.events_pending():
            Gtk.main_iteration_do(False)


def screenshot(window, path):
    window = window.get_window()
    picture = Gdk.pixbuf_get_from_window(window, 0, 0, window.get_width(), window.get_height())
    picture.savev(path, "png", ["compression"], ["9"])


def faults_of(page, shown):
    faults = {text for kind, text in shown if kind == "fault"}
    return faults | set(missing(page, "\n".join(text for kind, text in shown if kind == "text")))


def main():
    answers = Answers()
    app.get_client = lambda _account: answers
    report = {"pages": 0, "lost": {}}
    for given in json.loads(Path(settings["pages"]).read_text()):
        page = Page(given)
        window = AdHocCommands("account", "xtls.example.test")
        window.show_all()
        answers.show(window, given["xml"])
        name = "completed" if answers.given.is_completed else "stage"
        # GTK lays out some widgets later than others, and after minutes at the latest.
        for _ in range(4000):
            settle()
            faults = faults_of(page, list(texts(window.get_page(name))))
            if not faults:
                break
            time.sleep(0.05)
        report["pages"] += 1
        if faults:
            report["lost"][page.name] = sorted(faults)
        if page.name in settings["screenshots"]:
            screenshot(window, settings["screenshots"][page.name])
        window.destroy()
    print("report: " + json.dumps(report), flush=True)
    os._exit(0)


main()
