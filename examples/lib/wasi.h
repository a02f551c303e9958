/* The functions of WASI 0.2 that the examples use, as a core module sees them.
 *
 * Each declaration is the canonical ABI's lowering of the function of the same name in `examples/wit/`: a resource is
 * an `i32` handle (0 is none), a list is an address and a length, and a result that is more than one number is written to
 * the address `answer`. Source: the Component Model's "Canonical ABI", section "Flattening" and "Loading"; what lies
 * where in an answer is noted at its use.
 *
 * A handle that was made from another one (a pollable of a stream, a stream of a socket) is to be dropped first.
 */
#ifndef LOWCLOUD_WASI_H
#define LOWCLOUD_WASI_H

#include "memory.h"

typedef int32_t handle;

#define WASI(interface, function) __attribute__((import_module("wasi:" interface "@0.2.0"), import_name(function)))

/* --- wasi:cli --- */
WASI("cli/environment", "get-environment") void wasi_get_environment(void *answer);
WASI("cli/environment", "get-arguments") void wasi_get_arguments(void *answer);
WASI("cli/exit", "exit") _Noreturn void wasi_exit(int32_t failed);
WASI("cli/stdout", "get-stdout") handle wasi_get_stdout(void);
WASI("cli/stderr", "get-stderr") handle wasi_get_stderr(void);

/* --- wasi:clocks --- */
WASI("clocks/monotonic-clock", "now") uint64_t wasi_now_ns(void);
WASI("clocks/monotonic-clock", "subscribe-duration") handle wasi_subscribe_duration_ns(uint64_t duration);

/* --- wasi:io --- */
WASI("io/error", "[resource-drop]error") void wasi_drop_error(handle error);
WASI("io/poll", "poll") void wasi_poll(const handle *pollables, size_t count, void *answer);
WASI("io/poll", "[method]pollable.block") void wasi_block(handle pollable);
WASI("io/poll", "[resource-drop]pollable") void wasi_drop_pollable(handle pollable);
WASI("io/streams", "[method]input-stream.read") void wasi_stream_read(handle input, uint64_t most, void *answer);
WASI("io/streams", "[method]input-stream.subscribe") handle wasi_subscribe_input(handle input);
WASI("io/streams", "[resource-drop]input-stream") void wasi_drop_input(handle input);
WASI("io/streams", "[method]output-stream.check-write") void wasi_check_write(handle output, void *answer);
WASI("io/streams", "[method]output-stream.write")
void wasi_stream_write(handle output, const void *bytes, size_t length, void *answer);
WASI("io/streams", "[method]output-stream.blocking-write-and-flush")
void wasi_write_and_flush(handle output, const void *bytes, size_t length, void *answer);
WASI("io/streams", "[method]output-stream.subscribe") handle wasi_subscribe_output(handle output);
WASI("io/streams", "[resource-drop]output-stream") void wasi_drop_output(handle output);

/* --- wasi:filesystem --- */
WASI("filesystem/preopens", "get-directories") void wasi_get_directories(void *answer);
WASI("filesystem/types", "[method]descriptor.open-at")
void wasi_open_at(handle directory, int32_t path_flags, const char *path, size_t path_length, int32_t open_flags,
                  int32_t flags, void *answer);
WASI("filesystem/types", "[method]descriptor.read")
void wasi_file_read(handle file, uint64_t most, uint64_t offset, void *answer);
WASI("filesystem/types", "[method]descriptor.write")
void wasi_file_write(handle file, const void *bytes, size_t length, uint64_t offset, void *answer);
WASI("filesystem/types", "[method]descriptor.set-size") void wasi_set_size(handle file, uint64_t size, void *answer);
WASI("filesystem/types", "[method]descriptor.sync-data") void wasi_sync_data(handle file, void *answer);
WASI("filesystem/types", "[method]descriptor.sync") void wasi_sync(handle file, void *answer);
WASI("filesystem/types", "[method]descriptor.rename-at")
void wasi_rename_at(handle from, const char *old, size_t old_length, handle to, const char *new, size_t new_length,
                    void *answer);
WASI("filesystem/types", "[method]descriptor.read-directory") void wasi_read_directory(handle directory, void *answer);
WASI("filesystem/types", "[method]directory-entry-stream.read-directory-entry")
void wasi_read_directory_entry(handle entries, void *answer);
WASI("filesystem/types", "[resource-drop]directory-entry-stream") void wasi_drop_entries(handle entries);
WASI("filesystem/types", "[resource-drop]descriptor") void wasi_drop_descriptor(handle file);

/* --- wasi:sockets. A socket address is a variant, flattened: its case, then room for the larger (IPv6) one. --- */
struct flat_address {
    int32_t is_ipv6;
    int32_t part[11];
};
#define FLAT_PARAMETERS                                                                                              \
    int32_t is_ipv6, int32_t p0, int32_t p1, int32_t p2, int32_t p3, int32_t p4, int32_t p5, int32_t p6, int32_t p7, \
        int32_t p8, int32_t p9, int32_t p10
#define FLAT(a)                                                                                                    \
    (a).is_ipv6, (a).part[0], (a).part[1], (a).part[2], (a).part[3], (a).part[4], (a).part[5], (a).part[6],        \
        (a).part[7], (a).part[8], (a).part[9], (a).part[10]

WASI("sockets/instance-network", "instance-network") handle wasi_network(void);
WASI("sockets/tcp-create-socket", "create-tcp-socket") void wasi_create_tcp(int32_t is_ipv6, void *answer);
WASI("sockets/tcp", "[method]tcp-socket.start-bind")
void wasi_tcp_start_bind(handle socket, handle network, FLAT_PARAMETERS, void *answer);
WASI("sockets/tcp", "[method]tcp-socket.finish-bind") void wasi_tcp_finish_bind(handle socket, void *answer);
WASI("sockets/tcp", "[method]tcp-socket.start-connect")
void wasi_tcp_start_connect(handle socket, handle network, FLAT_PARAMETERS, void *answer);
WASI("sockets/tcp", "[method]tcp-socket.finish-connect") void wasi_tcp_finish_connect(handle socket, void *answer);
WASI("sockets/tcp", "[method]tcp-socket.start-listen") void wasi_tcp_start_listen(handle socket, void *answer);
WASI("sockets/tcp", "[method]tcp-socket.finish-listen") void wasi_tcp_finish_listen(handle socket, void *answer);
WASI("sockets/tcp", "[method]tcp-socket.set-listen-backlog-size")
void wasi_tcp_set_backlog(handle socket, uint64_t connections, void *answer);
WASI("sockets/tcp", "[method]tcp-socket.accept") void wasi_tcp_accept(handle socket, void *answer);
WASI("sockets/tcp", "[method]tcp-socket.subscribe") handle wasi_subscribe_tcp(handle socket);
WASI("sockets/tcp", "[method]tcp-socket.shutdown") void wasi_tcp_shutdown(handle socket, int32_t how, void *answer);
WASI("sockets/tcp", "[resource-drop]tcp-socket") void wasi_drop_tcp(handle socket);

WASI("sockets/udp-create-socket", "create-udp-socket") void wasi_create_udp(int32_t is_ipv6, void *answer);
WASI("sockets/udp", "[method]udp-socket.start-bind")
void wasi_udp_start_bind(handle socket, handle network, FLAT_PARAMETERS, void *answer);
WASI("sockets/udp", "[method]udp-socket.finish-bind") void wasi_udp_finish_bind(handle socket, void *answer);
WASI("sockets/udp", "[method]udp-socket.stream")
void wasi_udp_stream(handle socket, int32_t has_remote, FLAT_PARAMETERS, void *answer);
WASI("sockets/udp", "[method]udp-socket.subscribe") handle wasi_subscribe_udp(handle socket);
WASI("sockets/udp", "[resource-drop]udp-socket") void wasi_drop_udp(handle socket);
WASI("sockets/udp", "[method]incoming-datagram-stream.receive")
void wasi_udp_receive(handle input, uint64_t most, void *answer);
WASI("sockets/udp", "[method]incoming-datagram-stream.subscribe") handle wasi_subscribe_udp_input(handle input);
WASI("sockets/udp", "[method]outgoing-datagram-stream.check-send")
void wasi_udp_check_send(handle output, void *answer);
WASI("sockets/udp", "[method]outgoing-datagram-stream.send")
void wasi_udp_send(handle output, const void *datagrams, size_t count, void *answer);
WASI("sockets/udp", "[method]outgoing-datagram-stream.subscribe") handle wasi_subscribe_udp_output(handle output);

WASI("sockets/ip-name-lookup", "resolve-addresses")
void wasi_resolve(handle network, const char *name, size_t length, void *answer);
WASI("sockets/ip-name-lookup", "[method]resolve-address-stream.resolve-next-address")
void wasi_resolve_next(handle stream, void *answer);
WASI("sockets/ip-name-lookup", "[method]resolve-address-stream.subscribe") handle wasi_subscribe_resolve(handle stream);

#endif
