/* Files by the absolute path that the guest sees, through the directories that the host has opened for it. */
#ifndef LOWCLOUD_FILE_H
#define LOWCLOUD_FILE_H

#include "text.h"
#include "wasi.h"

#define FILE_OK (-1)

/* Functions return FILE_OK or the error's number in wasi:filesystem's `error-code`; this is its name there. */
struct slice file_error_name(int error);

enum {
    FILE_READ = 1, /* descriptor-flags, six bits */
    FILE_WRITE = 2,
    FILE_CREATE = 1 << 6, /* open-flags from here on */
    FILE_DIRECTORY = 2 << 6,
    FILE_TRUNCATE = 8 << 6,
};

int file_open(struct slice path, int how, handle *file);
void file_close(handle file);

/* Up to `room` bytes at `offset`; `*length` is 0 at the end of the file only. */
int file_read(handle file, uint64_t offset, void *place, size_t room, size_t *length);
int file_write(handle file, uint64_t offset, const void *bytes, size_t length);
int file_set_size(handle file, uint64_t size);
/* Returns when what was written is durable. */
int file_sync(handle file);
/* Both paths below the same opened directory. `directory_sync` of the directory makes it durable. */
int file_rename(struct slice from, struct slice to);

/* `directory_next` gives the next entry of a directory, its name in `place`; `name->at` is NULL after the last. */
int directory_sync(handle directory);
int directory_open(handle directory, handle *entries);
int directory_next(handle entries, void *place, size_t room, struct slice *name);

/* The whole of a small file. Fails with `file-too-large` where it has more than `room` bytes. */
int file_read_whole(struct slice path, void *place, size_t room, size_t *length);

#endif
