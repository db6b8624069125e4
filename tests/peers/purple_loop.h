/* What all programs of libpurple here need. */
#include <glib.h>
#include <libpurple/purple.h>

/* The event loop of GLib, as every client of libpurple has it. */
struct watch {
    PurpleInputFunction function;
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
    guint result;
    if (what & PURPLE_INPUT_READ) condition |= G_IO_IN;
    if (what & PURPLE_INPUT_WRITE) condition |= G_IO_OUT;
    watch->function = function;
    watch->data = data;
    result = g_io_add_watch_full(channel, G_PRIORITY_DEFAULT, condition, ready, watch, g_free);
    g_io_channel_unref(channel);
    return result;
}

static PurpleEventLoopUiOps loop = {
    .timeout_add = g_timeout_add,
    .timeout_remove = g_source_remove,
    .input_add = input_add,
    .input_remove = g_source_remove,
    .timeout_add_seconds = g_timeout_add_seconds,
};
