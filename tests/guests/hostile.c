/* A guest that tries to get out of its files, or to take more of them than it was given. A core module for WASI
 * preview 1, which passes its calls on as they are; no C library stands between. It prints a line per attempt:
 * `got <what>` for one that succeeded, `denied <errno> <what>` for one that did not.
 */
#include "lib/text.h"

#define WASI(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(name)))

WASI("args_sizes_get") int args_sizes_get(uint32_t *count, uint32_t *bytes);
WASI("args_get") int args_get(char **each, char *text);
WASI("fd_write") int fd_write(int fd, const struct slice *parts, uint32_t count, uint32_t *written);
WASI("fd_read") int fd_read(int fd, const struct slice *parts, uint32_t count, uint32_t *length);
WASI("fd_close") int fd_close(int fd);
WASI("path_open")
int path_open(int directory, int flags, const char *path, uint32_t length, int open_flags, uint64_t rights,
              uint64_t inherited_rights, int fd_flags, int *fd);
WASI("path_symlink")
int path_symlink(const char *target, uint32_t target_length, int directory, const char *path, uint32_t length);
WASI("path_link")
int path_link(int from, int flags, const char *old, uint32_t old_length, int to, const char *path, uint32_t length);
WASI("path_rename")
int path_rename(int from, const char *old, uint32_t old_length, int to, const char *path, uint32_t length);
WASI("path_create_directory") int path_create_directory(int directory, const char *path, uint32_t length);
WASI("proc_exit") _Noreturn void proc_exit(int code);

enum { STDOUT = 1, FIRST_PREOPEN = 3, MANY = 100000 };
enum { OPEN_CREATE = 1 };
enum { RIGHT_READ = 2, RIGHT_WRITE = 64 };

static void said(const char *verdict, int error, struct slice what) {
    static char text[2048];
    struct builder line = {text, 0, sizeof text, false};
    struct slice all;
    uint32_t written;
    add_text(&line, verdict);
    if (error) add_number(&line, (uint64_t)error);
    add_text(&line, " ");
    add(&line, what);
    add_text(&line, "\n");
    all = (struct slice){text, line.length};
    while (all.length && !fd_write(STDOUT, &all, 1, &written)) {
        all.at += written;
        all.length -= written;
    }
}

static void verdict(int error, struct slice what) {
    if (error) said("denied ", error, what);
    else said("got", 0, what);
}

static int open_at(int directory, struct slice path, int open_flags, uint64_t rights, int *file) {
    return path_open(directory, 1, path.at, path.length, open_flags, rights, 0, 0, file);
}

/* Reads a little; what was read is printed behind `got`. */
static void try_to_read(int directory, struct slice path) {
    static char text[256];
    struct slice room = {text, sizeof text};
    uint32_t length = 0;
    int file, error = open_at(directory, path, 0, RIGHT_READ, &file);
    if (!error) error = fd_read(file, &room, 1, &length);
    if (error) said("denied ", error, path);
    else said("got", 0, (struct slice){text, length});
}

#define PATHS(X) \
    X("/etc/passwd") X("../etc/passwd") X("../../../../../../../../etc/passwd") X("./../../../../../etc/passwd") \
    X("here/../../../../../../etc/passwd") X("absolute") X("relative") X("around") X("here/up") X("proc/1/root/etc/passwd") \
    X("/proc/self/root/etc/passwd") X("/proc/self/environ") X("process") X("//etc/passwd") X(".") X("..") \
    X("descriptor") X("absolute/passwd") X("here\\..\\..\\etc\\passwd") X("/dev/vda") X("/sys/fs/cgroup/cgroup.procs")

#define LINK(directory, target, name) \
    verdict(path_symlink(target, sizeof target - 1, directory, name, sizeof name - 1), SLICE("link " name))

/* Every preopened directory, and descriptors that are none, with every path. */
static void read_outside(void) {
    static const struct slice paths[] = {
#define ONE(path) SLICE(path),
        PATHS(ONE)
    };
    for (int directory = FIRST_PREOPEN; directory < FIRST_PREOPEN + 3; directory++) {
        path_create_directory(directory, "here", 4);
        LINK(directory, "/etc/passwd", "absolute");
        LINK(directory, "../../../../../../../../../etc/passwd", "relative");
        LINK(directory, "here/../relative", "around");
        LINK(directory, "../../../../../../../../../etc/passwd", "here/up");
        LINK(directory, "/proc/self/environ", "process");
        LINK(directory, "/proc/self/fd/3/../../../../../etc/passwd", "descriptor");
        verdict(path_link(directory, 1, "relative", 8, directory, "hard", 4), SLICE("hard link"));
        verdict(path_rename(directory, "here", 4, directory, "../../here", 10), SLICE("rename outside"));
    }
    for (int directory = 0; directory < 16; directory++)
        for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) try_to_read(directory, paths[i]);
}

/* Opens one file again and again and keeps every descriptor. */
static void hold(void) {
    int file, error = 0, held = 0;
    while (held < MANY && !(error = open_at(FIRST_PREOPEN, SLICE("file"), OPEN_CREATE, RIGHT_WRITE, &file))) held++;
    verdict(error, SLICE("another descriptor"));
}

/* Empty files, which take no blocks. */
static void many_files(void) {
    char name[16];
    int file, error = 0;
    for (int i = 0; i < MANY && !error; i++) {
        struct builder path = {name, 0, sizeof name, false};
        add_number(&path, (uint64_t)i);
        error = open_at(FIRST_PREOPEN, (struct slice){name, path.length}, OPEN_CREATE, RIGHT_WRITE, &file);
        if (!error) fd_close(file);
    }
    verdict(error, SLICE("another file"));
}

static void fill(void) {
    static char block[1 << 16];
    struct slice part = {block, sizeof block};
    uint32_t written;
    int file, error = open_at(FIRST_PREOPEN, SLICE("file"), OPEN_CREATE, RIGHT_WRITE, &file);
    for (int i = 0; i < MANY && !error; i++) error = fd_write(file, &part, 1, &written);
    verdict(error, SLICE("another block"));
}

static char *strings[16], string_text[4096];

__attribute__((export_name("_start"))) void start(void) {
    uint32_t count, bytes;
    struct slice mode;
    if (args_sizes_get(&count, &bytes) || count < 2 || count > 16 || bytes > sizeof string_text) proc_exit(3);
    args_get(strings, string_text);
    mode = slice_of(strings[1]);
    if (slice_equal(mode, SLICE("read-outside"))) read_outside();
    else if (slice_equal(mode, SLICE("hold"))) hold();
    else if (slice_equal(mode, SLICE("many-files"))) many_files();
    else if (slice_equal(mode, SLICE("fill"))) fill();
    else proc_exit(2);
    said("done", 0, mode);
    proc_exit(0);
}
