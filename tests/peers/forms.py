"""Ad-hoc commands with slixmpp's own xep_0050 and xep_0004."""

import copy

from layout import check
from peer import TIMEOUT

NODE = "urn:fingerpost:cmd:"
# The lines about a key that are no fingerprint.
ABOUT = ("Owner", "Source", "Since", "Until", "Id")


def with_forms(peer):
    for plugin in ("xep_0004", "xep_0050"):
        peer.register_plugin(plugin)
    return peer


class Run:
    """One command under way."""

    def __init__(self, peer, component, name):
        self.peer, self.component, self.node = peer, component, NODE + name
        self.session, self.form, self.status = None, None, None

    async def go(self, action="execute", **values):
        payload = None
        if values:
            payload = self.peer["xep_0004"].make_form(ftype="submit")
            for var, value in values.items():
                payload.add_field(var=var, value=value)
        iq = await self.peer["xep_0050"].send_command(
            self.component, self.node, action=action, payload=payload, sessionid=self.session, timeout=TIMEOUT)  # fmt: skip
        command = iq["command"]
        check(command.xml)
        self.command = copy.deepcopy(command.xml)
        self.session, self.status = command["sessionid"], command["status"]
        self.notes, self.actions = command["notes"], sorted(command["actions"])
        self.form = command["form"]
        return self

    def fields(self, beginning):
        """The fields whose variables begin so: label and lines."""
        found = []
        for var, field in self.form.get_fields().items():
            if var.startswith(beginning):
                lines = [value.text for value in field.xml.iter("{jabber:x:data}value")]
                found.append((field["label"], lines))
        return found

    def values(self, name):
        """One thing about each key of a list, as a person reads it."""
        return [about(label, lines)[name] for label, lines in self.fields("key-")]

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


def about(label, lines):
    """A key as it is shown."""
    name, _, state = label.rpartition(" (")
    method, state, assurance = state.rstrip(")").split(", ")
    key = {"label": name, "method": method, "state": state, "assurance": assurance, "prints": {}}
    for line in lines:
        word, _, value = line.partition(": ")
        if word in ABOUT:
            key[word.lower()] = value
        elif ":" not in line:
            fingerprint = key["prints"].setdefault(line.lower(), [])
        else:
            fingerprint.append(line)
    key["prints"] = {kind: ":".join(lines) for kind, lines in key["prints"].items()}
    return key
