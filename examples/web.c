/* A small HTTP/1.1 server (RFC 9110, RFC 9112). Its own configuration file is /etc/web.toml:
 *
 *     greeting = "hello"
 *
 * It listens where LOWCLOUD_LISTEN_HTTP says (`address:port`, from the definition's `listen`), or where
 * `--address 0.0.0.0 --port 8080` do.
 *
 * Version 2 differs from version 1 by what a release typically does: one more page and another version number.
 */
#include "lib/file.h"
#include "lib/program.h"
#include "lib/serve.h"

#ifndef VERSION
#define VERSION 1
#endif
#if VERSION >= 2
#define VERSION_TEXT "2.0"
#else
#define VERSION_TEXT "1.0"
#endif

#define CONFIG_PATH "/etc/web.toml"
enum { MAX_GREETING = 512, MAX_RESPONSE = 1024, MAX_HEADERS = 64, MAX_BODY = 1 << 20 };

static char greeting_text[MAX_GREETING] = "hello";
static struct slice greeting = {greeting_text, 5};

static struct {
    struct address address;
#if VERSION >= 2
    uint64_t started_ns, requests;
#endif
} server;

/* --- configuration: lines of `key = "value"`, comments after `#` --- */

static void configure_line(struct slice line) {
    line = slice_trimmed(line);
    if (!line.length || line.at[0] == '#') return;
    struct slice value = line, key = slice_trimmed(slice_cut(&value, '='));
    value = slice_trimmed(value);
    if (value.length < 2 || value.at[0] != '"') fail(CONFIG_PATH ": not a line of the form key = \"value\": ", line);
    value.at++, value.length--;
    value = slice_cut(&value, '"');
    if (!slice_equal(key, SLICE("greeting"))) fail(CONFIG_PATH ": unknown key: ", key);
    if (value.length > MAX_GREETING) fail(CONFIG_PATH ": too long: ", key);
    memcpy(greeting_text, value.at, value.length);
    greeting.length = value.length;
}

static void configure(void) {
    static char text[4096];
    size_t length;
    int error = file_read_whole(SLICE(CONFIG_PATH), text, sizeof text, &length);
    if (slice_equal(file_error_name(error), SLICE("no-entry"))) return; /* every key has a default */
    if (error != FILE_OK) fail(CONFIG_PATH ": ", file_error_name(error));
    struct slice rest = {text, length};
    while (rest.length) configure_line(slice_cut(&rest, '\n'));
}

/* --- requests --- */

enum framing { NO_BODY, LENGTH, CHUNKED };

struct request {
    struct slice method, target;
    bool http_1_0, keep_alive, has_host, expects_continue;
    enum framing framing;
    uint64_t body_length;
};

static const struct slice ok = {"200 OK", 6};
static const struct slice bad_request = {"400 Bad Request", 15};

static bool token_character(char c) {
    if ((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z')) return true;
    for (const char *also = "!#$%&'*+-.^_`|~"; *also; also++)
        if (c == *also) return true;
    return false;
}

static bool is_token(struct slice text) {
    for (size_t i = 0; i < text.length; i++)
        if (!token_character(text.at[i])) return false;
    return text.length > 0;
}

/* Printable ASCII without space. */
static bool is_target(struct slice text) {
    for (size_t i = 0; i < text.length; i++)
        if (text.at[i] <= ' ' || text.at[i] > '~') return false;
    return text.length > 0;
}

/* Length of the head up to and with its empty line; 0 while it is not whole. */
static size_t head_length(struct slice input) {
    for (size_t i = 0; i + 3 < input.length; i++)
        if (input.at[i] == '\r' && memcmp(input.at + i, "\r\n\r\n", 4) == 0) return i + 4;
    return 0;
}

static struct slice next_line(struct slice *rest) {
    struct slice line = slice_cut(rest, '\n');
    bool proper = line.length && line.at[line.length - 1] == '\r';
    return proper ? (struct slice){line.at, line.length - 1} : (struct slice){NULL, 0};
}

/* Returns `ok`, or the status of what is wrong with it. */
static struct slice parse_request_line(struct slice line, struct request *request) {
    request->method = slice_cut(&line, ' ');
    request->target = slice_cut(&line, ' ');
    if (!is_token(request->method) || !is_target(request->target)) return bad_request;
    request->http_1_0 = slice_equal(line, SLICE("HTTP/1.0"));
    request->keep_alive = !request->http_1_0;
    if (request->http_1_0 || slice_equal(line, SLICE("HTTP/1.1"))) return ok;
    bool other_version = line.length > 5 && memcmp(line.at, "HTTP/", 5) == 0;
    return other_version ? SLICE("505 HTTP Version Not Supported") : bad_request;
}

static void parse_connection(struct slice value, struct request *request) {
    while (value.length) {
        struct slice wish = slice_trimmed(slice_cut(&value, ','));
        if (slice_equal_ignoring_case(wish, SLICE("close"))) request->keep_alive = false;
        else if (request->http_1_0 && slice_equal_ignoring_case(wish, SLICE("keep-alive"))) request->keep_alive = true;
    }
}

static struct slice parse_header(struct slice name, struct slice value, struct request *request) {
    if (slice_equal_ignoring_case(name, SLICE("host"))) {
        if (request->has_host) return bad_request;
        request->has_host = true;
    } else if (slice_equal_ignoring_case(name, SLICE("connection"))) {
        parse_connection(value, request);
    } else if (slice_equal_ignoring_case(name, SLICE("expect"))) {
        request->expects_continue = slice_equal_ignoring_case(value, SLICE("100-continue"));
    } else if (slice_equal_ignoring_case(name, SLICE("content-length"))) {
        if (request->framing != NO_BODY || !parse_number(value, UINT64_MAX / 16, &request->body_length))
            return bad_request;
        request->framing = LENGTH;
        if (request->body_length > MAX_BODY) return SLICE("413 Content Too Large");
    } else if (slice_equal_ignoring_case(name, SLICE("transfer-encoding"))) {
        if (request->framing != NO_BODY || request->http_1_0) return bad_request;
        if (!slice_equal_ignoring_case(value, SLICE("chunked"))) return SLICE("501 Not Implemented");
        request->framing = CHUNKED;
    }
    return ok;
}

static struct slice parse_head(struct slice head, struct request *request) {
    struct slice line = next_line(&head);
    if (!line.at) return bad_request;
    struct slice status = parse_request_line(line, request);
    for (int headers = 0; status.at == ok.at; headers++) {
        line = next_line(&head);
        if (!line.at) return bad_request;
        if (!line.length) break;
        if (headers == MAX_HEADERS) return SLICE("431 Request Header Fields Too Large");
        struct slice name = slice_cut(&line, ':');
        if (!is_token(name)) return bad_request;
        status = parse_header(name, slice_trimmed(line), request);
    }
    if (status.at == ok.at && !request->has_host && !request->http_1_0) return bad_request;
    return status;
}

/* --- responses --- */

static void send(struct connection *connection, const struct request *request, struct slice status, struct slice body) {
    char text[MAX_RESPONSE];
    struct builder response = {text, 0, sizeof text, false};
    add_text(&response, "HTTP/1.1 ");
    add(&response, status);
    add_text(&response, "\r\nServer: web/" VERSION_TEXT "\r\nContent-Type: text/plain; charset=utf-8");
    add_text(&response, "\r\nContent-Length: ");
    add_number(&response, body.length);
    if (memcmp(status.at, "405", 3) == 0) add_text(&response, "\r\nAllow: GET, HEAD");
    if (!request->keep_alive) add_text(&response, "\r\nConnection: close");
    else if (request->http_1_0) add_text(&response, "\r\nConnection: keep-alive");
    add_text(&response, "\r\n\r\n");
    if (!slice_equal(request->method, SLICE("HEAD"))) add(&response, body);
    respond(connection, (struct slice){response.at, response.length});
    if (!request->keep_alive) finish_connection(connection);
}

static void send_status(struct connection *connection, const struct request *request, struct slice status) {
    char text[64];
    struct builder body = {text, 0, sizeof text, false};
    add(&body, status);
    add_text(&body, "\n");
    send(connection, request, status, (struct slice){body.at, body.length});
}

#if VERSION >= 2
static void add_stats(struct builder *body) {
    add_text(body, "requests ");
    add_number(body, server.requests);
    add_text(body, "\nconnections ");
    add_number(body, connections_ever);
    add_text(body, "\nopen ");
    add_number(body, connections_open);
    add_text(body, "\nuptime_s ");
    add_number(body, (wasi_now_ns() - server.started_ns) / 1000000000);
    add_text(body, "\n");
}
#endif

static void route(struct connection *connection, const struct request *request) {
    char text[MAX_GREETING + 64];
    struct builder body = {text, 0, sizeof text, false};
    struct slice query = request->target, path = slice_cut(&query, '?');
    bool known_method = slice_equal(request->method, SLICE("GET")) || slice_equal(request->method, SLICE("HEAD"));
    if (!known_method) {
        send_status(connection, request, SLICE("405 Method Not Allowed"));
        return;
    }
    if (slice_equal(path, SLICE("/"))) {
        add(&body, greeting);
        add_text(&body, " from web " VERSION_TEXT "\n");
    } else if (slice_equal(path, SLICE("/healthz"))) {
        add_text(&body, "ok\n");
    } else if (slice_equal(path, SLICE("/version"))) {
        add_text(&body, VERSION_TEXT "\n");
#if VERSION >= 2
    } else if (slice_equal(path, SLICE("/stats"))) {
        add_stats(&body);
#endif
    } else {
        send_status(connection, request, SLICE("404 Not Found"));
        return;
    }
    send(connection, request, ok, (struct slice){body.at, body.length});
}

/* --- bodies, which no page wants. A connection's state[0] is what comes next; state[1] counts a chunked body. --- */

enum { HEAD = 0, CHUNK, TRAILER };

static bool parse_hex(struct slice text, uint64_t *number) {
    *number = 0;
    if (!text.length || text.length > 8) return false;
    for (size_t i = 0; i < text.length; i++) {
        char c = text.at[i];
        bool digit = c >= '0' && c <= '9', letter = (c | 32) >= 'a' && (c | 32) <= 'f';
        if (!digit && !letter) return false;
        *number = *number * 16 + (uint64_t)(digit ? c - '0' : (c | 32) - 'a' + 10);
    }
    return true;
}

static size_t answer_chunk_line(struct connection *connection, struct slice input) {
    struct slice rest = input;
    struct slice line = slice_cut(&rest, '\n');
    if (line.length == input.length) return 0;
    size_t done = line.length + 1;
    line = slice_trimmed(line);
    if (connection->state[0] == TRAILER) {
        if (!line.length) connection->state[0] = HEAD;
        return done;
    }
    uint64_t size;
    if (!parse_hex(slice_trimmed(slice_cut(&line, ';')), &size) || connection->state[1] + size > MAX_BODY) {
        finish_connection(connection); /* the response is out already; what follows makes no sense */
        return done;
    }
    connection->state[1] += (uint32_t)size;
    if (size) connection->skip = size + 2;
    else connection->state[0] = TRAILER;
    return done;
}

static void expect_body(struct connection *connection, const struct request *request) {
    bool waits = request->expects_continue && request->keep_alive && !request->http_1_0;
    if (request->framing == NO_BODY || !waits) return;
    respond(connection, SLICE("HTTP/1.1 100 Continue\r\n\r\n"));
}

static void skip_body(struct connection *connection, const struct request *request) {
    if (request->framing == LENGTH) connection->skip = request->body_length;
    if (request->framing == CHUNKED) {
        connection->state[0] = CHUNK;
        connection->state[1] = 0;
    }
}

static size_t answer(struct connection *connection, struct slice input) {
    if (connection->state[0] != HEAD) return answer_chunk_line(connection, input);
    /* RFC 9112, section 2.2: an empty line before a request is skipped. */
    if (input.length >= 2 && memcmp(input.at, "\r\n", 2) == 0) return 2;
    struct request request = {.keep_alive = false};
    if (!has_room(connection, MAX_RESPONSE + 32)) return 0;
    size_t length = head_length(input);
    if (!length && input.length < INPUT_BYTES) {
        /* Garbage is told so at once, not when it has filled the buffer. */
        struct slice rest = input;
        if (slice_cut(&rest, '\n').length == input.length) return 0;
        rest = input;
        struct slice line = next_line(&rest);
        struct slice status = line.at ? parse_request_line(line, &request) : bad_request;
        if (status.at == ok.at) return 0;
        request.keep_alive = false;
        send_status(connection, &request, status);
        return input.length;
    }
    struct slice status = length ? parse_head((struct slice){input.at, length}, &request)
                                 : SLICE("431 Request Header Fields Too Large");
    if (status.at != ok.at) {
        request.keep_alive = false;
        send_status(connection, &request, status);
        return input.length;
    }
#if VERSION >= 2
    server.requests++;
#endif
    expect_body(connection, &request);
    route(connection, &request);
    skip_body(connection, &request);
    return length;
}

/* --- start --- */

static void announce(void) {
    char text[MAX_GREETING + 128];
    struct builder line = {text, 0, sizeof text, false};
    add_text(&line, "web " VERSION_TEXT " listens on ");
    add_address(&line, &server.address);
    add_text(&line, ", greeting \"");
    add(&line, greeting);
    add_text(&line, "\"\n");
    print((struct slice){line.at, line.length});
}

bool run(void) {
    static const struct protocol http = {answer, NULL};
    server.address = listen_address("LOWCLOUD_LISTEN_HTTP", 8080);
#if VERSION >= 2
    server.started_ns = wasi_now_ns();
#endif
    configure();
    fail("cannot listen: ", net_error_name(serve(&server.address, &http, announce)));
}
