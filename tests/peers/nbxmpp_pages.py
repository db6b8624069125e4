"""Reads pages of commands as Gajim's library does, and looks for every text of them. Needs no server."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "clients"))

from common import Page
from nbxmpp.modules.adhoc import _parse_actions, _parse_notes
from nbxmpp.modules.dataforms import extend_form
from nbxmpp.namespaces import Namespace
from nbxmpp.simplexml import Node

settings = json.loads(sys.argv[1])
report = {}
for given in json.loads(Path(settings["pages"]).read_text()):
    command = Node(node=given["xml"])
    _parse_actions(command)
    _parse_notes(command)
    form = extend_form(node=command.getTag("x", namespace=Namespace.DATA))
    read = {form.title}
    for field in form.iter_fields():
        read.add(field.label)
        if field.type_.startswith("list-"):
            read.update(text for option in field.options for text in option)
        elif field.type_.endswith("-multi"):
            read.update(field.value.split("\n") if field.type_ == "text-multi" else field.values)
        else:
            read.add(field.value)
    lost = [text for text in Page(given).texts() if text not in read]
    if lost:
        report[given["name"]] = lost
print("report: " + json.dumps(report), flush=True)
