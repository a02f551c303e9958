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
} differ;


/* E. W. Myers, "An O(ND) difference algorithm and its variations" (1986), linear space variant, with a bound on the cost
   that is looked for in one piece: beyond it the piece is split where the search got furthest. */
void compare(differ *d, const u64 *a, u32 an, const u64 *b, u32 bn, steps *out);

#endif
