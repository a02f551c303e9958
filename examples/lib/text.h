/* Text without a C library: slices, numbers, and a bounded buffer to build lines in. */
#ifndef LOWCLOUD_TEXT_H
#define LOWCLOUD_TEXT_H

#include "memory.h"

/* Bytes that belong to somebody else; not terminated. */
struct slice {
    const char *at;
    size_t length;
};

#define SLICE(literal) ((struct slice){(literal), sizeof(literal) - 1})

struct slice slice_of(const char *text);
bool slice_equal(struct slice left, struct slice right);
bool slice_equal_ignoring_case(struct slice left, struct slice right);
struct slice slice_trimmed(struct slice text);

/* The slice before the first `separator`, which is removed from `rest` together with it. Without a separator: all. */
struct slice slice_cut(struct slice *rest, char separator);

/* False for anything but decimal digits, and where the number is larger than `most`. */
bool parse_number(struct slice text, uint64_t most, uint64_t *number);

/* A line or a response that is being built. What does not fit is left out, and `overflow` says so. */
struct builder {
    char *at;
    size_t length, room;
    bool overflow;
};

void add(struct builder *to, struct slice text);
void add_text(struct builder *to, const char *text);
void add_number(struct builder *to, uint64_t number);

#endif
