/* A process that calls another one: it writes and reads a key of a key-value server, again and again.
 *
 *     client [--count N] [--interval-ms 1000]
 *
 * Where the server is it learns from LOWCLOUD_CONNECT_KV (`address:port`), which stands for the definition's
 * `[process.client.connect] kv = "kv@host:6379/tcp"`. A connection that fails is made again after the interval. With
 * --count it ends after so many answers, badly if one was wrong.
 */
#include "lib/net.h"
#include "lib/program.h"

#define VARIABLE "LOWCLOUD_CONNECT_KV"
#define PATIENCE_NS (5ull * 1000000000)
enum { MAX_LINE = 512 };

static struct stream connection;
static bool connected;

static void pause_ns(uint64_t duration_ns) {
    handle pollable = wasi_subscribe_duration_ns(duration_ns);
    wasi_block(pollable);
    wasi_drop_pollable(pollable);
}

static void say(const char *what, struct slice more) {
    char text[MAX_LINE + 64];
    struct builder line = {text, 0, sizeof text, false};
    add_text(&line, "client: ");
    add_text(&line, what);
    add(&line, more);
    add_text(&line, "\n");
    print((struct slice){text, line.length});
}

static void disconnect(const char *what, struct slice why) {
    say(what, why);
    if (connected) tcp_close(&connection);
    connected = false;
}

static bool send_all(struct slice text) {
    while (text.length) {
        size_t written;
        if (tcp_write(&connection, text.at, text.length, &written) != NET_OK) return false;
        text.at += written;
        text.length -= written;
        if (written) continue;
        handle pollable = wasi_subscribe_output(connection.output);
        bool ready = wait_ready(pollable, PATIENCE_NS);
        wasi_drop_pollable(pollable);
        if (!ready) return false;
    }
    return true;
}

/* One line of answer, without its end. The server sends no byte that was not asked for, so nothing follows it. */
static bool receive_line(char *text, struct slice *line) {
    size_t held = 0, part;
    while (held < MAX_LINE) {
        handle pollable = wasi_subscribe_input(connection.input);
        bool ready = wait_ready(pollable, PATIENCE_NS);
        wasi_drop_pollable(pollable);
        if (!ready || tcp_read(&connection, text + held, MAX_LINE - held, &part) != NET_OK) return false;
        held += part;
        if (held && text[held - 1] == '\n') {
            *line = (struct slice){text, held - 1};
            return true;
        }
    }
    return false;
}

/* Sends one request and reads its answer; on failure the connection is gone. */
static bool ask(struct slice request, char *text, struct slice *answer) {
    bool answered = send_all(request) && receive_line(text, answer);
    if (!answered) disconnect("lost the connection to ", environment(VARIABLE));
    return answered;
}

/* Writes the round's number and reads it back. */
static bool play_round(uint64_t round, bool *right) {
    char request_text[MAX_LINE], answer_text[MAX_LINE], expected_text[64];
    struct builder request = {request_text, 0, sizeof request_text, false};
    struct builder expected = {expected_text, 0, sizeof expected_text, false};
    struct slice answer;
    add_text(&request, "SET greeting hello ");
    add_number(&request, round);
    add_text(&request, "\n");
    if (!ask((struct slice){request_text, request.length}, answer_text, &answer)) return false;
    *right = slice_equal(answer, SLICE("OK"));
    if (!ask(SLICE("GET greeting\n"), answer_text, &answer)) return false;
    add_text(&expected, "VALUE hello ");
    add_number(&expected, round);
    *right &= slice_equal(answer, (struct slice){expected_text, expected.length});
    say(*right ? "got " : "got a wrong answer: ", answer);
    return true;
}

bool run(void) {
    uint64_t count = option_number("--count", 0, UINT32_MAX);
    uint64_t interval_ns = option_number("--interval-ms", 1000, 86400000) * 1000000;
    struct slice where = environment(VARIABLE);
    struct address server;
    if (!where.at || !parse_endpoint(where, &server)) fail(VARIABLE " is not address:port: ", where);
    bool all_right = true;
    for (uint64_t rounds = 0; !count || rounds < count;) {
        bool right = true;
        if (!connected) {
            int error = tcp_connect(&server, PATIENCE_NS, &connection);
            connected = error == NET_OK;
            if (connected) say("connected to ", where);
            else disconnect("cannot connect: ", net_error_name(error));
        }
        if (connected && play_round(rounds + 1, &right)) rounds++;
        all_right &= right;
        if (!count || rounds < count) pause_ns(interval_ns);
    }
    return all_right;
}
