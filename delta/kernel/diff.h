/* A short way from one list of keys to another, as copy, delete and insert steps. */
#ifndef LOWCLOUD_DIFF_H
#define LOWCLOUD_DIFF_H

#include "base.h"

typedef struct {
    u32 copied, deleted, inserted;
} step;
typedef VEC(step) steps;

/* One side without what the other side does not have. */
typedef struct {
    u64s keys;
    u32s index;
} kept;

struct box {
    u32 al, ah, bl, bh;
};

/* A window of keys, and where it is on both sides. */
struct window {
    u64 hash;
    u32 i, j; /* one more than the place; 0 for none, MANY_PLACES for several */
};

/* Memory that is used again by every comparison. */
typedef struct {
    VEC(u8) gone, added;
    VEC(struct box) boxes;
    u64s seen;
    u32 seen_mask;
    kept a, b;
    VEC(struct window) windows;
    VEC(u32) pairs_i, pairs_j, before, tails; /* unique windows in the order of a, and the longest chain of them */
} differ;

/* Splits both lists at what occurs once on either side, as B. Cohen's patience difference does, again and again; what lies
   between is replaced. There is no search for the shortest way (E. W. Myers): it finds copies of a few keys more, and
   those cost more as steps of their own than as text. */
void compare(differ *d, const u64 *a, u32 an, const u64 *b, u32 bn, steps *out);

#endif
