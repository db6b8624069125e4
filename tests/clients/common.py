"""Pages of commands, and what a client must show of each.

A page is {"name": ..., "xml": the <command/> as the component sent it}.
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))

import xml.etree.ElementTree as ET

COMMANDS = "http://jabber.org/protocol/commands"
DATA = "{jabber:x:data}"
REPLAY = "replay.example.test"


class Field:
    """A field that a client shows."""

    def __init__(self, xml):
        self.kind, self.label = xml.get("type"), xml.get("label")
        self.values = [value.text or "" for value in xml.findall(DATA + "value")]
        self.options = [option.get("label") for option in xml.findall(DATA + "option")]
        chosen = [option.get("label") for option in xml.findall(DATA + "option") if option.findtext(DATA + "value") in self.values]
        # What is on the screen at first: of several options some clients show only the one that is chosen.
        self.texts = {"boolean": [], "list-single": chosen}.get(self.kind, self.values if not self.options else self.options)


class Page:
    def __init__(self, page, without=()):
        self.name = page["name"]
        self.command = ET.fromstring(page["xml"])
        form = self.command.find(DATA + "x")
        self.title = form.findtext(DATA + "title")
        self.fields = [Field(field) for field in form.iter(DATA + "field") if field.get("type") != "hidden" and field.get("var") not in without]

    def texts(self):
        """Every text that must be on the screen."""
        yield self.title
        for field in self.fields:
            yield field.label
            yield from (text for text in field.texts if text)


def squeeze(text):
    """A text without space, because clients wrap lines."""
    return "".join(text.split())


def missing(page, screen):
    """The texts of a page that are not on the screen."""
    screen = squeeze(screen)
    return [text for text in page.texts() if squeeze(text) not in screen]
