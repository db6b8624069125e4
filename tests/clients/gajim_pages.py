"""Shows pages in Gajim's own window for commands. Only the network is replaced: Gajim's library parses the pages.

GTK's version is chosen before this is imported. Settings: `pages` (a file), `home`, and `screenshots`: for the name of a page, the file to write. The report has the number of
pages, and their faults.
"""

import json
import os
import time
from pathlib import Path

from common import Page, missing
from gi.repository import Gtk
from nbxmpp.modules.adhoc import _parse_actions, _parse_notes
from nbxmpp.namespaces import Namespace
from nbxmpp.simplexml import Node
from nbxmpp.structs import AdHocCommand, AdHocStatus


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


def faults_of(page, shown):
    faults = {text for kind, text in shown if kind == "fault"}
    return faults | set(missing(page, "\n".join(text for kind, text in shown if kind == "text")))


def texts(widget, toolkit):
    """("text" or "fault", text) of all widgets that are mapped."""
    if not widget.get_mapped():
        return
    if isinstance(widget, Gtk.Label):
        yield "text", widget.get_layout().get_text()
        if widget.get_layout().is_ellipsized():
            yield "fault", f"an ellipsis in {widget.get_layout().get_text()!r}"
    elif isinstance(widget, toolkit.ENTRY):
        yield "text", widget.get_text()
        if toolkit.is_too_wide(widget):
            yield "fault", f"{widget.get_text()!r} is wider than its field"
    elif isinstance(widget, Gtk.TextView):
        yield "text", widget.get_buffer().get_property("text")
    elif isinstance(widget, Gtk.TreeView):
        for row in widget.get_model():
            yield from (("text", value) for value in row if isinstance(value, str))
    elif (chosen := toolkit.chosen(widget)) is not None:
        yield "text", chosen
    if isinstance(widget, Gtk.ScrolledWindow):
        across = widget.get_hadjustment()
        if across.get_upper() > across.get_page_size() + 1:
            yield "fault", "it must be scrolled sideways"
    for child in toolkit.children(widget):
        yield from texts(child, toolkit)


def show_all(settings, answers, toolkit):
    """Shows each page in a window of its own, and prints the report.

    The toolkit has `open()`, `close(window)`, `settle()` and `screenshot(window, path)`; `ENTRY`, the class of what holds a line of
    input, and `is_too_wide(entry)`; `chosen(widget)`, the text that is chosen in a list if it is not in another widget; and
    `children(widget)`.
    """
    report = {"pages": 0, "lost": {}}
    for given in json.loads(Path(settings["pages"]).read_text()):
        page = Page(given)
        window = toolkit.open()
        answers.show(window, given["xml"])
        name = "completed" if answers.given.is_completed else "stage"
        # GTK lays out some widgets later than others, and after minutes at the latest.
        for _ in range(4000):
            toolkit.settle()
            faults = faults_of(page, list(texts(window.get_page(name), toolkit)))
            if not faults:
                break
            time.sleep(0.05)
        report["pages"] += 1
        if faults:
            report["lost"][page.name] = sorted(faults)
        if page.name in settings["screenshots"]:
            toolkit.screenshot(window, settings["screenshots"][page.name])
        toolkit.close(window)
    print("report: " + json.dumps(report), flush=True)
    os._exit(0)
