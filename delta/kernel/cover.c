#include "cover.h"

enum {
    SEED = 12,
    MOST_BITS = 25,
    CHAIN = 64,         /* seeds looked at per position */
    SAME_SHIFT = 8,     /* how long a match must be to go on where the last one stopped, */
    NEAR_SHIFT = 16,    /* near there, */
    ANY_SHIFT = 24,     /* or anywhere */
    NEAR = 4096,
    SHIFT_BONUS = 12,
    FORWARD_DROP = 24,  /* growth stops when the score has fallen this far */
    BACKWARD_DROP = 16,
    SURE = 24,          /* so many equal bytes in a row prove that a grown cover goes on; where there are fewer, */
    GAIN = 10,          /* a match that has so many more equal bytes takes over, as bsdiff does */
};
#define NONE 0xffffffffu

typedef struct {
    u32 *head, *next;
    u32 bits;
} seeds;

static u32 seed_at(const seeds *s, const u8 *p) {
    u64 x;
    u32 y;
    __builtin_memcpy(&x, p, 8);
    __builtin_memcpy(&y, p + 8, 4);
    return (u32)((x * 0x9E3779B97F4A7C15ull ^ y * 0xff51afd7ed558ccdull) * 0x9E3779B97F4A7C15ull >> (64 - s->bits));
}

static int inside_a_run(const u8 *o, u32 on, u32 i) {
    if (i == 0 || i + SEED >= on) return 0;
    for (u32 k = 0; k <= SEED; k++)
        if (o[i + k] != o[i - 1]) return 0;
    return 1;
}

static void index_seeds(seeds *s, const u8 *o, u32 on) {
    s->bits = 12;
    while (s->bits < MOST_BITS && 1u << s->bits < on) s->bits++;
    s->head = allocate(4ull << s->bits);
    s->next = allocate((u64)on * 4);
    __builtin_memset(s->head, 0xff, 4u << s->bits);
    for (u32 i = on - SEED + 1; i-- > 0;) {
        if (inside_a_run(o, on, i)) continue;
        u32 k = seed_at(s, o + i);
        s->next[i] = s->head[k];
        s->head[k] = i;
    }
}

static u32 match_bytes(const u8 *o, u32 on, const u8 *n, u32 nn) {
    u32 l = 0, most = on < nn ? on : nn;
    while (l + 8 <= most) {
        u64 x, y;
        __builtin_memcpy(&x, o + l, 8);
        __builtin_memcpy(&y, n + l, 8);
        if (x != y) return l + (u32)__builtin_ctzll(x ^ y) / 8;
        l += 8;
    }
    while (l < most && o[l] == n[l]) l++;
    return l;
}

typedef struct {
    u32 score, at;
} found;

static found best_seed(const seeds *s, const u8 *o, u32 on, const u8 *n, u32 nn, u32 p, i64 expected) {
    found best = {0, 0};
    if (expected >= 0 && expected < on) {
        u32 l = match_bytes(o + expected, on - (u32)expected, n + p, nn - p);
        if (l >= SAME_SHIFT) best = (found){l + SHIFT_BONUS, (u32)expected};
    }
    u32 c = s->head[seed_at(s, n + p)];
    for (u32 tries = 0; c != NONE && tries < CHAIN; tries++, c = s->next[c]) {
        u32 l = match_bytes(o + c, on - c, n + p, nn - p);
        if (l >= SEED && l > best.score) best = (found){l, c};
    }
    i64 off = (i64)best.at - expected;
    u32 wanted = off == 0 ? SAME_SHIFT : off > -NEAR && off < NEAR ? NEAR_SHIFT : ANY_SHIFT;
    return best.score < wanted ? (found){0, 0} : best;
}

static u32 grow_forward(const u8 *o, u32 on, const u8 *n, u32 nn, u32 i, u32 j) {
    i32 score = 0, best = 0;
    u32 end = i;
    for (; i < nn && j < on; i++, j++) {
        score += n[i] == o[j] ? 1 : -1;
        if (score >= best) {
            best = score;
            end = i + 1;
        } else if (score < best - FORWARD_DROP) {
            break;
        }
    }
    return end;
}

static u32 grow_back(const u8 *o, const u8 *n, u32 floor, u32 i, u32 j) {
    i32 score = 0, best = 0;
    u32 start = i;
    while (i > floor && j > 0) {
        i--;
        j--;
        score += n[i] == o[j] ? 1 : -1;
        if (score > best) {
            best = score;
            start = i;
        } else if (score < best - BACKWARD_DROP) {
            break;
        }
    }
    return start;
}

static void keep(covers *out, cover c) {
    if (out->n) {
        cover *last = &out->at[out->n - 1];
        if (last->n + last->len == c.n && last->o + last->len == c.o) {
            last->len += c.len;
            return;
        }
    }
    PUSH(*out, c);
}

typedef struct {
    const u8 *o, *n;
    u32 on, nn;
    seeds s;
    covers *out;
    i64 shift; /* of the last cover: new place - old place, */
    u32 sure;  /* up to where it surely is right, */
    u32 end;   /* and how far it was grown */
} finder;

/* How many of `len` bytes are the same under the last cover. */
static u32 same_bytes(const finder *f, u32 p, u32 len) {
    u32 same = 0;
    for (u32 i = p; i < p + len; i++) {
        i64 j = (i64)i - f->shift;
        same += j >= 0 && j < f->on && f->n[i] == f->o[j];
    }
    return same;
}

/* A match for p, or one of no bytes. Inside what the last cover was grown over it must be better than that by enough. */
static cover match_at(const finder *f, u32 p) {
    i64 expected = (i64)p - f->shift;
    found best = best_seed(&f->s, f->o, f->on, f->n, f->nn, p, expected);
    cover c = {p, best.at, 0};
    if (best.score == 0 || (p < f->end && best.at == expected)) return c;
    u32 len = match_bytes(f->o + best.at, f->on - best.at, f->n + p, f->nn - p);
    if (p >= f->end || len >= same_bytes(f, p, len) + GAIN) c.len = len;
    return c;
}

/* Where the last cover gives way to a new one that overlaps it: at the point that leaves the fewest bytes different. */
static u32 meeting_point(const finder *f, u32 from, u32 to, i64 new_shift) {
    i32 score = 0, best = 0;
    u32 at = from;
    for (u32 i = from; i < to; i++) {
        score += (f->n[i] == f->o[i - f->shift]) - (f->n[i] == f->o[i - new_shift]);
        if (score > best) {
            best = score;
            at = i + 1;
        }
    }
    return at;
}

/* Makes a cover of a match: grown on both sides over single differences, the one before cut where this is better. */
static void take_match(finder *f, cover match) {
    i64 shift = (i64)match.n - match.o;
    u32 start = match.n, sure = match.n + match.len;
    while (start > f->sure && start > shift && f->n[start - 1] == f->o[start - 1 - shift]) start--;
    start = grow_back(f->o, f->n, f->sure, start, (u32)(start - shift));
    if (start < f->end) {
        start = meeting_point(f, start, f->end < sure ? f->end : sure, shift);
        cover *last = &f->out->at[f->out->n - 1];
        last->len = start - last->n;
    }
    f->end = grow_forward(f->o, f->on, f->n, f->nn, match.n, match.o);
    keep(f->out, (cover){start, (u32)(start - shift), f->end - start});
    f->shift = shift;
    f->sure = sure;
}

void find_covers(const u8 *o, u32 on, const u8 *n, u32 nn, covers *out) {
    if (on < SEED || nn < SEED) return;
    finder f = {.o = o, .n = n, .on = on, .nn = nn, .out = out};
    index_seeds(&f.s, o, on);
    for (u32 p = 0; p + SEED <= nn;) {
        if (p < f.end) { /* a cover that goes on well is not questioned */
            u32 old = (u32)(p - f.shift), run = match_bytes(o + old, on - old, n + p, nn - p);
            if (run >= SURE) {
                f.sure = p += run;
                continue;
            }
        }
        cover match = match_at(&f, p);
        if (match.len) {
            take_match(&f, match);
            p = f.sure;
        } else {
            p++;
        }
    }
}
