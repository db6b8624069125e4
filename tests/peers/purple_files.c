/* Pidgin without its window: two accounts of libpurple send each other a file (XEP-0096), each to the address of the other
 * at the component.
 *
 *     purple_files DIRECTORY HOST PORT COMPONENT FILE JID PASSWORD JID PASSWORD
 *
 * prints a line for each thing that a user would see. A file lands in DIRECTORY under the name of its receiver.
 */
#include <glib.h>
#include <libpurple/purple.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "purple_loop.h"

static const char *directory, *component, *file;
static PurpleAccount *accounts[2];
static int online;

/* The question whether the server's certificate is the right one: its first answer is yes. */
static void *ask(const char *title, const char *primary, const char *secondary, int chosen, PurpleAccount *account,
                 const char *who, PurpleConversation *conversation, void *data, size_t count, va_list actions)
{
    const char *label = va_arg(actions, const char *);
    PurpleRequestActionCb answer = va_arg(actions, PurpleRequestActionCb);
    (void)title, (void)secondary, (void)chosen, (void)account, (void)who, (void)conversation, (void)count;
    fprintf(stderr, "%s: %s\n", primary ? primary : "", label);
    answer(data, 0);
    return NULL;
}

static PurpleRequestUiOps requests = { .request_action = ask };

static void *notify(PurpleNotifyMsgType type, const char *title, const char *primary, const char *secondary)
{
    (void)type;
    printf("shown: %s: %s %s\n", title ? title : "", primary ? primary : "", secondary ? secondary : "");
    return NULL;
}

static PurpleNotifyUiOps notices = { .notify_message = notify };

static void send_file(int from)
{
    const char *name = purple_account_get_username(accounts[1 - from]);
    const char *resource = strchr(name, '/') + 1;
    char *bare = g_strndup(name, strcspn(name, "/"));
    char *local = g_strndup(bare, strcspn(bare, "@"));
    char *to = g_strdup_printf("%s\\40%s@%s/%s", local, strchr(bare, '@') + 1, component, resource);
    serv_send_file(purple_account_get_connection(accounts[from]), to, file);
    g_free(to), g_free(local), g_free(bare);
}

static void signed_on(PurpleConnection *connection)
{
    (void)connection;
    if (++online == 2) send_file(0);
}

static void failed(PurpleConnection *connection, PurpleConnectionError why, const char *text)
{
    (void)connection;
    printf("connection error %d: %s\n", why, text);
    exit(1);
}

static void offered(PurpleXfer *xfer)
{
    PurpleAccount *account = purple_xfer_get_account(xfer);
    char *name = g_strndup(purple_account_get_username(account), strcspn(purple_account_get_username(account), "@"));
    char *path = g_build_filename(directory, name, NULL);
    const char *message = xfer->message;
    printf("offered: %s\n", message ? message : "");
    purple_xfer_request_accepted(xfer, path);
    g_free(path), g_free(name);
}

static void received(PurpleXfer *xfer)
{
    printf("received\n");
    if (purple_xfer_get_account(xfer) == accounts[1]) {
        send_file(1);
    } else {
        exit(0);
    }
}

static void cancelled(PurpleXfer *xfer)
{
    printf("cancelled %d\n", purple_xfer_get_status(xfer));
    exit(1);
}

static gboolean late(gpointer data)
{
    (void)data;
    printf("it took too long\n");
    exit(1);
}

static PurpleCoreUiOps core = { .ui_init = NULL };

int main(int argc, char **argv)
{
    static int handle;
    void *transfers;
    if (argc != 10) return 2;
    directory = argv[1], component = argv[4], file = argv[5];
    setvbuf(stdout, NULL, _IOLBF, 0);
    purple_util_set_user_dir(directory);
    purple_debug_set_enabled(g_getenv("PURPLE_DEBUG") != NULL);
    purple_core_set_ui_ops(&core);
    purple_eventloop_set_ui_ops(&loop);
    if (!purple_core_init("fingerpost-test")) return 1;
    purple_request_set_ui_ops(&requests);
    purple_notify_set_ui_ops(&notices);
    purple_set_blist(purple_blist_new());
    purple_signal_connect(purple_connections_get_handle(), "signed-on", &handle, PURPLE_CALLBACK(signed_on), NULL);
    purple_signal_connect(purple_connections_get_handle(), "connection-error", &handle, PURPLE_CALLBACK(failed), NULL);
    transfers = purple_xfers_get_handle();
    purple_signal_connect(transfers, "file-recv-request", &handle, PURPLE_CALLBACK(offered), NULL);
    purple_signal_connect(transfers, "file-recv-complete", &handle, PURPLE_CALLBACK(received), NULL);
    purple_signal_connect(transfers, "file-recv-cancel", &handle, PURPLE_CALLBACK(cancelled), NULL);
    purple_signal_connect(transfers, "file-send-cancel", &handle, PURPLE_CALLBACK(cancelled), NULL);
    for (int i = 0; i < 2; i++) {
        char *name = g_strdup_printf("%s/pidgin%d", argv[6 + 2 * i], i);
        accounts[i] = purple_account_new(name, "prpl-jabber");
        purple_account_set_password(accounts[i], argv[7 + 2 * i]);
        purple_account_set_string(accounts[i], "connect_server", argv[2]);
        purple_account_set_int(accounts[i], "port", atoi(argv[3]));
        purple_account_set_string(accounts[i], "ft_proxies", "");
        purple_accounts_add(accounts[i]);
        purple_account_set_enabled(accounts[i], "fingerpost-test", TRUE);
        g_free(name);
    }
    purple_savedstatus_activate(purple_savedstatus_new(NULL, PURPLE_STATUS_AVAILABLE));
    g_timeout_add_seconds(200, late, NULL);
    g_main_loop_run(g_main_loop_new(NULL, FALSE));
    return 0;
}
