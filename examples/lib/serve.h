/* A TCP server in one loop: many connections, bounded buffers, nothing that blocks.
 *
 * The loop waits in wasi:io/poll, reads what has arrived into a connection's own buffer, lets the protocol turn whole
 * requests into responses, and writes. The rules that keep every response whole:
 * - a connection whose responses do not go out is not read from (the kernel's window then holds the sender back);
 * - a connection is closed by ending our direction first, then reading until the other side ends its own, because a
 *   socket that is closed with unread bytes is reset, and a reset destroys responses that are still under way;
 * - one that is idle for `IDLE_NS`, or takes longer than that to send one request, is closed the same way;
 * - one that does not take its responses for so long is given up, and closed as soon as it takes a byte or is gone.
 */
#ifndef LOWCLOUD_SERVE_H
#define LOWCLOUD_SERVE_H

#include "net.h"

enum {
    INPUT_BYTES = 8192,  /* the longest request */
    OUTPUT_BYTES = 6144, /* responses that may wait for one connection */
    MAX_CONNECTIONS = 8192,
};
#ifndef IDLE_NS
#define IDLE_NS (75ull * 1000000000)
#endif
#define LINGER_NS (5ull * 1000000000)

enum phase {
    OPEN,      /* requests are read and answered */
    FINISHING, /* the last response is on its way; nothing more is answered */
    LINGERING, /* our direction has ended; what still arrives is thrown away */
    DEAD,      /* to be closed as soon as that cannot block */
};

struct connection {
    struct stream stream;
    handle readable, writable; /* pollables of the two streams, made when needed */
    enum phase phase;
    bool input_ended; /* the other side will send no more */
    bool starved;     /* the protocol stopped for want of room in the output */
    uint64_t deadline_ns;
    size_t input_length, output_length, output_sent;
    uint64_t skip;     /* bytes of input that nobody wants, such as a request's body: the protocol may set it */
    uint32_t state[2]; /* the protocol's own, zero at first */
    struct connection *next_free;
    char input[INPUT_BYTES];
    char output[OUTPUT_BYTES];
};

struct protocol {
    /* Answer the whole requests at the start of `input`: returns how many bytes are done with. It is called again when
     * more has arrived, and, if it has set `starved`, when the output has gone out. */
    size_t (*answer)(struct connection *connection, struct slice input);
    /* Called before any of a turn's responses is sent, for what must be durable by then; may be NULL. */
    void (*commit)(void);
};

/* Room for a response of `length` bytes? If not, notes that the connection starves. */
bool has_room(struct connection *connection, size_t length);
/* Append to the output; only after `has_room`. */
void respond(struct connection *connection, struct slice text);
/* After what is in the output, end the connection. */
void finish_connection(struct connection *connection);

/* How many connections are open, and have ever been. */
extern uint64_t connections_open, connections_ever;

/* Where to listen: the environment's `variable` (`address:port`) or 0.0.0.0 and `port`; then what the arguments
 * `--address` and `--port` say. Ends the program where one of them makes no sense. */
struct address listen_address(const char *variable, uint16_t port);

/* Serves for ever. Returns only where listening fails, with the error (see net.h). `listening` is called once. */
int serve(const struct address *address, const struct protocol *protocol, void (*listening)(void));

#endif
