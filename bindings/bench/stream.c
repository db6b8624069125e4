/* One end of the measurement of `make bindings-bench`: stream.rs says how it is called. */
#include <fingerpost.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BLOCK = 1 << 18 };
static char block[BLOCK];

static void must(fingerpost_code code, const char *what) {
    if (code == FINGERPOST_OK)
        return;
    fprintf(stderr, "%s: %s\n", what, fingerpost_last_error()->message);
    exit(1);
}

static size_t drain(fingerpost_stream stream, char *buffer, size_t size) {
    size_t total = 0, length;
    do {
        must(fingerpost_read(stream, buffer, size, &length), "read");
        total += length;
    } while (length > 0);
    return total;
}

int main(int argc, char **argv) {
    if (argc < 7)
        return 2;
    fingerpost_settings settings = {
        .size = sizeof settings,
        .jid = argv[2],
        .password = getenv("XMPP_PASSWORD"),
        .component = argv[3],
        .server = argv[4],
        .ca_file = argv[5],
        .identity = argv[6],
        .trust = "first-use",
    };
    fingerpost_endpoint endpoint;
    fingerpost_stream stream;
    char text[32];
    must(fingerpost_login(&settings, &endpoint), "login");
    if (strcmp(argv[1], "receive") == 0) {
        fingerpost_request request;
        must(fingerpost_listen(endpoint), "listen");
        printf("ready\n");
        fflush(stdout);
        for (;;) {
            must(fingerpost_next(endpoint, -1, &request), "next");
            must(fingerpost_accept(request, &stream), "accept");
            int length = snprintf(text, sizeof text, "%zu", drain(stream, block, BLOCK));
            must(fingerpost_write(stream, text, (size_t)length), "write");
            must(fingerpost_stream_close(stream), "close");
        }
    }
    if (argc < 9)
        return 2;
    size_t bytes = strtoul(argv[8], NULL, 10), length, got = 0;
    struct timespec start, end;
    memset(block, 7, BLOCK);
    must(fingerpost_connect(endpoint, argv[7], &stream), "connect");
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (size_t left = bytes; left > 0; left -= left < BLOCK ? left : BLOCK)
        must(fingerpost_write(stream, block, left < BLOCK ? left : BLOCK), "write");
    must(fingerpost_end(stream), "end");
    do {
        must(fingerpost_read(stream, text + got, sizeof text - 1 - got, &length), "read");
        got += length;
    } while (length > 0);
    clock_gettime(CLOCK_MONOTONIC, &end);
    text[got] = 0;
    if (strtoul(text, NULL, 10) != bytes) {
        fprintf(stderr, "the peer has another number of bytes: %s\n", text);
        return 1;
    }
    printf("%f\n", (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9);
    must(fingerpost_stream_close(stream), "close");
    must(fingerpost_endpoint_close(endpoint), "close");
    return 0;
}
