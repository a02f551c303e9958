#include "diff.h"

enum { MAX_COST = 600 };

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
static split middle(const u64 *a, i32 n, const u64 *b, i32 m, i32 *vf, i32 *vb, i32 limit) {
    i32 delta = n - m;
    int odd = delta & 1;
    vf[1] = vb[1] = 0;
    for (i32 d = 0; d <= limit; d++) {
        for (i32 k = -d; k <= d; k += 2) {
            if (k < -m || k > n) continue;
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
        for (i32 k = -d; k <= d; k += 2) {
            if (k < -m || k > n) continue;
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

static void mark(u8 *at, u32 from, u32 to) {
    for (u32 i = from; i < to; i++) at[i] = 1;
}

static void compare_box(differ *d, const u64 *a, const u64 *b, struct box x, i32 *vf, i32 *vb) {
    while (x.al < x.ah && x.bl < x.bh && a[x.al] == b[x.bl]) x.al++, x.bl++;
    while (x.al < x.ah && x.bl < x.bh && a[x.ah - 1] == b[x.bh - 1]) x.ah--, x.bh--;
    i32 n = (i32)(x.ah - x.al), m = (i32)(x.bh - x.bl);
    split s = {0, 0, 0};
    if (n && m) {
        i32 limit = (n + m + 1) / 2 < MAX_COST ? (n + m + 1) / 2 : MAX_COST;
        s = middle(a + x.al, n, b + x.bl, m, vf, vb, limit);
        if (!s.found) s = best_so_far(vf, n, m, limit);
    }
    if ((s.x == 0 && s.y == 0) || (s.x == n && s.y == m)) {
        mark(d->gone.at, x.al, x.ah);
        mark(d->added.at, x.bl, x.bh);
        return;
    }
    PUSH(d->boxes, ((struct box){x.al, x.al + (u32)s.x, x.bl, x.bl + (u32)s.y}));
    PUSH(d->boxes, ((struct box){x.al + (u32)s.x, x.ah, x.bl + (u32)s.y, x.bh}));
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
    __builtin_memset(d->gone.at, 0, an);
    __builtin_memset(d->added.at, 0, bn);
    d->boxes.n = 0;
    PUSH(d->boxes, ((struct box){0, an, 0, bn}));
    while (d->boxes.n) {
        struct box x = d->boxes.at[--d->boxes.n];
        compare_box(d, a, b, x, d->forward.at + diagonals / 2, d->backward.at + diagonals / 2);
    }
    collect(d, an, bn, out);
}
