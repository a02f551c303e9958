#include "diff.h"

enum {
    EXHAUSTED_COST = 100,
    ANCHORED_COST = 60,  /* what differs in more is split at anchors before the search goes on */
    WINDOW = 16,         /* keys in a row that make an anchor */
};
#define MANY_PLACES 0xffffffffu

typedef struct {
    i32 x, y;
    int found;
} split;

/* The better of the two neighbouring diagonals, where both are inside the box and reached. */
static i32 furthest(const i32 *v, i32 k, i32 d, i32 n, i32 m) {
    if (k == -d || k == -m) return v[k + 1];
    if (k == d || k == n) return v[k - 1] + 1;
    return v[k - 1] < v[k + 1] ? v[k + 1] : v[k - 1] + 1;
}

/* Searches from both corners of the box at once; where the searches meet, the shortest way passes. */
static split middle(const u64 *a, i32 n, const u64 *b, i32 m, i32 *vf, i32 *vb, i32 limit, i64 *budget) {
    i32 delta = n - m;
    int odd = delta & 1;
    vf[1] = vb[1] = 0;
    for (i32 d = 0; d <= limit; d++) {
        i32 first = d <= m ? -d : -m + ((d - m) & 1), last = d <= n ? d : n;
        *budget -= last - first;
        for (i32 k = first; k <= last; k += 2) {
            i32 x = furthest(vf, k, d, n, m), y = x - k;
            if (x > n || y > m || y < 0) {
                vf[k] = x > n ? n + 1 : x;
                continue;
            }
            while (x < n && y < m && a[x] == b[y]) x++, y++;
            vf[k] = x;
            i32 r = delta - k;
            if (odd && r <= d - 1 && r >= 1 - d && vb[r] + x >= n) return (split){x, y, 1};
        }
        for (i32 k = first; k <= last; k += 2) {
            i32 x = furthest(vb, k, d, n, m), y = x - k;
            if (x > n || y > m || y < 0) {
                vb[k] = x > n ? n + 1 : x;
                continue;
            }
            while (x < n && y < m && a[n - 1 - x] == b[m - 1 - y]) x++, y++;
            vb[k] = x;
            i32 r = delta - k;
            if (!odd && r <= d && r >= -d && vf[r] + x >= n) return (split){n - x, m - y, 1};
        }
    }
    return (split){0, 0, 0};
}

static split best_so_far(const i32 *vf, i32 n, i32 m, i32 limit) {
    split best = {0, 0, 0};
    for (i32 k = -limit; k <= limit; k += 2) {
        if (k < -m || k > n) continue;
        i32 x = vf[k], y = x - k;
        if (x >= 0 && y >= 0 && x <= n && y <= m && x + y > best.x + best.y) best = (split){x, y, 1};
    }
    return best;
}

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

static void compare_box(differ *d, struct box x, i32 *vf, i32 *vb) {
    const u64 *a = d->a.keys.at, *b = d->b.keys.at;
    while (x.al < x.ah && x.bl < x.bh && a[x.al] == b[x.bl]) x.al++, x.bl++;
    while (x.al < x.ah && x.bl < x.bh && a[x.ah - 1] == b[x.bh - 1]) x.ah--, x.bh--;
    i32 n = (i32)(x.ah - x.al), m = (i32)(x.bh - x.bl);
    split s = {0, 0, 0};
    if (n && m) {
        i32 limit = d->budget > 0 || d->max_cost < EXHAUSTED_COST ? (i32)d->max_cost : EXHAUSTED_COST;
        if (limit > (n + m + 1) / 2) limit = (n + m + 1) / 2;
        i32 first = limit < ANCHORED_COST ? limit : ANCHORED_COST;
        s = middle(a + x.al, n, b + x.bl, m, vf, vb, first, &d->budget);
        if (!s.found && split_at_anchors(d, x)) return;
        if (!s.found && first < limit) s = middle(a + x.al, n, b + x.bl, m, vf, vb, limit, &d->budget);
        if (!s.found) s = best_so_far(vf, n, m, limit);
    }
    if ((s.x == 0 && s.y == 0) || (s.x == n && s.y == m)) {
        mark(d->gone.at, d->a.index.at, x.al, x.ah);
        mark(d->added.at, d->b.index.at, x.bl, x.bh);
        return;
    }
    PUSH(d->boxes, ((struct box){x.al, x.al + (u32)s.x, x.bl, x.bl + (u32)s.y}));
    PUSH(d->boxes, ((struct box){x.al + (u32)s.x, x.ah, x.bl + (u32)s.y, x.bh}));
}

/* Keys that the other side does not have can only be deleted or inserted. Leaving them out first makes the search, whose
   cost grows with the square of the differences, much shorter and its result no worse. */
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
    u32 diagonals = 2 * (an + bn + 4);
    d->gone.n = d->added.n = d->forward.n = d->backward.n = 0;
    RESERVE(d->gone, an + 1);
    RESERVE(d->added, bn + 1);
    RESERVE(d->forward, diagonals);
    RESERVE(d->backward, diagonals);
    note_keys(d, b, bn);
    keep_noted(d, a, an, &d->a, d->gone.at);
    note_keys(d, a, an);
    keep_noted(d, b, bn, &d->b, d->added.at);
    d->boxes.n = 0;
    PUSH(d->boxes, ((struct box){0, d->a.keys.n, 0, d->b.keys.n}));
    while (d->boxes.n) {
        struct box x = d->boxes.at[--d->boxes.n];
        compare_box(d, x, d->forward.at + diagonals / 2, d->backward.at + diagonals / 2);
    }
    collect(d, an, bn, out);
}
