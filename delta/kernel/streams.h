/* Reading and writing the streams of a patch, and the form in which they travel: a count for each, then their bytes. */
#ifndef LOWCLOUD_STREAMS_H
#define LOWCLOUD_STREAMS_H

#include "model.h"

typedef struct {
    const u8 *b;
    u32 p, end;
} reader;

INLINE u64 take_number(reader *r) {
    if (LIKELY(r->p < r->end && r->b[r->p] < 128)) return r->b[r->p++];
    u64 v;
    u32 n = read_uleb(r->b, r->p, r->end, &v);
    if (n == 0) fail(E_STREAM);
    r->p += n;
    return v;
}

/* A number that must be below a bound. */
INLINE u32 take_below(reader *r, u64 bound) {
    u64 v = take_number(r);
    if (v >= bound) fail(E_STREAM);
    return (u32)v;
}

INLINE const u8 *take_bytes(reader *r, u64 n) {
    if (n > r->end - r->p) fail(E_STREAM);
    const u8 *at = r->b + r->p;
    r->p += (u32)n;
    return at;
}

INLINE void put_number(bytes *s, u64 v) {
    RESERVE(*s, 10);
    s->n += write_uleb(s->at + s->n, v);
}

/* All streams in one row: their sizes, then their bytes. The ones from `first_text` on are text (see model.h). */
void join_streams(const bytes *s, u32 n, u32 first_text, bytes *joined);
void split_streams(const u8 *b, u32 size, reader *s, u32 n);

/* How a section of the target travels. */
enum section_mode { MODE_RAW, MODE_FUNCTION_TYPES, MODE_ELEMENTS, MODE_CODE, MODE_DATA, MODE_NAMES };
enum { SECTION_MODE_SHIFT = 4, SECTION_PADDED = 1 << 8, SECTION_FORM_END = 1 << 9 };

enum { MODULE_GO = 1, MODULE_BODIES_PADDED = 2, MODULE_ELEMENTS_PADDED = 4, MODULE_SEGMENT_PADDING_SHIFT = 3,
       MODULE_FLAGS_END = 1 << 5 };

/* What segments look like as tokens: the gap to the end of the one before, and the size. */
INLINE i64 segment_gap(const segment *s, i64 expected) { return (i64)zigzag((s->addr < 0 ? -1 : s->addr) - expected); }

/* Old table slot -> new, by what the elements of both sides are. Returned with one more entry than the last slot. */
u32 *map_table(const module *o, const label_map *functions, const u32s *new_elements, u32 new_base, u32 *count);

#endif
