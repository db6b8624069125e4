/* Pidgin's Bonjour, without its window: libpurple with the account of a local network.
 *
 * bonjour DIRECTORY OWN-NAME PEER TEXT: waits for PEER, sends it TEXT as a user would, and prints what the window of the
 * conversation would show, a line each: "sent ...", "received ...", "system ...", "error ...".
 */
#include <glib.h>
#include <libpurple/purple.h>
#include <stdio.h>
#include <string.h>

static const char *peer, *text;

/* The event loop of GLib, as every client of libpurple has it. */
struct watch {
    PurpleInputFunction function;
    guint result;
    gpointer data;
};

static gboolean ready(GIOChannel *source, GIOCondition condition, gpointer data)
{
    struct watch *watch = data;
    PurpleInputCondition what = 0;
    if (condition & (G_IO_IN | G_IO_HUP | G_IO_ERR)) what |= PURPLE_INPUT_READ;
    if (condition & (G_IO_OUT | G_IO_HUP | G_IO_ERR | G_IO_NVAL)) what |= PURPLE_INPUT_WRITE;
    watch->function(watch->data, g_io_channel_unix_get_fd(source), what);
    return TRUE;
}

static guint input_add(gint fd, PurpleInputCondition what, PurpleInputFunction function, gpointer data)
{
    struct watch *watch = g_new0(struct watch, 1);
    GIOCondition condition = G_IO_HUP | G_IO_ERR | G_IO_NVAL;
    GIOChannel *channel = g_io_channel_unix_new(fd);
    if (what & PURPLE_INPUT_READ) condition |= G_IO_IN;
    if (what & PURPLE_INPUT_WRITE) condition |= G_IO_OUT;
    watch->function = function;
    watch->data = data;
    watch->result = g_io_add_watch_full(channel, G_PRIORITY_DEFAULT, condition, ready, watch, g_free);
    g_io_channel_unref(channel);
    return watch->result;
}

static PurpleEventLoopUiOps loop = {
    .timeout_add = g_timeout_add,
    .timeout_remove = g_source_remove,
    .input_add = input_add,
    .input_remove = g_source_remove,
    .timeout_add_seconds = g_timeout_add_seconds,
};

static void show(PurpleConversation *conversation, const char *name, const char *alias, const char *message,
                 PurpleMessageFlags flags, time_t when)
{
    char *plain = purple_markup_strip_html(message);
    const char *what = flags & PURPLE_MESSAGE_SEND ? "sent"
        : flags & PURPLE_MESSAGE_RECV ? "received"
        : flags & PURPLE_MESSAGE_ERROR ? "error" : "system";
    (void)conversation, (void)alias, (void)when, (void)name;
    g_strdelimit(plain, "\n", ' ');
    printf("%s %s\n", what, plain);
    g_free(plain);
}

static PurpleConversationUiOps window = { .write_conv = show };

static void signed_on(PurpleBuddy *buddy)
{
    PurpleConversation *conversation;
    if (strcmp(purple_buddy_get_name(buddy), peer) != 0) return;
    printf("online %s\n", peer);
    conversation = purple_conversation_new(PURPLE_CONV_TYPE_IM, purple_buddy_get_account(buddy), peer);
    purple_conv_im_send(PURPLE_CONV_IM(conversation), text);
}

static void ui_init(void)
{
    purple_conversations_set_ui_ops(&window);
}

static PurpleCoreUiOps core = { .ui_prefs_init = NULL, .debug_ui_init = NULL, .ui_init = ui_init };

int main(int argc, char **argv)
{
    static int handle;
    PurpleAccount *account;
    if (argc != 5) return 2;
    peer = argv[3];
    text = argv[4];
    setvbuf(stdout, NULL, _IOLBF, 0);
    purple_util_set_user_dir(argv[1]);
    purple_debug_set_enabled(g_getenv("BONJOUR_DEBUG") != NULL);
    purple_core_set_ui_ops(&core);
    purple_eventloop_set_ui_ops(&loop);
    if (!purple_core_init("fingerpost-test")) return 1;
    purple_set_blist(purple_blist_new());
    account = purple_account_new(argv[2], "prpl-bonjour");
    purple_accounts_add(account);
    purple_account_set_enabled(account, "fingerpost-test", TRUE);
    purple_signal_connect(purple_blist_get_handle(), "buddy-signed-on", &handle, PURPLE_CALLBACK(signed_on), NULL);
    purple_savedstatus_activate(purple_savedstatus_new(NULL, PURPLE_STATUS_AVAILABLE));
    g_main_loop_run(g_main_loop_new(NULL, FALSE));
    return 0;
}
