"""Ad-hoc commands with slixmpp's own xep_0050 and xep_0004."""

from peer import TIMEOUT

NODE = "urn:fingerpost:cmd:"


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
        self.session, self.status = command["sessionid"], command["status"]
        self.notes, self.actions = command["notes"], sorted(command["actions"])
        self.form = command["form"]
        return self

    def values(self, var):
        return [item[var] for item in self.form.get_items()]

    def kinds(self):
        """The types of the notes."""
        return [kind for kind, _ in self.notes]
