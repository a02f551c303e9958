#include "diff.h"

enum { WINDOW = 8 }; /* keys in a row that make an anchor */
#define MANY_PLACES 0xffffffffu

static void mark(u8 *at, const u32 *index, u32 from, u32 to) {
    for (u32 i = from; i < to; i++) at[index[i]] = 1;
}

static struct window *window_slot(differ *d, u32 mask, const u64 *keys) {
    u64 h = 1;
    for (u32 k = 0; k < WINDOW; k++) h = mix(h ^ keys[k]);
    h |= 1;
    u32 at = (u32)(h >> 20) & mask;
    while (d->windows.at[at].hash && d->windows.at[at].hash != h) at = (at + 1) & mask;
    d->windows.at[at].hash = h;
    return &d->windows.at[at];
}

/* The windows that occur once on both sides, in the order of a. */
static void find_unique(differ *d, struct box x) {
    const u64 *a = d->a.keys.at, *b = d->b.keys.at;
    u32 slots = 64;
    while (slots < 2 * (x.ah - x.al + x.bh - x.bl)) slots *= 2;
    d->windows.n = d->pairs_i.n = d->pairs_j.n = 0;
    RESERVE(d->windows, slots);
    __builtin_memset(d->windows.at, 0, slots * sizeof(struct window));
    for (u32 i = x.al; i + WINDOW <= x.ah; i++) {
        struct window *w = window_slot(d, slots - 1, a + i);
        w->i = w->i ? MANY_PLACES : i + 1;
    }
    for (u32 j = x.bl; j + WINDOW <= x.bh; j++) {
        struct window *w = window_slot(d, slots - 1, b + j);
        w->j = w->j ? MANY_PLACES : j + 1;
    }
    for (u32 i = x.al; i + WINDOW <= x.ah; i++) {
        struct window *w = window_slot(d, slots - 1, a + i);
        if (w->i != i + 1 || !w->j || w->j == MANY_PLACES) continue;
        PUSH(d->pairs_i, i);
        PUSH(d->pairs_j, w->j - 1);
    }
}

/* The longest chain of unique windows that ascends on both sides, in `tails`. */
static void chain_unique(differ *d) {
    u32 n = d->pairs_i.n;
    const u32 *place = d->pairs_j.at;
    d->before.n = d->tails.n = 0;
    RESERVE(d->before, n);
    RESERVE(d->tails, n);
    u32 *tails = d->tails.at;
    for (u32 k = 0; k < n; k++) {
        u32 lo = 0, hi = d->tails.n;
        while (lo < hi) {
            u32 mid = (lo + hi) / 2;
            if (place[tails[mid]] < place[k]) lo = mid + 1;
            else hi = mid;
        }
        d->before.at[k] = lo ? tails[lo - 1] : MANY_PLACES;
        tails[lo] = k;
        if (lo == d->tails.n) d->tails.n++;
    }
    for (u32 k = d->tails.n; k-- > 1;) tails[k - 1] = d->before.at[tails[k]];
}

static int same_window(const u64 *a, const u64 *b) {
    for (u32 k = 0; k < WINDOW; k++)
        if (a[k] != b[k]) return 0;
    return 1;
}

/* Leaves the boxes between what occurs once on both sides; 0 where nothing does. */
static int split_at_anchors(differ *d, struct box x) {
    find_unique(d, x);
    chain_unique(d);
    int any = 0;
    for (u32 k = 0; k < d->tails.n; k++) {
        u32 i = d->pairs_i.at[d->tails.at[k]], j = d->pairs_j.at[d->tails.at[k]];
        if (i < x.al || j < x.bl || !same_window(d->a.keys.at + i, d->b.keys.at + j)) continue;
        if (i > x.al || j > x.bl) PUSH(d->boxes, ((struct box){x.al, i, x.bl, j}));
        x.al = i + WINDOW;
        x.bl = j + WINDOW;
        any = 1;
    }
    if (any) PUSH(d->boxes, x);
    return any;
}

static void compare_box(differ *d, struct box x) {
    const u64 *a = d->a.keys.at, *b = d->b.keys.at;
    while (x.al < x.ah && x.bl < x.bh && a[x.al] == b[x.bl]) x.al++, x.bl++;
    while (x.al < x.ah && x.bl < x.bh && a[x.ah - 1] == b[x.bh - 1]) x.ah--, x.bh--;
    if (x.al < x.ah && x.bl < x.bh && split_at_anchors(d, x)) return;
    mark(d->gone.at, d->a.index.at, x.al, x.ah);
    mark(d->added.at, d->b.index.at, x.bl, x.bh);
}

/* Keys that the other side does not have can only be deleted or inserted. Without them, what stays in order stands side by
   side, so more of it makes windows. */
static void note_keys(differ *d, const u64 *keys, u32 n) {
    u32 slots = 64;
    while (slots < 2 * n) slots *= 2;
    d->seen.n = 0;
    RESERVE(d->seen, slots);
    d->seen_mask = slots - 1;
    __builtin_memset(d->seen.at, 0, slots * sizeof(u64));
    for (u32 i = 0; i < n; i++) {
        u32 at = (u32)(mix(keys[i]) >> 20) & d->seen_mask;
        while (d->seen.at[at] && d->seen.at[at] != (keys[i] | 1)) at = (at + 1) & d->seen_mask;
        d->seen.at[at] = keys[i] | 1;
    }
}

static int noted(const differ *d, u64 key) {
    u32 at = (u32)(mix(key) >> 20) & d->seen_mask;
    while (d->seen.at[at] && d->seen.at[at] != (key | 1)) at = (at + 1) & d->seen_mask;
    return d->seen.at[at] != 0;
}

static void keep_noted(const differ *d, const u64 *keys, u32 n, kept *out, u8 *dropped) {
    out->keys.n = out->index.n = 0;
    RESERVE(out->keys, n + 1);
    RESERVE(out->index, n + 1);
    for (u32 i = 0; i < n; i++) {
        dropped[i] = !noted(d, keys[i]);
        if (dropped[i]) continue;
        out->keys.at[out->keys.n++] = keys[i];
        out->index.at[out->index.n++] = i;
    }
}

static void collect(const differ *d, u32 an, u32 bn, steps *out) {
    u32 i = 0, j = 0;
    out->n = 0;
    do {
        step s = {0, 0, 0};
        while (i < an && j < bn && !d->gone.at[i] && !d->added.at[j]) i++, j++, s.copied++;
        while (i < an && d->gone.at[i]) i++, s.deleted++;
        while (j < bn && d->added.at[j]) j++, s.inserted++;
        PUSH(*out, s);
    } while (i < an || j < bn);
}

void compare(differ *d, const u64 *a, u32 an, const u64 *b, u32 bn, steps *out) {
    d->gone.n = d->added.n = 0;
    RESERVE(d->gone, an + 1);
    RESERVE(d->added, bn + 1);
    note_keys(d, b, bn);
    keep_noted(d, a, an, &d->a, d->gone.at);
    note_keys(d, a, an);
    keep_noted(d, b, bn, &d->b, d->added.at);
    d->boxes.n = 0;
    PUSH(d->boxes, ((struct box){0, d->a.keys.n, 0, d->b.keys.n}));
    while (d->boxes.n) {
        struct box x = d->boxes.at[--d->boxes.n];
        compare_box(d, x);
    }
    collect(d, an, bn, out);
}
