/* A service that sends back whatever it is sent, to users whose keys it checks, one after the other.
 *
 *     XMPP_PASSWORD=… ./echo echo@example.org xtls.example.org [SERVER:PORT [CA.pem [SESSIONS]]]
 *
 * It makes a key, registers it at the component, and waits. A user's first key is kept, another one is refused. After so
 * many sessions it ends; without a number it never does. A service for many users at once gives each stream a thread.
 */
#include <fingerpost.h>
#include <stdio.h>
#include <stdlib.h>

static int failed(const char *what) {
    const fingerpost_error *error = fingerpost_last_error();
    fprintf(stderr, "error: %s: %s\n", what, error->message);
    return error->code;
}

/* Returns how many bytes came back, or -1. */
static long echo(fingerpost_stream stream) {
    static char buffer[1 << 18];
    long total = 0;
    size_t length;
    for (;;) {
        if (fingerpost_read(stream, buffer, sizeof buffer, &length))
            return -1;
        if (length == 0)
            return total;
        if (fingerpost_write(stream, buffer, length))
            return -1;
        total += (long)length;
    }
}

static void serve(fingerpost_request request) {
    char peer[3072];
    fingerpost_stream stream;
    if (fingerpost_request_peer(request, peer, sizeof peer)) {
        failed("peer");
        fingerpost_decline(request, "the name is too long");
        return;
    }
    if (fingerpost_accept(request, &stream)) {
        failed(peer);
        return;
    }
    long bytes = echo(stream);
    if (bytes < 0) {
        failed(peer);
        fingerpost_stream_abort(stream);
    } else if (fingerpost_stream_close(stream)) {
        failed(peer);
    } else {
        printf("%s: %ld bytes\n", peer, bytes);
        fflush(stdout);
    }
}

int main(int argc, char **argv) {
    if (argc < 3 || argc > 6) {
        fprintf(stderr, "usage: echo USER@DOMAIN COMPONENT [SERVER:PORT [CA.pem [SESSIONS]]]\n");
        return 2;
    }
    fingerpost_settings settings = {
        .size = sizeof settings,
        .jid = argv[1],
        .password = getenv("XMPP_PASSWORD"),
        .component = argv[2],
        .server = argc > 3 ? argv[3] : NULL,
        .ca_file = argc > 4 ? argv[4] : NULL,
        .identity = getenv("FINGERPOST_IDENTITY"),
        .trust = "first-use",
    };
    long sessions = argc > 5 ? atol(argv[5]) : -1;
    fingerpost_endpoint endpoint;
    fingerpost_request request;
    char jid[3072];
    if (fingerpost_login(&settings, &endpoint))
        return failed("login");
    int status = 0;
    if (fingerpost_register(endpoint, "echo") || fingerpost_listen(endpoint) ||
        fingerpost_endpoint_jid(endpoint, jid, sizeof jid)) {
        status = failed("listen");
    } else {
        printf("ready as %s\n", jid);
        fflush(stdout);
    }
    for (; status == 0 && sessions != 0; sessions -= sessions > 0) {
        if (fingerpost_next(endpoint, -1, &request))
            status = failed("next");
        else
            serve(request);
    }
    fingerpost_endpoint_close(endpoint);
    return status;
}
