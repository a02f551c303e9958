/* Finds where the bytes of a text occur in the base and earlier in the text. */
#ifndef LOWCLOUD_TEXT_FIND_H
#define LOWCLOUD_TEXT_FIND_H

#include "base.h"

typedef struct {
    u32 len, from;
} occurrence;
typedef VEC(occurrence) occurrences;

/* Base and text are one row of bytes, `b`: the base up to `start`, the text up to `end`. */
typedef struct {
    const u8 *b;
    u32 start, end;
    u32 depth; /* occurrences looked at in each of base and text */
    u32 base_bits, text_bits;
    u32 *bucket_ends, *bucketed;         /* places in the base by their hash, ascending in each bucket */
    u32 *newest_four, *newest_three, *older; /* places in the text by hash, and for each the one before */
    occurrences found;
} finder;

void finder_open(finder *f, const u8 *b, u32 start, u32 end, u32 depth);

/* Makes `found` the occurrences of what stands at p, of at least three bytes, not across the base's end. `near`: the place in
   the base around which most is expected. */
void find_occurrences(finder *f, u32 p, u32 near);

/* The text up to and with p may be copied from now on; must be called for each p in turn. */
void finder_enter(finder *f, u32 p);

INLINE u32 equal_bytes(const u8 *x, const u8 *y, u32 most) {
    u32 l = 0;
    while (l + 8 <= most) {
        u64 a, b;
        __builtin_memcpy(&a, x + l, 8);
        __builtin_memcpy(&b, y + l, 8);
        if (a != b) return l + (u32)__builtin_ctzll(a ^ b) / 8;
        l += 8;
    }
    while (l < most && x[l] == y[l]) l++;
    return l;
}

/* How many bytes can be copied from `from` at most, where `wanted` are. */
INLINE u32 copy_room(const finder *f, u32 from, u32 wanted) {
    return from < f->start && f->start - from < wanted ? f->start - from : wanted;
}

#endif
