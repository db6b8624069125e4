/* The lines of docs/LIBRARY.md as a program. */
#include <fingerpost.h>
#include <stdio.h>
#include <stdlib.h>

int main(void) {
    const char *password = getenv("XMPP_PASSWORD");
    fingerpost_endpoint alice;
    fingerpost_stream stream;
    char answer[100];
    size_t length;
    // begin
    fingerpost_settings settings = {sizeof settings, "alice@example.org", password, "xtls.example.org"};
    if (fingerpost_login(&settings, &alice) || fingerpost_connect(alice, "bob@example.org", &stream) ||
        fingerpost_write(stream, "Hello, Bob\n", 11) || fingerpost_end(stream) ||
        fingerpost_read(stream, answer, sizeof answer, &length))
        return fprintf(stderr, "%s\n", fingerpost_last_error()->message), 1;
    // end
    printf("%.*s", (int)length, answer);
    return fingerpost_stream_close(stream) || fingerpost_endpoint_close(alice);
}
