#include "serve.h"

#include "program.h"

#define BACKLOG 4096
#define ACCEPTS_PER_TURN 256
#define TICK_NS 1000000000ull

uint64_t connections_open, connections_ever;

static struct connection *connections[MAX_CONNECTIONS];
static struct connection *unused;
static uint64_t now_ns;

/* --- one connection --- */

bool has_room(struct connection *connection, size_t length) {
    bool room = OUTPUT_BYTES - connection->output_length >= length;
    connection->starved |= !room;
    return room;
}

void respond(struct connection *connection, struct slice text) {
    if (text.length > OUTPUT_BYTES - connection->output_length) __builtin_trap();
    memcpy(connection->output + connection->output_length, text.at, text.length);
    connection->output_length += text.length;
}

void finish_connection(struct connection *connection) {
    if (connection->phase == OPEN) connection->phase = FINISHING;
}

static struct connection *open_connection(void) {
    struct connection *connection = unused;
    if (connection) unused = connection->next_free;
    else connection = take(sizeof *connection);
    if (connection) memset(connection, 0, offsetof(struct connection, input));
    return connection;
}

static void give_back(struct connection *connection) {
    connection->next_free = unused;
    unused = connection;
}

static void close_connection(struct connection *connection) {
    if (connection->readable) wasi_drop_pollable(connection->readable);
    if (connection->writable) wasi_drop_pollable(connection->writable);
    tcp_close(&connection->stream);
    give_back(connection);
    connections_open--;
}

static bool output_waits(const struct connection *connection) {
    return connection->output_sent < connection->output_length;
}

/* What the loop waits for: room to write while something is to be written, otherwise bytes to read. */
static handle interest(struct connection *connection) {
    bool write = output_waits(connection) || connection->phase == FINISHING || connection->phase == DEAD ||
                 (connection->phase == OPEN && connection->input_ended);
    if (write && !connection->writable) connection->writable = wasi_subscribe_output(connection->stream.output);
    if (!write && !connection->readable) connection->readable = wasi_subscribe_input(connection->stream.input);
    return write ? connection->writable : connection->readable;
}

static void throw_away(struct connection *connection, size_t length) {
    connection->input_length -= length;
    memmove(connection->input, connection->input + length, connection->input_length);
}

static void skip_unwanted(struct connection *connection) {
    uint64_t length = connection->skip < connection->input_length ? connection->skip : connection->input_length;
    if (length) throw_away(connection, (size_t)length);
    connection->skip -= length;
}

static void receive(struct connection *connection) {
    size_t length;
    bool wanted = connection->phase == OPEN;
    char *place = wanted ? connection->input + connection->input_length : connection->input;
    size_t room = wanted ? INPUT_BYTES - connection->input_length : INPUT_BYTES;
    if (connection->input_ended || connection->phase == DEAD || !room) return;
    if (tcp_read(&connection->stream, place, room, &length) != NET_OK) connection->input_ended = true;
    if (!wanted) return;
    /* The time runs from a request's first byte: whoever sends it byte by byte gains nothing. */
    if (length && (!connection->input_length || connection->skip)) connection->deadline_ns = now_ns + IDLE_NS;
    connection->input_length += length;
}

static void answer(struct connection *connection, const struct protocol *protocol) {
    connection->starved = false;
    while (connection->phase == OPEN && connection->input_length && !connection->starved) {
        skip_unwanted(connection);
        struct slice input = {connection->input, connection->input_length};
        size_t done = input.length ? protocol->answer(connection, input) : 0;
        if (done) throw_away(connection, done);
        else if (!connection->skip) break;
    }
    bool stuck = connection->phase == OPEN && !connection->starved && connection->input_length == INPUT_BYTES;
    if (stuck) finish_connection(connection);
}

static void flush(struct connection *connection) {
    while (output_waits(connection)) {
        size_t written, left = connection->output_length - connection->output_sent;
        const char *at = connection->output + connection->output_sent;
        if (tcp_write(&connection->stream, at, left, &written) != NET_OK) {
            connection->phase = DEAD;
            return;
        }
        if (!written) return;
        connection->output_sent += written;
        connection->deadline_ns = now_ns + IDLE_NS;
    }
    connection->output_sent = connection->output_length = 0;
}

/* Moves a connection on that has nothing left to send. */
static void settle(struct connection *connection) {
    if (output_waits(connection)) return;
    bool ending = connection->phase == FINISHING || (connection->phase == OPEN && connection->input_ended);
    if (ending && !connection->starved && tcp_flushed(&connection->stream)) {
        tcp_finish_sending(&connection->stream);
        connection->phase = LINGERING;
        connection->deadline_ns = now_ns + LINGER_NS;
    }
    if (connection->phase == LINGERING && connection->input_ended) connection->phase = DEAD;
}

static void expire(struct connection *connection) {
    if (now_ns < connection->deadline_ns) return;
    bool quiet = connection->phase == OPEN && !output_waits(connection);
    connection->phase = quiet ? FINISHING : DEAD;
    connection->output_sent = connection->output_length = 0;
    connection->deadline_ns = now_ns + LINGER_NS;
}

/* --- all connections --- */

enum accepted { TAKEN, NOBODY_WAITS, NO_ROOM };

static enum accepted accept_one(handle listener) {
    struct connection *connection = connections_open < MAX_CONNECTIONS ? open_connection() : NULL;
    if (!connection) return NO_ROOM;
    int error = tcp_accept(listener, &connection->stream);
    if (error == NET_OK) {
        connection->deadline_ns = now_ns + IDLE_NS;
        connections[connections_open++] = connection;
        connections_ever++;
        return TAKEN;
    }
    give_back(connection);
    if (error == NET_WOULD_BLOCK) return NOBODY_WAITS;
    bool its_own_fault = error == NET_CONNECTION_RESET || error == NET_CONNECTION_ABORTED;
    return its_own_fault ? TAKEN : NO_ROOM;
}

/* False where somebody waits that cannot be taken: no memory or no descriptor is left. */
static bool accept_waiting(handle listener) {
    enum accepted last = TAKEN;
    for (int i = 0; i < ACCEPTS_PER_TURN && last == TAKEN; i++) last = accept_one(listener);
    return last != NO_ROOM;
}

/* One turn for the `count` connections that something happened to: read, then answer and write as long as a connection
 * that starved got room again. Its input is bounded, so this ends. */
static void turn(struct connection **touched, size_t count, const struct protocol *protocol) {
    bool again = true;
    for (size_t i = 0; i < count; i++)
        if (touched[i]->readable && !output_waits(touched[i])) receive(touched[i]);
    while (again) {
        again = false;
        for (size_t i = 0; i < count; i++)
            if (!output_waits(touched[i])) answer(touched[i], protocol);
        if (protocol->commit) protocol->commit();
        for (size_t i = 0; i < count; i++) {
            flush(touched[i]);
            again |= touched[i]->phase == OPEN && touched[i]->starved && !output_waits(touched[i]);
        }
    }
    for (size_t i = 0; i < count; i++) settle(touched[i]);
}

/* Closes the dead, except those whose last bytes the host still holds: there, dropping the stream would wait for the
 * other side, and with it the whole program. They wait in the list until it has taken them or is gone. */
static void bury_the_dead(void) {
    size_t kept = 0, all = (size_t)connections_open;
    for (size_t i = 0; i < all; i++) {
        if (connections[i]->phase == DEAD && tcp_flushed(&connections[i]->stream)) close_connection(connections[i]);
        else connections[kept++] = connections[i];
    }
}

static void loop(handle listener, const struct protocol *protocol) {
    static handle pollables[MAX_CONNECTIONS + 2];
    static uint32_t ready[MAX_CONNECTIONS + 2];
    static struct connection *touched[MAX_CONNECTIONS];
    handle acceptable = wasi_subscribe_tcp(listener), tick = 0;
    bool accepting = true;
    for (;;) {
        uint32_t answer[2];
        size_t fixed = 0, count = 0, open = (size_t)connections_open;
        /* Slot 0: the clock, as long as there is somebody to time. Slot 1: the listener, unless it rests. */
        if (!tick) tick = wasi_subscribe_duration_ns(TICK_NS);
        if (open || !accepting) pollables[fixed++] = tick;
        size_t first_listener = fixed;
        if (accepting) pollables[fixed++] = acceptable;
        for (size_t i = 0; i < open; i++) pollables[fixed + i] = interest(connections[i]);
        land_in(ready, sizeof ready);
        wasi_poll(pollables, fixed + open, answer);
        land_anywhere();
        now_ns = wasi_now_ns();

        bool arrived = false, ticked = false;
        for (size_t i = 0; i < answer[1]; i++) {
            size_t slot = ready[i];
            if (slot >= fixed) touched[count++] = connections[slot - fixed];
            else if (slot == first_listener && accepting) arrived = true;
            else ticked = true;
        }
        turn(touched, count, protocol);
        if (ticked) {
            wasi_drop_pollable(tick);
            tick = 0;
            accepting = true;
            for (size_t i = 0; i < open; i++) {
                expire(connections[i]);
                settle(connections[i]);
            }
        }
        if (arrived) accepting = accept_waiting(listener); /* if not, it rests until the next tick */
        if (count || ticked) bury_the_dead();
    }
}

struct address listen_address(const char *variable, uint16_t port) {
    struct address address = {false, port, {0}};
    struct slice given = environment(variable), ip = option("--address", (struct slice){NULL, 0});
    if (given.at && !parse_endpoint(given, &address)) fail("the environment names no address:port: ", given);
    if (ip.at && !parse_ip(ip, &address)) fail("--address is not an IP address: ", ip);
    address.port = (uint16_t)option_number("--port", address.port, 65535);
    return address;
}

int serve(const struct address *address, const struct protocol *protocol, void (*listening)(void)) {
    handle listener;
    int error = tcp_listen(address, BACKLOG, &listener);
    if (error != NET_OK) return error;
    listening();
    loop(listener, protocol);
    return NET_OK;
}
