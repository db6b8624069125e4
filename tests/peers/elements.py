"""An XML stream read by expat: its first-level elements, each a dict with name, attributes, text and children."""

import xml.parsers.expat


class Elements:
    def __init__(self):
        self.header, self.closed = None, False
        self.elements, self.stack = [], []
        self.parser = xml.parsers.expat.ParserCreate(namespace_separator=" ")
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.CharacterDataHandler = self.text

    def start(self, name, attributes):
        if self.header is None:
            self.header = attributes
        else:
            self.stack.append({"name": name, "attributes": attributes, "text": "", "children": []})

    def end(self, _):
        if not self.stack:
            self.closed = True
            return
        element = self.stack.pop()
        (self.stack[-1]["children"] if self.stack else self.elements).append(element)

    def text(self, text):
        if self.stack:
            self.stack[-1]["text"] += text
