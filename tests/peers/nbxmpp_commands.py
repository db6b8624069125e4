"""The ad-hoc commands with nbxmpp, Gajim's library: Gajim's requests when its user clicks through them."""

from nbxmpp.const import AdHocAction, AdHocStatus
from nbxmpp.modules.dataforms import extend_form
from nbxmpp.protocol import JID

from nbxmpp_peer import fail, login, loop, report, run, settings

PRINT = "72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38"


def story(adhoc):
    """Yields requests, is given their answers."""
    component = JID.from_string(settings["component"])
    commands = yield adhoc.request_command_list(component)
    report["commands"] = sorted(command.node.rsplit(":", 1)[1] for command in commands)
    by_name = {command.node.rsplit(":", 1)[1]: command for command in commands}

    step = yield adhoc.execute_command(by_name["add"])
    form = extend_form(node=step.data)
    report["form"] = [step.status == AdHocStatus.EXECUTING, form.title, sorted(f.var for f in form.iter_fields())]
    form["label"].value = "from Gajim"
    form["print"].value = "nonsense"
    form.type_ = "submit"
    step = yield adhoc.execute_command(step, AdHocAction.NEXT, form)
    report["mistake"] = [note.type.value for note in step.notes or []]
    form = extend_form(node=step.data)
    form["print"].value = PRINT
    form.type_ = "submit"
    step = yield adhoc.execute_command(step, AdHocAction.NEXT, form)
    report["confirm"] = sorted(action.value for action in step.actions)
    step = yield adhoc.execute_command(step, AdHocAction.COMPLETE)
    report["done"] = [step.status == AdHocStatus.COMPLETED, [note.type.value for note in step.notes or []]]

    step = yield adhoc.execute_command(by_name["keys"])
    fields = [field for field in extend_form(node=step.data).iter_fields() if field.type_ != "hidden"]
    report["keys"] = [[field.label, field.value.split("\nSource")[0]] for field in fields]
    step = yield adhoc.execute_command(by_name["revoke"])
    step = yield adhoc.execute_command(step, AdHocAction.CANCEL)
    report["cancelled"] = step.status == AdHocStatus.CANCELED


def drive(steps):
    """Runs the story: each request's answer continues it."""

    def answered(task):
        try:
            go_on(task.finish())
        except Exception as error:
            fail(error)

    def go_on(answer):
        try:
            steps.send(answer).add_done_callback(answered, weak=False)
        except StopIteration:
            loop.quit()
        except Exception as error:
            fail(error)

    go_on(None)



login("alice", "gajim", lambda client: drive(story(client.get_module("AdHoc"))))
run()
