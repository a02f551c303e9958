/* A guest that does one thing its first argument names, and says how it went: what the tests of the runtime run.
 *
 * Every mode prints a line per step, such as `connect ok` or `connect denied access-denied`, and ends badly at the
 * first step that fails. The modes are the table at the end.
 */
#include "lib/file.h"
#include "lib/net.h"
#include "lib/program.h"

#define MS ((uint64_t)1000000)
#define FOREVER_NS (3600 * 1000 * MS)
#define PATIENCE_NS (5000 * MS)
enum { BACKLOG = 128, MAX_REQUEST = 4096, MAX_NAME = 256 };

/* --- helpers --- */

static void say(const char *what, struct slice more) {
    static char text[8192];
    struct builder line = {text, 0, sizeof text - 1, false};
    add_text(&line, what);
    add(&line, more);
    text[line.length++] = '\n';
    print((struct slice){text, line.length});
}

static uint64_t number(size_t index, uint64_t otherwise) {
    uint64_t value = otherwise;
    struct slice text = argument(index);
    if (text.at && !parse_number(text, UINT32_MAX, &value)) fail("not a number: ", text);
    return value;
}

static void pause_ns(uint64_t duration_ns) {
    handle pollable = wasi_subscribe_duration_ns(duration_ns);
    wasi_block(pollable);
    wasi_drop_pollable(pollable);
}

/* One line: `what ok`, or `what denied <the error's name>`. */
static bool report(const char *what, int error, struct slice (*name)(int)) {
    print(slice_of(what));
    if (error == NET_OK) say(" ok", SLICE(""));
    else say(" denied ", name(error));
    return error == NET_OK;
}

static struct address address_of(struct slice ip, uint64_t port) {
    struct address address;
    if (!parse_ip(ip, &address)) fail("not an IP address: ", ip);
    address.port = (uint16_t)port;
    return address;
}

/* --- life and death --- */

static bool mode_exit(void) {
    return number(2, 0) == 0;
}

static bool mode_trap(void) {
    __builtin_trap();
}

static bool mode_spin(void) {
    say("spinning", SLICE(""));
    for (volatile uint64_t turns = 0;; turns++) {}
}

static bool mode_sleep(void) {
    say("sleeping", SLICE(""));
    pause_ns(number(2, 1000) * MS);
    say("awake", SLICE(""));
    return true;
}

/* Takes and touches memory, a MiB at a time. */
static bool mode_alloc(void) {
    uint64_t wanted = number(2, 1), got = 0;
    char text[32];
    while (got < wanted) {
        char *block = take(1 << 20);
        if (!block) break;
        for (size_t i = 0; i < 1 << 20; i += 4096) block[i] = 1;
        got++;
    }
    struct builder line = {text, 0, sizeof text, false};
    add_number(&line, got);
    say(got == wanted ? "ok MiB " : "denied MiB ", (struct slice){text, line.length});
    if (got == wanted && argument(3).at) pause_ns(FOREVER_NS);
    return got == wanted;
}

/* Takes a MiB whenever it can get one, and says how many it has whenever it gets none. */
static bool mode_reach(void) {
    uint64_t got = 0, told = 0;
    for (;;) {
        char *block = take(1 << 20);
        if (block) {
            for (size_t i = 0; i < 1 << 20; i += 4096) block[i] = 1;
            got++;
            continue;
        }
        if (got != told) {
            char text[32];
            struct builder line = {text, 0, sizeof text, false};
            add_number(&line, told = got);
            say("has ", (struct slice){text, line.length});
        }
        pause_ns(5 * MS);
    }
}

static uint64_t deeper(volatile uint64_t *depth) {
    volatile char frame[1024];
    frame[0] = 1;
    return ++*depth ? deeper(depth) + (uint64_t)frame[0] : 0;
}

/* Runs out of stack, which traps. */
static bool mode_recurse(void) {
    volatile uint64_t depth = 0;
    return deeper(&depth) == 0;
}

/* --- output and input --- */

static void lines(void (*out)(struct slice)) {
    uint64_t count = number(2, 1);
    for (uint64_t i = 0; i < count; i++) {
        char text[64];
        struct builder line = {text, 0, sizeof text, false};
        add_text(&line, "line ");
        add_number(&line, i);
        add_text(&line, "\n");
        out((struct slice){text, line.length});
    }
}

static bool mode_print(void) {
    lines(print);
    return true;
}

static bool mode_stderr(void) {
    lines(print_error);
    return true;
}

static bool mode_args(void) {
    for (size_t i = 0; i < argument_count(); i++) say("", argument(i));
    return true;
}

static bool mode_env(void) {
    struct slice name, value;
    for (size_t i = 0; environment_at(i, &name, &value); i++) {
        print(name);
        say("=", value);
    }
    return true;
}

static bool mode_read(void) {
    static char text[65536];
    size_t length;
    if (!report("read", file_read_whole(argument(2), text, sizeof text, &length), file_error_name)) return false;
    print((struct slice){text, length});
    return true;
}

/* write PATH TEXT: makes or truncates the file. */
static bool mode_write(void) {
    handle file;
    int error = file_open(argument(2), FILE_WRITE | FILE_CREATE | FILE_TRUNCATE, &file);
    if (error == FILE_OK) error = file_write(file, 0, argument(3).at, argument(3).length);
    if (error == FILE_OK) error = file_sync(file);
    return report("write", error, file_error_name);
}

/* fill PATH MIB: as much of it as the volume takes. */
static bool mode_fill(void) {
    static char block[1 << 16];
    handle file;
    int error = file_open(argument(2), FILE_WRITE | FILE_CREATE | FILE_TRUNCATE, &file);
    uint64_t end = number(3, 1) << 20;
    for (uint64_t at = 0; at < end && error == FILE_OK; at += sizeof block)
        error = file_write(file, at, block, sizeof block);
    return report("fill", error, file_error_name);
}

static bool mode_list(void) {
    static char name_text[MAX_NAME * 4];
    handle directory, entries;
    struct slice name = {NULL, 0};
    int error = file_open(argument(2), FILE_READ | FILE_DIRECTORY, &directory);
    if (error == FILE_OK) error = directory_open(directory, &entries);
    if (!report("list", error, file_error_name)) return false;
    while ((error = directory_next(entries, name_text, sizeof name_text, &name)) == FILE_OK && name.at) say("", name);
    return error == FILE_OK;
}

/* --- network: serving --- */

static handle listener_at(size_t index) {
    struct slice ip = argument(index + 1).at ? argument(index + 1) : SLICE("0.0.0.0");
    struct address address = address_of(ip, number(index, 8080));
    handle listener;
    int error = tcp_listen(&address, BACKLOG, &listener);
    if (!report("listen", error, net_error_name)) fail("cannot listen: ", net_error_name(error));
    return listener;
}

static void send_all(const struct stream *stream, struct slice text) {
    size_t written;
    while (text.length && tcp_write(stream, text.at, text.length, &written) == NET_OK) {
        text.at += written;
        text.length -= written;
        if (written) continue;
        handle pollable = wasi_subscribe_output(stream->output);
        wasi_block(pollable);
        wasi_drop_pollable(pollable);
    }
    while (!tcp_flushed(stream)) {}
}

/* False when the other side has ended or says nothing for too long. */
static bool receive(const struct stream *stream, char *place, size_t room, size_t *length) {
    handle pollable = wasi_subscribe_input(stream->input);
    bool ready = wait_ready(pollable, PATIENCE_NS);
    wasi_drop_pollable(pollable);
    return ready && tcp_read(stream, place, room, length) == NET_OK;
}

/* Takes a connection, if one waits, and sends the whole response `delay_ns` after something has arrived. */
static void answer_one(handle listener, struct slice response, uint64_t delay_ns) {
    static char request[MAX_REQUEST];
    struct stream stream;
    size_t length = 0;
    if (tcp_accept(listener, &stream) != NET_OK) return;
    if (receive(&stream, request, sizeof request, &length) && length) {
        if (delay_ns) pause_ns(delay_ns);
        send_all(&stream, response);
    }
    tcp_finish_sending(&stream);
    while (receive(&stream, request, sizeof request, &length)) {}
    tcp_close(&stream);
}

static bool serve_each(handle listener, struct slice response, uint64_t delay_ns) {
    handle waiting = wasi_subscribe_tcp(listener);
    for (;;) {
        wasi_block(waiting);
        answer_one(listener, response, delay_ns);
    }
}

#define RESPONSE(status) "HTTP/1.1 " status "\r\nConnection: close\r\nContent-Length: 6\r\n\r\nprobe\n"

static bool mode_listen(void) {
    return serve_each(listener_at(2), SLICE(RESPONSE("200 OK")), 0);
}

/* listen-both PORT ADDRESS PORT ADDRESS */
static bool mode_listen_both(void) {
    handle listeners[2] = {listener_at(2), listener_at(4)};
    handle waiting[2] = {wasi_subscribe_tcp(listeners[0]), wasi_subscribe_tcp(listeners[1])};
    for (;;) {
        uint32_t ready[2], answer[2];
        land_in(ready, sizeof ready);
        wasi_poll(waiting, 2, answer);
        land_anywhere();
        for (uint32_t i = 0; i < answer[1]; i++) answer_one(listeners[ready[i]], SLICE(RESPONSE("200 OK")), 0);
    }
}

static bool mode_http500(void) {
    return serve_each(listener_at(2), SLICE(RESPONSE("500 Internal Server Error")), 0);
}

/* Answers once, and nobody after that. */
static bool mode_http500_once(void) {
    handle listener = listener_at(2), waiting = wasi_subscribe_tcp(listener);
    wasi_block(waiting);
    answer_one(listener, SLICE(RESPONSE("500 Internal Server Error")), 0);
    pause_ns(FOREVER_NS);
    return true;
}

/* listen-late PORT MS: listens after MS. */
static bool mode_listen_late(void) {
    say("waiting", SLICE(""));
    pause_ns(number(3, 500) * MS);
    handle listener;
    struct address address = address_of(SLICE("0.0.0.0"), number(2, 8080));
    if (!report("listen", tcp_listen(&address, BACKLOG, &listener), net_error_name)) return false;
    return serve_each(listener, SLICE(RESPONSE("200 OK")), 0);
}

static bool mode_never_listen(void) {
    say("waiting", SLICE(""));
    pause_ns(FOREVER_NS);
    return true;
}

/* slow-response PORT MS: answers MS after the request. */
static bool mode_slow_response(void) {
    uint64_t delay_ns = number(3, 1000) * MS;
    handle listener;
    struct address address = address_of(SLICE("0.0.0.0"), number(2, 8080));
    if (!report("listen", tcp_listen(&address, BACKLOG, &listener), net_error_name)) return false;
    return serve_each(listener, SLICE(RESPONSE("200 OK")), delay_ns);
}

/* serve-file PORT PATH: answers with what the file holds at that moment, and ends badly when it begins with `bad`. */
static bool mode_serve_file(void) {
    static char request[MAX_REQUEST], text[4096];
    handle listener;
    struct address address = address_of(SLICE("0.0.0.0"), number(2, 8080));
    if (!report("listen", tcp_listen(&address, BACKLOG, &listener), net_error_name)) return false;
    handle waiting = wasi_subscribe_tcp(listener);
    for (;;) {
        struct stream stream;
        size_t length = 0, asked = 0;
        wasi_block(waiting);
        if (tcp_accept(listener, &stream) != NET_OK) continue;
        if (file_read_whole(argument(3), text, sizeof text, &length) != FILE_OK) fail("cannot read: ", argument(3));
        if (length >= 3 && text[0] == 'b' && text[1] == 'a' && text[2] == 'd') fail("bad file: ", argument(3));
        if (receive(&stream, request, sizeof request, &asked) && asked) {
            send_all(&stream, SLICE("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"));
            send_all(&stream, (struct slice){text, length});
        }
        tcp_finish_sending(&stream);
        while (receive(&stream, request, sizeof request, &asked)) {}
        tcp_close(&stream);
    }
}

/* listen-then-exit PORT MS: ends well, as if it had nothing left to do, MS after it has begun to listen. */
static bool mode_listen_then_exit(void) {
    struct address address = address_of(SLICE("0.0.0.0"), number(2, 8080));
    handle listener;
    if (!report("listen", tcp_listen(&address, BACKLOG, &listener), net_error_name)) return false;
    pause_ns(number(3, 500) * MS);
    return true;
}

/* --- network: reaching out --- */

/* connect ADDRESS PORT: then sends `ping` and prints what comes back. */
static bool mode_connect(void) {
    static char text[MAX_REQUEST];
    struct address address = address_of(argument(2), number(3, 80));
    struct stream stream;
    size_t length;
    if (!report("connect", tcp_connect(&address, PATIENCE_NS, &stream), net_error_name)) return false;
    send_all(&stream, SLICE("ping\n"));
    tcp_finish_sending(&stream);
    while (receive(&stream, text, sizeof text, &length))
        if (length) print((struct slice){text, length});
    tcp_close(&stream);
    return true;
}

/* expect ADDRESS PORT TEXT: as connect, and ends well only where what comes back ends in TEXT. */
static bool mode_expect(void) {
    static char text[MAX_REQUEST];
    struct slice wanted = argument(4);
    struct address address = address_of(argument(2), number(3, 80));
    struct stream stream;
    size_t length = 0, piece;
    if (!report("connect", tcp_connect(&address, PATIENCE_NS, &stream), net_error_name)) return false;
    send_all(&stream, SLICE("ping\n"));
    tcp_finish_sending(&stream);
    while (receive(&stream, text + length, sizeof text - length, &piece)) length += piece;
    tcp_close(&stream);
    say("it answers ", (struct slice){text, length});
    if (length < wanted.length) return false;
    return slice_equal((struct slice){text + length - wanted.length, wanted.length}, wanted);
}

struct udp {
    handle socket, input, output;
};

/* A UDP socket, unconnected where there is no `remote`. Answers: result<own, error-code> has the handle or the error at 4, result<_, error-code>
 * the error at 1, result<tuple<own, own>, error-code> handles at 4 and 8. */
static int udp_open(const struct address *local, const struct address *remote, struct udp *udp) {
    uint32_t answer[3];
    uint8_t *bytes = (uint8_t *)answer;
    struct flat_address flat_local = flat(local), none = {0, {0}}, flat_remote = remote ? flat(remote) : none;
    wasi_create_udp(local->is_ipv6, answer);
    if (bytes[0]) return bytes[4];
    udp->socket = (handle)answer[1];
    wasi_udp_start_bind(udp->socket, network(), FLAT(flat_local), answer);
    if (bytes[0]) return bytes[1];
    for (;;) {
        wasi_udp_finish_bind(udp->socket, answer);
        if (!bytes[0]) break;
        if (bytes[1] != NET_WOULD_BLOCK) return bytes[1];
        handle pollable = wasi_subscribe_udp(udp->socket);
        wasi_block(pollable);
        wasi_drop_pollable(pollable);
    }
    wasi_udp_stream(udp->socket, remote != NULL, FLAT(flat_remote), answer);
    if (bytes[0]) return bytes[4];
    udp->input = (handle)answer[1];
    udp->output = (handle)answer[2];
    return NET_OK;
}

/* record incoming-datagram: bytes, then a socket address as a variant with its case at 8 and its fields from 12. */
struct incoming {
    struct slice data;
    uint32_t is_ipv6;
    uint8_t fields[28];
};

/* record outgoing-datagram: bytes, then option<ip-socket-address>: its case at 8, the address's own case at 12. */
struct outgoing {
    struct slice data;
    uint32_t has_remote, is_ipv6;
    uint8_t fields[28];
};

static int udp_send(const struct udp *udp, const struct outgoing *datagram) {
    _Alignas(8) uint8_t answer[16]; /* result<u64, error-code>, both at 8 */
    for (;;) {
        wasi_udp_check_send(udp->output, answer);
        if (answer[0]) return answer[8];
        if (*(uint64_t *)(answer + 8)) break;
        handle pollable = wasi_subscribe_udp_output(udp->output);
        wasi_block(pollable);
        wasi_drop_pollable(pollable);
    }
    wasi_udp_send(udp->output, datagram, 1, answer);
    return answer[0] ? answer[8] : NET_OK;
}

/* One datagram; its bytes lie in `room`. NET_TIMEOUT when none comes. */
static int udp_receive(const struct udp *udp, uint64_t deadline_ns, struct incoming *datagram) {
    static uint8_t room[70000];
    for (;;) {
        uint32_t answer[3]; /* result<list<incoming-datagram>, error-code> */
        handle pollable = wasi_subscribe_udp_input(udp->input);
        bool ready = wait_ready(pollable, deadline_ns);
        wasi_drop_pollable(pollable);
        if (!ready) return NET_TIMEOUT;
        land_in(room, sizeof room);
        wasi_udp_receive(udp->input, 1, answer);
        land_anywhere();
        if (*(uint8_t *)answer) return *(uint8_t *)&answer[1];
        if (!answer[2]) continue;
        memcpy(datagram, (void *)answer[1], sizeof *datagram);
        return NET_OK;
    }
}

/* The fields of a socket address as they lie in memory. */
static void put_address(const struct address *address, uint8_t *fields) {
    memcpy(fields, &address->port, 2);
    for (int i = 0; i < 4 && !address->is_ipv6; i++) fields[2 + i] = (uint8_t)address->part[i];
    if (address->is_ipv6) memcpy(fields + 8, address->part, 16);
}

/* udp-send ADDRESS PORT TEXT: prints the answer, if one comes. */
static bool mode_udp_send(void) {
    struct udp udp;
    struct incoming answer;
    struct address remote = address_of(argument(2), number(3, 53));
    struct address local = address_of(remote.is_ipv6 ? SLICE("::") : SLICE("0.0.0.0"), 0);
    struct outgoing datagram = {argument(4).at ? argument(4) : SLICE("ping"), 1, remote.is_ipv6, {0}};
    put_address(&remote, datagram.fields);
    if (!report("bind", udp_open(&local, NULL, &udp), net_error_name)) return false;
    if (!report("send", udp_send(&udp, &datagram), net_error_name)) return false;
    if (!report("receive", udp_receive(&udp, 1000 * MS, &answer), net_error_name)) return false;
    say("got ", answer.data);
    return true;
}

/* udp-ask ADDRESS PORT: over a connected socket; ends badly where no answer comes. */
static bool mode_udp_ask(void) {
    struct udp udp;
    struct incoming answer;
    struct address remote = address_of(argument(2), number(3, 53));
    struct address local = address_of(remote.is_ipv6 ? SLICE("::") : SLICE("0.0.0.0"), 0);
    struct outgoing datagram = {SLICE("ping"), 0, 0, {0}};
    if (!report("connect", udp_open(&local, &remote, &udp), net_error_name)) return false;
    if (!report("send", udp_send(&udp, &datagram), net_error_name)) return false;
    return report("receive", udp_receive(&udp, 300 * MS, &answer), net_error_name);
}

/* udp-echo PORT [ADDRESS [mute]]: sends every datagram back, or none, for ever. */
static bool mode_udp_echo(void) {
    struct udp udp;
    struct address local = address_of(argument(3).at ? argument(3) : SLICE("0.0.0.0"), number(2, 8080));
    if (!report("bind", udp_open(&local, NULL, &udp), net_error_name)) return false;
    for (;;) {
        struct incoming datagram;
        if (udp_receive(&udp, FOREVER_NS, &datagram) != NET_OK || argument(4).at) continue;
        struct outgoing answer = {datagram.data, 1, datagram.is_ipv6 & 255, {0}};
        memcpy(answer.fields, datagram.fields, sizeof answer.fields);
        udp_send(&udp, &answer);
    }
}

/* result<option<ip-address>, error-code>: the error or the option's case at 2, the address's case at 4, itself at 6. */
static bool mode_resolve(void) {
    uint32_t begun[2];
    _Alignas(4) uint8_t answer[24];
    wasi_resolve(network(), argument(2).at, argument(2).length, begun);
    if (*(uint8_t *)begun) return report("resolve", *(uint8_t *)&begun[1], net_error_name);
    for (;;) {
        wasi_resolve_next((handle)begun[1], answer);
        if (answer[0] && answer[2] == NET_WOULD_BLOCK) {
            handle pollable = wasi_subscribe_resolve((handle)begun[1]);
            wasi_block(pollable);
            wasi_drop_pollable(pollable);
            continue;
        }
        return report("resolve", answer[0] ? answer[2] : NET_OK, net_error_name);
    }
}

/* --- the table --- */

static const struct {
    const char *name;
    bool (*run)(void);
} modes[] = {
    {"exit", mode_exit},                         /* N: ends well for 0, badly for anything else */
    {"trap", mode_trap},
    {"spin", mode_spin},
    {"sleep", mode_sleep},                       /* MS */
    {"alloc", mode_alloc},                       /* MIB [hold] */
    {"reach", mode_reach},
    {"recurse", mode_recurse},
    {"print", mode_print},                       /* LINES */
    {"stderr", mode_stderr},                     /* LINES */
    {"args", mode_args},
    {"env", mode_env},
    {"read", mode_read},                         /* PATH */
    {"write", mode_write},                       /* PATH TEXT */
    {"fill", mode_fill},                         /* PATH MIB */
    {"list", mode_list},                         /* PATH */
    {"listen", mode_listen},                     /* PORT [ADDRESS] */
    {"listen-both", mode_listen_both},           /* PORT ADDRESS PORT ADDRESS */
    {"listen-late", mode_listen_late},           /* PORT MS */
    {"listen-then-exit", mode_listen_then_exit}, /* PORT MS */
    {"never-listen", mode_never_listen},
    {"serve-file", mode_serve_file},             /* PORT PATH */
    {"http500", mode_http500},                   /* PORT [ADDRESS] */
    {"http500-once", mode_http500_once},         /* PORT [ADDRESS] */
    {"slow-response", mode_slow_response},       /* PORT MS */
    {"connect", mode_connect},                   /* ADDRESS PORT */
    {"expect", mode_expect},                     /* ADDRESS PORT TEXT */
    {"udp-ask", mode_udp_ask},                   /* ADDRESS PORT */
    {"udp-send", mode_udp_send},                 /* ADDRESS PORT TEXT */
    {"udp-echo", mode_udp_echo},                 /* PORT [ADDRESS [mute]] */
    {"resolve", mode_resolve},                   /* NAME */
};

bool run(void) {
    struct slice wanted = argument(1);
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (slice_equal(slice_of(modes[i].name), wanted)) return modes[i].run();
    fail("unknown mode: ", wanted);
}
