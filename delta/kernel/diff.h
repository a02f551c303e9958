/* The shortest way from one list of keys to another, as copy, delete and insert steps. */
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
    u32 max_cost; /* looked for in one piece; the time grows with its square */
    i64 budget;   /* search steps left in all; without any, pieces are small */
    VEC(u8) gone, added;
    VEC(i32) forward, backward;
    VEC(struct box) boxes;
    u64s seen;
    u32 seen_mask;
    kept a, b;
    VEC(struct window) windows;
    VEC(u32) pairs_i, pairs_j, before, tails; /* unique windows in the order of a, and the longest chain of them */
} differ;

/* E. W. Myers, "An O(ND) difference algorithm and its variations" (1986), linear space variant, with a bound on the cost
   that is looked for in one piece: beyond it the piece is split at what occurs once on both sides, as B. Cohen's patience
   difference does, and where there is no such thing, where the search got furthest. */
void compare(differ *d, const u64 *a, u32 an, const u64 *b, u32 bn, steps *out);

#endif
