#include "net.h"

struct slice net_error_name(int error) {
    static const char *const names[] = {
        "unknown", "access-denied", "not-supported", "invalid-argument", "out-of-memory", "timeout",
        "concurrency-conflict", "not-in-progress", "would-block", "invalid-state", "new-socket-limit",
        "address-not-bindable", "address-in-use", "remote-unreachable", "connection-refused", "connection-reset",
        "connection-aborted", "datagram-too-large", "name-unresolvable", "temporary-resolver-failure",
        "permanent-resolver-failure"};
    if (error == NET_CLOSED) return SLICE("closed");
    if (error < 0 || (size_t)error >= sizeof names / sizeof *names) return SLICE("unknown");
    return slice_of(names[error]);
}

/* --- addresses --- */

static bool parse_ipv4(struct slice text, uint16_t *bytes) {
    for (int i = 0; i < 4; i++) {
        uint64_t number;
        bool last = i == 3;
        struct slice part = last ? text : slice_cut(&text, '.');
        if (part.length > 3 || !parse_number(part, 255, &number)) return false;
        bytes[i] = (uint16_t)number;
    }
    return true;
}

static bool parse_word(struct slice text, uint16_t *word) {
    unsigned value = 0;
    if (!text.length || text.length > 4) return false;
    for (size_t i = 0; i < text.length; i++) {
        char c = text.at[i];
        unsigned digit;
        if (c >= '0' && c <= '9') digit = (unsigned)(c - '0');
        else if (c >= 'a' && c <= 'f') digit = (unsigned)(c - 'a' + 10);
        else if (c >= 'A' && c <= 'F') digit = (unsigned)(c - 'A' + 10);
        else return false;
        value = value * 16 + digit;
    }
    *word = (uint16_t)value;
    return true;
}

/* RFC 4291, section 2.2, forms 1 and 2 (no embedded IPv4). */
static bool parse_ipv6(struct slice text, uint16_t *words) {
    uint16_t head[8], tail[8];
    int heads = 0, tails = 0;
    bool gap = false;
    if (text.length && text.at[0] == ':') {
        if (text.length < 2 || text.at[1] != ':') return false;
        text.at++, text.length--;
    }
    while (text.length) {
        if (text.at[0] == ':') {
            if (gap) return false;
            gap = true;
            text.at++, text.length--;
            continue;
        }
        bool ends = true;
        for (size_t i = 0; i < text.length; i++) ends &= text.at[i] != ':';
        struct slice part = slice_cut(&text, ':');
        if (heads + tails == 8 || (!ends && !text.length)) return false;
        if (!parse_word(part, gap ? &tail[tails++] : &head[heads++])) return false;
    }
    if (gap ? heads + tails > 7 : heads != 8) return false;
    for (int i = 0; i < 8; i++) words[i] = i < heads ? head[i] : i >= 8 - tails ? tail[i - (8 - tails)] : 0;
    return true;
}

bool parse_ip(struct slice text, struct address *address) {
    if (text.length >= 2 && text.at[0] == '[' && text.at[text.length - 1] == ']') text.at++, text.length -= 2;
    address->is_ipv6 = false;
    for (size_t i = 0; i < text.length; i++) address->is_ipv6 |= text.at[i] == ':';
    return address->is_ipv6 ? parse_ipv6(text, address->part) : parse_ipv4(text, address->part);
}

bool parse_endpoint(struct slice text, struct address *address) {
    size_t colon = text.length;
    while (colon && text.at[colon - 1] != ':') colon--;
    uint64_t port;
    if (!colon || !parse_number((struct slice){text.at + colon, text.length - colon}, 65535, &port)) return false;
    address->port = (uint16_t)port;
    struct slice ip = {text.at, colon - 1};
    return parse_ip(ip, address) && (!address->is_ipv6 || ip.at[0] == '[');
}

void add_address(struct builder *to, const struct address *address) {
    static const char digits[] = "0123456789abcdef";
    if (address->is_ipv6) add_text(to, "[");
    for (int i = 0; i < (address->is_ipv6 ? 8 : 4); i++) {
        if (i) add_text(to, address->is_ipv6 ? ":" : ".");
        uint16_t part = address->part[i];
        if (!address->is_ipv6) {
            add_number(to, part);
            continue;
        }
        int shift = 12;
        while (shift && !(part >> shift)) shift -= 4;
        for (; shift >= 0; shift -= 4) add(to, (struct slice){digits + (part >> shift & 15), 1});
    }
    if (address->is_ipv6) add_text(to, "]");
    add_text(to, ":");
    add_number(to, address->port);
}

/* IPv4: port, four bytes. IPv6: port, flow information, eight words, scope. */
struct flat_address flat(const struct address *address) {
    struct flat_address flat = {address->is_ipv6, {address->port}};
    int first = address->is_ipv6 ? 2 : 1, parts = address->is_ipv6 ? 8 : 4;
    for (int i = 0; i < parts; i++) flat.part[first + i] = address->part[i];
    return flat;
}

/* --- waiting --- */

handle network(void) {
    static handle all;
    if (!all) all = wasi_network();
    return all;
}

bool wait_ready(handle pollable, uint64_t deadline_ns) {
    uint32_t ready[2], answer[2];
    handle both[2] = {pollable, wasi_subscribe_duration_ns(deadline_ns)};
    land_in(ready, sizeof ready);
    wasi_poll(both, 2, answer);
    land_anywhere();
    wasi_drop_pollable(both[1]);
    return ready[0] == 0;
}

/* --- TCP. An answer result<_, error-code> has its case at 0 and the error at 1. --- */

static int outcome(const uint8_t *answer, size_t at) {
    return answer[0] ? answer[at] : NET_OK;
}

/* Repeats a `finish` call until it has finished. */
static int finish(handle socket, void (*call)(handle, void *)) {
    uint8_t answer[2];
    for (;;) {
        call(socket, answer);
        int error = outcome(answer, 1);
        if (error != NET_WOULD_BLOCK) return error;
        handle pollable = wasi_subscribe_tcp(socket);
        wasi_block(pollable);
        wasi_drop_pollable(pollable);
    }
}

static int create(const struct address *address, handle *socket) {
    uint32_t answer[2];
    wasi_create_tcp(address->is_ipv6, answer);
    *socket = (handle)answer[1];
    return outcome((uint8_t *)answer, 4);
}

static int bind_and_listen(handle socket, const struct address *address, unsigned backlog) {
    uint8_t answer[2];
    struct flat_address local = flat(address);
    wasi_tcp_start_bind(socket, network(), FLAT(local), answer);
    int error = outcome(answer, 1);
    if (error == NET_OK) error = finish(socket, wasi_tcp_finish_bind);
    if (error != NET_OK) return error;
    wasi_tcp_set_backlog(socket, backlog, answer); /* a wish; the host's own limit holds */
    wasi_tcp_start_listen(socket, answer);
    error = outcome(answer, 1);
    return error == NET_OK ? finish(socket, wasi_tcp_finish_listen) : error;
}

int tcp_listen(const struct address *address, unsigned backlog, handle *listener) {
    int error = create(address, listener);
    if (error != NET_OK) return error;
    error = bind_and_listen(*listener, address, backlog);
    if (error != NET_OK) wasi_drop_tcp(*listener);
    return error;
}

int tcp_accept(handle listener, struct stream *stream) {
    uint32_t answer[4]; /* result<tuple<socket, input, output>, error-code>: handles, or the error, from 4 on */
    wasi_tcp_accept(listener, answer);
    *stream = (struct stream){(handle)answer[1], (handle)answer[2], (handle)answer[3]};
    return outcome((uint8_t *)answer, 4);
}

static int finish_connect(handle socket, uint64_t deadline_ns, struct stream *stream) {
    uint32_t answer[3]; /* result<tuple<input, output>, error-code> */
    uint64_t end_ns = wasi_now_ns() + deadline_ns;
    for (;;) {
        wasi_tcp_finish_connect(socket, answer);
        int error = outcome((uint8_t *)answer, 4);
        *stream = (struct stream){socket, (handle)answer[1], (handle)answer[2]};
        if (error != NET_WOULD_BLOCK) return error;
        uint64_t now_ns = wasi_now_ns();
        handle pollable = wasi_subscribe_tcp(socket);
        bool ready = now_ns < end_ns && wait_ready(pollable, end_ns - now_ns);
        wasi_drop_pollable(pollable);
        if (!ready) return NET_TIMEOUT;
    }
}

int tcp_connect(const struct address *address, uint64_t deadline_ns, struct stream *stream) {
    uint8_t answer[2];
    handle socket;
    int error = create(address, &socket);
    if (error != NET_OK) return error;
    struct flat_address remote = flat(address);
    wasi_tcp_start_connect(socket, network(), FLAT(remote), answer);
    error = outcome(answer, 1);
    if (error == NET_OK) error = finish_connect(socket, deadline_ns, stream);
    if (error != NET_OK) wasi_drop_tcp(socket);
    return error;
}

/* A stream-error: its case at `at` (0: failed, with an error handle after it; 1: closed). */
static int stream_outcome(const uint32_t *answer, size_t at) {
    if (!*(const uint8_t *)answer) return NET_OK;
    if (!*(const uint8_t *)&answer[at]) wasi_drop_error((handle)answer[at + 1]);
    return NET_CLOSED;
}

int tcp_read(const struct stream *stream, void *place, size_t room, size_t *length) {
    uint32_t answer[3]; /* result<list<u8>, stream-error>: address at 4, length at 8 */
    land_in(place, room);
    wasi_stream_read(stream->input, room, answer);
    land_anywhere();
    int error = stream_outcome(answer, 1);
    *length = error == NET_OK ? answer[2] : 0;
    return error;
}

/* result<u64, stream-error>: either at 8. */
static int check_write(const struct stream *stream, uint64_t *room) {
    _Alignas(8) uint32_t answer[4];
    wasi_check_write(stream->output, answer);
    int error = stream_outcome(answer, 2);
    *room = error == NET_OK ? answer[2] | (uint64_t)answer[3] << 32 : 0;
    return error;
}

int tcp_write(const struct stream *stream, const void *bytes, size_t length, size_t *written) {
    uint64_t room;
    *written = 0;
    int error = check_write(stream, &room);
    if (error != NET_OK || !room) return error;
    uint32_t answer[3]; /* result<_, stream-error> */
    size_t part = room < length ? (size_t)room : length;
    wasi_stream_write(stream->output, bytes, part, answer);
    error = stream_outcome(answer, 1);
    if (error == NET_OK) *written = part;
    return error;
}

bool tcp_flushed(const struct stream *stream) {
    uint64_t room;
    return check_write(stream, &room) != NET_OK || room > 0;
}

void tcp_finish_sending(const struct stream *stream) {
    uint8_t answer[2];
    wasi_tcp_shutdown(stream->socket, 1, answer);
}

void tcp_close(struct stream *stream) {
    wasi_drop_input(stream->input);
    wasi_drop_output(stream->output);
    wasi_drop_tcp(stream->socket);
    *stream = (struct stream){0, 0, 0};
}
