/* Pidgin's Bonjour, without its window: libpurple with the account of a local network.
 *
 * bonjour DIRECTORY OWN-NAME PEER TEXT: waits for PEER, sends it TEXT as a user would, and prints what the window of the
 * conversation would show, a line each: "sent ...", "received ...", "system ...", "error ...".
 */
#include <glib.h>
#include <libpurple/purple.h>
#include <stdio.h>
#include <string.h>

#include "purple_loop.h"

static const char *peer, *text;

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
