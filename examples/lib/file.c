#include "file.h"

#define ERROR_FILE_TOO_LARGE 8
#define ERROR_NO_ENTRY 20
#define ERROR_IO 13
#define ERROR_CROSS_DEVICE 36

struct slice file_error_name(int error) {
    static const char *const names[] = {
        "access", "would-block", "already", "bad-descriptor", "busy", "deadlock", "quota", "exist", "file-too-large",
        "illegal-byte-sequence", "in-progress", "interrupted", "invalid", "io", "is-directory", "loop",
        "too-many-links", "message-size", "name-too-long", "no-device", "no-entry", "no-lock", "insufficient-memory",
        "insufficient-space", "not-directory", "not-empty", "not-recoverable", "unsupported", "no-tty",
        "no-such-device", "overflow", "not-permitted", "pipe", "read-only", "invalid-seek", "text-file-busy",
        "cross-device"};
    if (error < 0 || (size_t)error >= sizeof names / sizeof *names) return SLICE("unknown");
    return slice_of(names[error]);
}

/* One directory that the host has opened, and where the guest sees it. */
struct preopen {
    handle directory;
    struct slice path;
};

/* The part of `path` below `parent`, or a slice with `at` NULL where it is not below. */
static struct slice below(struct slice parent, struct slice path) {
    while (parent.length && parent.at[parent.length - 1] == '/') parent.length--;
    if (path.length < parent.length || memcmp(path.at, parent.at, parent.length)) return (struct slice){NULL, 0};
    path.at += parent.length;
    path.length -= parent.length;
    if (!path.length) return SLICE(".");
    if (path.at[0] != '/') return (struct slice){NULL, 0};
    while (path.length && path.at[0] == '/') path.at++, path.length--;
    return path.length ? path : SLICE(".");
}

/* The innermost preopened directory that holds `path`, which becomes relative to it. */
static handle directory_of(struct slice *path) {
    static struct {
        struct preopen *items;
        size_t count;
    } all;
    if (!all.items) {
        land_anywhere();
        wasi_get_directories(&all);
    }
    handle found = 0;
    struct slice rest = {NULL, 0};
    for (size_t i = 0; i < all.count; i++) {
        struct slice candidate = below(all.items[i].path, *path);
        if (candidate.at && (!rest.at || candidate.length < rest.length)) {
            rest = candidate;
            found = all.items[i].directory;
        }
    }
    *path = rest;
    return found;
}

/* An answer result<T, error-code>: the case at 0, the error (or a small T) at `at`. */
static int outcome(const uint8_t *answer, size_t at) {
    return answer[0] ? answer[at] : FILE_OK;
}

int file_open(struct slice path, int how, handle *file) {
    uint32_t answer[2];
    handle directory = directory_of(&path);
    if (!directory) return ERROR_NO_ENTRY;
    int32_t open_flags = (how / FILE_CREATE) & 15, flags = how & (FILE_CREATE - 1);
    wasi_open_at(directory, 1, path.at, path.length, open_flags, flags, answer);
    *file = (handle)answer[1];
    return outcome((uint8_t *)answer, 4);
}

void file_close(handle file) {
    wasi_drop_descriptor(file);
}

int file_read(handle file, uint64_t offset, void *place, size_t room, size_t *length) {
    uint32_t answer[4]; /* result<tuple<list<u8>, bool>, _>: address at 4, length at 8, end of file at 12 */
    land_in(place, room);
    wasi_file_read(file, room, offset, answer);
    land_anywhere();
    int error = outcome((uint8_t *)answer, 4);
    *length = error == FILE_OK ? answer[2] : 0;
    return error;
}

int file_write(handle file, uint64_t offset, const void *bytes, size_t length) {
    const uint8_t *at = bytes;
    while (length) {
        uint64_t answer[2]; /* result<u64, _>: both at 8 */
        wasi_file_write(file, at, length, offset, answer);
        int error = outcome((uint8_t *)answer, 8);
        if (error != FILE_OK) return error;
        if (!answer[1] || answer[1] > length) return ERROR_IO;
        at += answer[1];
        offset += answer[1];
        length -= (size_t)answer[1];
    }
    return FILE_OK;
}

int file_set_size(handle file, uint64_t size) {
    uint8_t answer[2];
    wasi_set_size(file, size, answer);
    return outcome(answer, 1);
}

int file_sync(handle file) {
    uint8_t answer[2];
    wasi_sync_data(file, answer);
    return outcome(answer, 1);
}

int file_rename(struct slice from, struct slice to) {
    uint8_t answer[2];
    handle source = directory_of(&from), target = directory_of(&to);
    if (!source || !target) return ERROR_NO_ENTRY;
    if (source != target) return ERROR_CROSS_DEVICE;
    wasi_rename_at(source, from.at, from.length, target, to.at, to.length, answer);
    return outcome(answer, 1);
}

int directory_sync(handle directory) {
    uint8_t answer[2];
    wasi_sync(directory, answer);
    return outcome(answer, 1);
}

int directory_open(handle directory, handle *entries) {
    uint32_t answer[2];
    wasi_read_directory(directory, answer);
    *entries = (handle)answer[1];
    return outcome((uint8_t *)answer, 4);
}

int directory_next(handle entries, void *place, size_t room, struct slice *name) {
    uint32_t answer[5]; /* result<option<entry>, _>: option's case at 4; entry at 8: type, name's address and length */
    land_in(place, room);
    wasi_read_directory_entry(entries, answer);
    land_anywhere();
    int error = outcome((uint8_t *)answer, 4);
    bool some = error == FILE_OK && *(uint8_t *)&answer[1];
    *name = some ? (struct slice){(const char *)answer[3], answer[4]} : (struct slice){NULL, 0};
    return error;
}

int file_read_whole(struct slice path, void *place, size_t room, size_t *length) {
    handle file;
    *length = 0;
    int error = file_open(path, FILE_READ, &file);
    if (error != FILE_OK) return error;
    for (;;) {
        size_t part;
        uint8_t beyond;
        bool full = *length == room;
        error = file_read(file, *length, full ? &beyond : (uint8_t *)place + *length, full ? 1 : room - *length, &part);
        if (error != FILE_OK || !part) break;
        if (full) {
            error = ERROR_FILE_TOO_LARGE;
            break;
        }
        *length += part;
    }
    file_close(file);
    return error;
}
