"""What a page of a command must be like, so that clients show all of it.

The reasons are in docs/CLIENTS.md.
"""

DATA = "{jabber:x:data}"
TYPES = ("boolean", "hidden", "jid-multi", "jid-single", "list-multi", "list-single", "text-multi", "text-single")
# The beginnings of the variables of fields that are only read.
READ = ("entry-", "error", "key-", "message", "note", "prints", "result", "session-")
# In text that is only read. Sentences have shorter lines; those with a key's id are the longest.
LINE = 44
# Labels: as long as a line of poezio's fields, in a terminal with 120 columns.
LABEL = 50
# As long as Psi+, Gajim and poezio show a field of one line.
SHORT = 26


def check(command):
    """Raises an exception if a client does not show a part of this <command/>."""
    wrong = list(faults(command))
    if wrong:
        raise AssertionError("; ".join(wrong))


def faults(command):
    notes = [note.text for note in command.iter("{http://jabber.org/protocol/commands}note")]
    form = command.find(DATA + "x")
    if form is not None and (form.get("type") == "form") != (command.get("status") == "executing"):
        yield f"a form of the type {form.get('type')} in a command that is {command.get('status')}"
    if form is None:
        if command.get("status") == "executing" or notes:
            yield f"no form beside {notes}"
        return
    for name in ("reported", "item", "instructions"):
        if form.find(DATA + name) is not None:
            yield f"<{name}/>"
    if not form.findtext(DATA + "title"):
        yield "no title"
    seen = set()
    texts = []
    for field in form.iter(DATA + "field"):
        var, kind, label = field.get("var"), field.get("type"), field.get("label")
        values = [value.text or "" for value in field.findall(DATA + "value")]
        if not var or var in seen:
            yield f"the variable {var!r}"
        seen.add(var)
        if kind not in TYPES:
            yield f"{var}: the type {kind!r}"
        if not label or not label.strip():
            yield f"{var}: no label"
        elif len(label) > LABEL and not var.startswith("key-"):
            yield f"{var}: the label is too long: {label}"
        if len(values) > 1 and not kind.endswith("-multi") and kind != "hidden":
            yield f"{var}: {len(values)} values"
        if kind.startswith("list-") and field.find(DATA + "option") is None:
            yield f"{var}: no options"
        for option in field.findall(DATA + "option"):
            if not option.get("label") or not option.findtext(DATA + "value"):
                yield f"{var}: an option without label or value"
            elif len(option.get("label")) > LABEL:
                yield f"{var}: the label of an option is too long: {option.get('label')}"
        if kind != "hidden" and (form.get("type") == "result" or var.startswith(READ)):
            texts.append("".join("".join(values).split()))
            longest = LINE if kind == "text-multi" else SHORT
            if not values or not all(values):
                yield f"{var}: no value"
            if var != "export" and any(len(value) > longest for value in values):
                yield f"{var}: a line is too long: {values}"
    for note in notes:
        if "".join(note.split()) not in texts:
            yield f"only in a note: {note}"
