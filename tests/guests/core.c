/* As probe.c, but a core module for WASI preview 1. It does what its first argument names; exit codes are exact here.
 *
 * Without a C library, because compiling one takes longer than all the tests that need this. The imports are those of
 * wasi_snapshot_preview1 (witx, "phases/snapshot"): a result is an errno, what is returned goes through pointers.
 */
#include "lib/text.h"

#define WASI(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(name)))

WASI("args_sizes_get") int args_sizes_get(uint32_t *count, uint32_t *bytes);
WASI("args_get") int args_get(char **each, char *text);
WASI("environ_sizes_get") int environ_sizes_get(uint32_t *count, uint32_t *bytes);
WASI("environ_get") int environ_get(char **each, char *text);
WASI("fd_write") int fd_write(int fd, const struct slice *parts, uint32_t count, uint32_t *written);
WASI("fd_read") int fd_read(int fd, const struct slice *parts, uint32_t count, uint32_t *length);
WASI("fd_prestat_get") int fd_prestat_get(int fd, uint32_t prestat[2]);
WASI("fd_prestat_dir_name") int fd_prestat_dir_name(int fd, char *path, uint32_t length);
WASI("path_open")
int path_open(int directory, int flags, const char *path, uint32_t length, int open_flags, uint64_t rights,
              uint64_t inherited_rights, int fd_flags, int *fd);
WASI("poll_oneoff") int poll_oneoff(const void *subscriptions, void *events, uint32_t count, uint32_t *ready);
WASI("proc_exit") _Noreturn void proc_exit(int code);

enum { STDOUT = 1, STDERR = 2, FIRST_PREOPEN = 3 };
enum { OPEN_CREATE = 1, OPEN_TRUNCATE = 8 };
enum { RIGHT_READ = 2, RIGHT_WRITE = 64 };

/* --- output, in blocks --- */

static char output_text[4096];
static struct builder output = {output_text, 0, sizeof output_text, false};

static void write_all(int fd, struct slice text) {
    uint32_t written;
    while (text.length && !fd_write(fd, &text, 1, &written)) {
        text.at += written;
        text.length -= written;
    }
}

static void flush(int fd) {
    write_all(fd, (struct slice){output.at, output.length});
    output.length = 0;
}

static void say(int fd, struct slice text) {
    if (output.room - output.length < text.length) flush(fd);
    if (text.length > output.room) write_all(fd, text);
    else add(&output, text);
}

_Noreturn static void end(int code) {
    flush(STDOUT);
    proc_exit(code);
}

_Noreturn static void deny(int error) {
    say(STDOUT, SLICE("denied "));
    add_number(&output, (uint64_t)error);
    say(STDOUT, SLICE("\n"));
    end(1);
}

/* --- arguments and environment --- */

static char *strings[256], string_text[65536];

static uint32_t load(int (*sizes)(uint32_t *, uint32_t *), int (*get)(char **, char *)) {
    uint32_t count, bytes;
    if (sizes(&count, &bytes) || count > 256 || bytes > sizeof string_text || get(strings, string_text)) proc_exit(3);
    return count;
}

static void print_strings(uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        say(STDOUT, slice_of(strings[i]));
        say(STDOUT, SLICE("\n"));
    }
}

/* --- what it can do --- */

static void print_lines(int fd, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        char text[32];
        struct builder line = {text, 0, sizeof text, false};
        add_text(&line, "line ");
        add_number(&line, i);
        add_text(&line, "\n");
        say(fd, (struct slice){text, line.length});
    }
    flush(fd);
}

static void sleep_ms(uint64_t ms) {
    uint64_t subscription[6] = {0, 0, 1, ms * 1000000, 0, 0}; /* a clock, the monotonic one, in so many nanoseconds */
    uint64_t event[4];
    uint32_t ready;
    say(STDOUT, SLICE("sleeping\n"));
    flush(STDOUT);
    poll_oneoff(subscription, event, 1, &ready);
}

/* Opens a file through the directory that holds it; ends the program where that is not allowed. */
static int open_file(struct slice path, int open_flags, uint64_t rights) {
    char preopen[256];
    uint32_t prestat[2];
    for (int fd = FIRST_PREOPEN; !fd_prestat_get(fd, prestat); fd++) {
        size_t length = prestat[1];
        if (length >= path.length || length > sizeof preopen || fd_prestat_dir_name(fd, preopen, length)) continue;
        if (memcmp(path.at, preopen, length) || path.at[length] != '/') continue;
        struct slice rest = {path.at + length + 1, path.length - length - 1};
        int file, error = path_open(fd, 1, rest.at, rest.length, open_flags, rights, 0, 0, &file);
        if (error) deny(error);
        return file;
    }
    deny(44); /* noent */
}

static void read_file(struct slice path) {
    static char text[4096];
    struct slice room = {text, sizeof text};
    uint32_t length;
    int file = open_file(path, 0, RIGHT_READ);
    while (!fd_read(file, &room, 1, &length) && length) say(STDOUT, (struct slice){text, length});
}

static void write_file(struct slice path, struct slice text) {
    write_all(open_file(path, OPEN_CREATE | OPEN_TRUNCATE, RIGHT_WRITE), text);
    say(STDOUT, SLICE("ok\n"));
}

__attribute__((export_name("_start"))) void start(void) {
    uint32_t count = load(args_sizes_get, args_get);
    struct slice mode = count > 1 ? slice_of(strings[1]) : SLICE("");
    struct slice first = count > 2 ? slice_of(strings[2]) : SLICE("");
    struct slice second = count > 3 ? slice_of(strings[3]) : SLICE("");
    uint64_t number = 0;
    parse_number(first, UINT32_MAX, &number);
    if (slice_equal(mode, SLICE("exit"))) end((int)number);
    else if (slice_equal(mode, SLICE("trap"))) __builtin_trap();
    else if (slice_equal(mode, SLICE("sleep"))) sleep_ms(number);
    else if (slice_equal(mode, SLICE("print"))) print_lines(STDOUT, number);
    else if (slice_equal(mode, SLICE("stderr"))) print_lines(STDERR, number);
    else if (slice_equal(mode, SLICE("read"))) read_file(first);
    else if (slice_equal(mode, SLICE("write"))) write_file(first, second);
    else if (slice_equal(mode, SLICE("args"))) print_strings(count);
    else if (slice_equal(mode, SLICE("env"))) print_strings(load(environ_sizes_get, environ_get));
    else end(2);
    flush(STDOUT); /* returning from _start is exit status 0 */
}
