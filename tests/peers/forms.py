"""Ad-hoc commands with slixmpp's own xep_0050 and xep_0004."""

import copy
import re

from layout import check
from peer import TIMEOUT

NODE = "urn:fingerpost:cmd:"


def with_forms(peer):
    for plugin in ("xep_0004", "xep_0050"):
        peer.register_plugin(plugin)
    return peer


class Run:
    """One command under way."""

    # The language of the requests; none: the server's.
    language = None

    def __init__(self, peer, component, name):
        self.peer, self.component, self.node = peer, component, NODE + name
        self.session, self.form, self.status = None, None, None

    async def go(self, action="execute", **values):
        payload = None
        if values:
            payload = self.peer["xep_0004"].make_form(ftype="submit")
            for var, value in values.items():
                payload.add_field(var=var, value=value)
        iq = self.peer.make_iq_set(ito=self.component)
        if self.language:
            iq["lang"] = self.language
        iq["command"]["node"], iq["command"]["action"] = self.node, action
        if self.session:
            iq["command"]["sessionid"] = self.session
        if payload is not None:
            iq["command"].append(payload)
        command = (await iq.send(timeout=TIMEOUT))["command"]
        check(command.xml)
        self.command = copy.deepcopy(command.xml)
        self.session, self.status = command["sessionid"], command["status"]
        self.notes, self.actions = command["notes"], sorted(command["actions"])
        self.form = command["form"]
        return self

    def fields(self, beginning):
        """The fields whose variables begin so: label and lines."""
        return [(label, lines) for _, label, lines in self.named_fields(beginning)]

    def named_fields(self, beginning):
        """The same with the rest of the variable."""
        found = []
        for var, field in self.form.get_fields().items():
            if var.startswith(beginning):
                lines = [value.text for value in field.xml.iter("{jabber:x:data}value")]
                found.append((var.removeprefix(beginning), field["label"], lines))
        return found

    def values(self, name):
        """One thing about each key of a list, as a person reads it."""
        return [about(*field)[name] for field in self.named_fields("key-")]

    def entries(self, name):
        """One thing about each entry of the audit log."""
        found = [
            {"event": label.split(" ", 1)[1], **dict(line.split(": ", 1) for line in lines)}
            for label, lines in self.fields("entry-")
        ]
        return [entry[name] for entry in found]

    def text(self, var):
        """A text that is shown in a field of its own."""
        return " ".join(line for _, lines in self.fields(var) for line in lines)

    def kinds(self):
        """The types of the notes."""
        return [kind for kind, _ in self.notes]


def about(id_, label, lines):
    """A key as it is shown."""
    name, _, state = label.rpartition(" (")
    method, state, assurance = state.rstrip(")").split(", ")
    key = {"id": id_, "label": name, "method": method, "state": state, "assurance": assurance, "prints": {}}
    for line in lines:
        if line == "SHA-1" or line.endswith("SHA-256"):
            fingerprint = key["prints"].setdefault(line.lower(), [])
        elif re.fullmatch("([0-9A-F]{2}:)*[0-9A-F]{2}", line):
            fingerprint.append(line)
        elif line.startswith("Owner: "):
            key["owner"] = line.removeprefix("Owner: ")
    key["prints"] = {kind: ":".join(lines) for kind, lines in key["prints"].items()}
    return key
