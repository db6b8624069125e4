/* Sends one line to another user's program, end to end encrypted, and prints the answer.
 *
 *     XMPP_PASSWORD=… ./send_line alice@example.org xtls.example.org echo@example.org "Hello" [SERVER:PORT [CA.pem]]
 *
 * The other user's key must be known to the component's registry. The exit status is the code of the library.
 */
#include <fingerpost.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failed(const char *what) {
    const fingerpost_error *error = fingerpost_last_error();
    fprintf(stderr, "error: %s: %s\n", what, error->message);
    return error->code;
}

static int talk(fingerpost_stream stream, const char *line) {
    char peer[256], print[256], answer[4096];
    size_t length;
    if (fingerpost_stream_info(stream, FINGERPOST_PEER, peer, sizeof peer) ||
        fingerpost_stream_info(stream, FINGERPOST_FINGERPRINT, print, sizeof print))
        return failed("info");
    fprintf(stderr, "%s holds the key %s\n", peer, print);
    if (fingerpost_write(stream, line, strlen(line)) || fingerpost_write(stream, "\n", 1) ||
        fingerpost_end(stream))
        return failed("write");
    do {
        if (fingerpost_read(stream, answer, sizeof answer, &length))
            return failed("read");
        fwrite(answer, 1, length, stdout);
    } while (length > 0);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 5 || argc > 7) {
        fprintf(stderr, "usage: send_line USER@DOMAIN COMPONENT PEER LINE [SERVER:PORT [CA.pem]]\n");
        return 2;
    }
    fingerpost_settings settings = {
        .size = sizeof settings,
        .jid = argv[1],
        .password = getenv("XMPP_PASSWORD"),
        .component = argv[2],
        .server = argc > 5 ? argv[5] : NULL,
        .ca_file = argc > 6 ? argv[6] : NULL,
        .identity = getenv("FINGERPOST_IDENTITY"),
    };
    fingerpost_endpoint endpoint;
    fingerpost_stream stream;
    int status = 0;
    if (fingerpost_login(&settings, &endpoint))
        return failed("login");
    if (fingerpost_connect(endpoint, argv[3], &stream)) {
        status = failed("connect");
    } else {
        status = talk(stream, argv[4]);
        if (status)
            fingerpost_stream_abort(stream);
        else if (fingerpost_stream_close(stream))
            status = failed("close");
    }
    fingerpost_endpoint_close(endpoint);
    return status;
}
