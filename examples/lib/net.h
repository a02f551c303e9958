/* Sockets that never block, over wasi:sockets. */
#ifndef LOWCLOUD_NET_H
#define LOWCLOUD_NET_H

#include "text.h"
#include "wasi.h"

/* Functions return NET_OK, NET_CLOSED (the other side is gone) or the error's number in wasi:sockets' `error-code`. */
enum {
    NET_OK = -1,
    NET_CLOSED = -2,
    NET_ACCESS_DENIED = 1,
    NET_TIMEOUT = 5,
    NET_WOULD_BLOCK = 8,
    NET_CONNECTION_RESET = 15,
    NET_CONNECTION_ABORTED = 16,
};
struct slice net_error_name(int error);

struct address {
    bool is_ipv6;
    uint16_t port;
    uint16_t part[8]; /* IPv4: four bytes; IPv6: eight words */
};

/* `1.2.3.4` or `::1`, with or without brackets. */
bool parse_ip(struct slice text, struct address *address);
/* `1.2.3.4:80` or `[::1]:80`. */
bool parse_endpoint(struct slice text, struct address *address);
void add_address(struct builder *to, const struct address *address);
struct flat_address flat(const struct address *address);

/* A connection's three handles. */
struct stream {
    handle socket, input, output;
};

/* The network handle of this program. */
handle network(void);

int tcp_listen(const struct address *address, unsigned backlog, handle *listener);
int tcp_accept(handle listener, struct stream *stream);
/* Connects and waits for the outcome, for at most `deadline_ns` from now (error `timeout`). */
int tcp_connect(const struct address *address, uint64_t deadline_ns, struct stream *stream);
/* What has arrived, up to `room` bytes; 0 bytes where nothing has. */
int tcp_read(const struct stream *stream, void *place, size_t room, size_t *length);
/* What can be sent without waiting; `*length` is 0 while the host still holds earlier bytes. */
int tcp_write(const struct stream *stream, const void *bytes, size_t length, size_t *written);
/* True when everything that was written is with the kernel, or can never be. */
bool tcp_flushed(const struct stream *stream);
/* No more bytes will be sent; the other side reads the end of the stream after all that was sent before. */
void tcp_finish_sending(const struct stream *stream);
/* Only when `tcp_flushed`: with bytes still in the host's hands, wasmtime (50.0.1) waits here until the other side has
 * taken them. */
void tcp_close(struct stream *stream);

/* Waits until one of the pollables is ready or the time is over; true when it is not over. */
bool wait_ready(handle pollable, uint64_t deadline_ns);

#endif
