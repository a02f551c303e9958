#include "match.h"

enum {
    SKETCH = 24,         /* smallest hashes of opcode windows that stand for a function */
    WINDOW = 5,
    NEIGHBOURS = 4,      /* how far from a matched neighbour a similar function is looked for */
    CANDIDATES = 20,
    COMMON = 2000,       /* a window in more functions than this says nothing */
    WIDE_NUMBER = 65535, /* an i64 constant above may be an address or a program counter */
};

typedef struct {
    u64 hash; /* of the instructions with everything masked that shifts when code or data move */
    u32 tokens;
    u32 sketched;
    u32 readable;
    u32 sketch[SKETCH]; /* ascending */
} profile;

static int shifts(const token *t, const module *m) {
    switch (TOKEN_CLASS(t->op)) {
    case C_FUNC: case C_TYPE: case C_GLOBAL: return 1;
    case C_I32: {
        i64 v = (u32)t->v;
        return v >= m->low && v < m->data_end + BSS_BYTES;
    }
    case C_OFFSET: return t->v >= m->low;
    case C_I64: return t->v > WIDE_NUMBER;
    default: return 0;
    }
}

static void add_to_sketch(profile *f, u32 h) {
    u32 n = f->sketched;
    if (n == SKETCH && h >= f->sketch[n - 1]) return;
    u32 i = n;
    while (i > 0 && f->sketch[i - 1] >= h) {
        if (f->sketch[i - 1] == h) return;
        i--;
    }
    u32 last = n < SKETCH ? n : SKETCH - 1;
    for (u32 k = last; k > i; k--) f->sketch[k] = f->sketch[k - 1];
    f->sketch[i] = h;
    if (n < SKETCH) f->sketched++;
}

static void profile_function(const module *m, u32 i, tokens *scratch, profile *f) {
    u64 last[WINDOW] = {0};
    *f = (profile){.readable = (u32)read_body(m, m->bodies.at[i], scratch)};
    if (!f->readable) return;
    f->tokens = scratch->n;
    u64 h = 0x9E3779B97F4A7C15ull ^ scratch->n;
    for (u32 k = 0; k < scratch->n; k++) {
        const token *t = &scratch->at[k];
        int masked = shifts(t, m);
        u64 key = (u64)(t->op & ~OP_PADDED) * 0x9E3779B97F4A7C15ull;
        u64 whole = masked ? key : key ^ (u64)t->v * 0xff51afd7ed558ccdull;
        h = (h ^ whole ^ whole >> 29) * 0xff51afd7ed558ccdull;
        h ^= h >> 32;
        u64 loose = masked || TOKEN_CLASS(t->op) == C_LOCAL ? key : key + (u64)t->v * 0xff51afd7ed558ccdull;
        last[k % WINDOW] = loose ^ loose >> 31;
        if (k + 1 < WINDOW && k + 1 < scratch->n) continue;
        u64 w = 0;
        for (u32 j = 1; j <= WINDOW; j++) {
            w = (w << 11 | w >> 53) ^ last[(k + j) % WINDOW];
            w *= 0x9E3779B97F4A7C15ull;
        }
        add_to_sketch(f, (u32)(w >> 32));
    }
    f->hash = h;
}

static profile *profile_all(const module *m) {
    tokens scratch = {0};
    profile *f = allocate((u64)m->bodies.n * sizeof(profile) + 1);
    for (u32 i = 0; i < m->bodies.n; i++) profile_function(m, i, &scratch, &f[i]);
    return f;
}

void find_passive_addresses(module *m) {
    enum { MEMORY_INIT = 0xfc | 8 << 8, OPCODE = 0x3ffff };
    tokens t = {0};
    int any = 0;
    for (u32 i = 0; i < m->segs.n; i++) any |= m->segs.at[i].flag != 0;
    if (!any) return;
    for (u32 f = 0; f < m->bodies.n; f++) {
        if (!read_body(m, m->bodies.at[f], &t)) continue;
        for (u32 i = 3; i < t.n; i++) {
            const token *x = &t.at[i];
            if ((x->op & OPCODE) != MEMORY_INIT || (u64)x->v >= m->segs.n || m->segs.at[x->v].addr >= 0) continue;
            if (TOKEN_CLASS(x[-1].op) != C_I32 || TOKEN_CLASS(x[-2].op) != C_I32 || TOKEN_CLASS(x[-3].op) != C_I32) continue;
            if (x[-2].v == 0) m->segs.at[x->v].addr = (u32)x[-3].v;
        }
    }
    set_address_range(m);
}

typedef struct {
    const module *o, *n;
    profile *op, *np;
    u32 on, nn;
    u32 *refs;
    u8 *used; /* old functions that have a match */
} matcher;

static void match(matcher *m, u32 i, u32 j) {
    m->refs[i] = j;
    m->used[j] = 1;
}

static int open(const matcher *m, u32 i) { return m->refs[i] == REF_NONE; }
static int matched(const matcher *m, u32 i) { return m->refs[i] < REF_REPEATED; }

static pair *sorted_hashes(const profile *f, u32 n) {
    pair *p = allocate((u64)n * sizeof(pair) + 1);
    for (u32 i = 0; i < n; i++) p[i] = (pair){f[i].hash, i};
    sort_pairs(p, n);
    return p;
}

static u32 group_end(const pair *p, u32 from, u32 n) {
    u32 end = from;
    while (end < n && p[end].key == p[from].key) end++;
    return end;
}

/* Walks equal keys of both sides. `unique`: pairs only what is alone on both; else pairs what is left, in order. */
static void match_equal(matcher *m, const pair *o, u32 on, const pair *n, u32 nn, int unique) {
    for (u32 i = 0, j = 0; i < nn && j < on;) {
        if (n[i].key != o[j].key) {
            if (n[i].key < o[j].key) i++;
            else j++;
            continue;
        }
        u32 ie = group_end(n, i, nn), je = group_end(o, j, on);
        if (unique) {
            if (ie - i == 1 && je - j == 1 && open(m, n[i].value) && !m->used[o[j].value]) match(m, n[i].value, o[j].value);
        } else {
            for (u32 a = i, b = j; a < ie && b < je;) {
                if (!open(m, n[a].value)) a++;
                else if (m->used[o[b].value] || !m->op[o[b].value].readable) b++;
                else match(m, n[a++].value, o[b++].value);
            }
        }
        i = ie;
        j = je;
    }
}

/* Equal functions beside matched ones are their counterparts. */
static void match_equal_neighbours(matcher *m) {
    for (u32 i = 1; i < m->nn; i++) {
        if (!open(m, i) || !matched(m, i - 1)) continue;
        u32 j = m->refs[i - 1] + 1;
        if (j < m->on && !m->used[j] && m->op[j].hash == m->np[i].hash && m->op[j].readable) match(m, i, j);
    }
    for (u32 i = m->nn; i-- > 1;) {
        if (!open(m, i - 1) || !matched(m, i) || m->refs[i] == 0) continue;
        u32 j = m->refs[i] - 1;
        if (!m->used[j] && m->op[j].hash == m->np[i - 1].hash && m->op[j].readable) match(m, i - 1, j);
    }
}

/* Rust ends its mangled names in a hash of the build: "17h" + 16 digits + "E", or "::h" + 16 digits. */
static u64 name_hash(const module *m, range r) {
    const u8 *b = m->b + r.start;
    u32 l = r.end - r.start;
    if (l > 20 && b[l - 1] == 'E' && b[l - 20] == '1' && b[l - 19] == '7' && b[l - 18] == 'h') l -= 20;
    else if (l > 19 && b[l - 17] == 'h' && b[l - 18] == ':' && b[l - 19] == ':') l -= 19;
    return hash_bytes(b, l);
}

static pair *sorted_names(const module *m, u32 *n) {
    pair *p = allocate((u64)m->bodies.n * sizeof(pair) + 1);
    *n = 0;
    for (u32 i = 0; i < m->bodies.n && i + m->imports < m->names.n; i++)
        p[(*n)++] = (pair){name_hash(m, m->names.at[i + m->imports]), i};
    sort_pairs(p, *n);
    return p;
}

static void match_names(matcher *m) {
    if (!m->o->names_ok || !m->n->names_ok) return;
    u32 on, nn;
    pair *o = sorted_names(m->o, &on), *n = sorted_names(m->n, &nn);
    match_equal(m, o, on, n, nn, 1);
    match_equal_neighbours(m);
}

/* Share of common sketch entries, scaled down where the sizes differ: 0 to 1. */
static float similarity(const profile *a, const profile *b) {
    u32 i = 0, j = 0, common = 0, seen = 0;
    if (!a->readable || !b->readable || !a->tokens || !b->tokens) return 0;
    while (seen < SKETCH && (i < a->sketched || j < b->sketched)) {
        if (i < a->sketched && j < b->sketched && a->sketch[i] == b->sketch[j]) {
            common++;
            i++;
            j++;
        } else if (j >= b->sketched || (i < a->sketched && a->sketch[i] < b->sketch[j])) {
            i++;
        } else {
            j++;
        }
        seen++;
    }
    if (!seen) return 0;
    float small = (float)(a->tokens < b->tokens ? a->tokens : b->tokens);
    float large = (float)(a->tokens < b->tokens ? b->tokens : a->tokens);
    return (float)common / (float)seen * __builtin_sqrtf(small / large);
}

static void match_similar_neighbours(matcher *m, float least) {
    for (u32 i = 1; i < m->nn; i++) {
        if (!open(m, i) || !matched(m, i - 1)) continue;
        for (u32 d = 1; d < NEIGHBOURS; d++) {
            u32 j = m->refs[i - 1] + d;
            if (j >= m->on || m->used[j] || similarity(&m->np[i], &m->op[j]) < least) continue;
            match(m, i, j);
            break;
        }
    }
    for (u32 i = m->nn; i-- > 1;) {
        if (!open(m, i - 1) || !matched(m, i)) continue;
        for (u32 d = 1; d < NEIGHBOURS && d <= m->refs[i]; d++) {
            u32 j = m->refs[i] - d;
            if (m->used[j] || similarity(&m->np[i - 1], &m->op[j]) < least) continue;
            match(m, i - 1, j);
            break;
        }
    }
}

typedef struct {
    float score;
    u32 i, j;
} candidate;
typedef VEC(candidate) candidates;

static pair *window_index(const profile *f, u32 functions, u32 *n) {
    u64 all = 0;
    for (u32 j = 0; j < functions; j++) all += f[j].sketched;
    pair *p = allocate(all * sizeof(pair) + 1);
    *n = 0;
    for (u32 j = 0; j < functions; j++)
        for (u32 k = 0; k < f[j].sketched; k++) p[(*n)++] = (pair){f[j].sketch[k], j};
    sort_pairs(p, *n);
    return p;
}

static u32 first_at_least(const pair *p, u32 n, u64 key) {
    u32 lo = 0, hi = n;
    while (lo < hi) {
        u32 mid = (lo + hi) / 2;
        if (p[mid].key < key) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

/* The old functions that share most windows with the new one, at most CANDIDATES, best first. */
static u32 vote(const profile *f, const pair *index, u32 n, u32 *votes, u32s *touched, u32 *best) {
    touched->n = 0;
    for (u32 k = 0; k < f->sketched; k++) {
        u32 from = first_at_least(index, n, f->sketch[k]), to = from;
        while (to < n && to - from < COMMON && index[to].key == f->sketch[k]) to++;
        if (to - from >= COMMON) continue;
        for (; from < to; from++)
            if (votes[index[from].value]++ == 0) PUSH(*touched, index[from].value);
    }
    u32 found = 0;
    for (u32 i = 0; i < touched->n; i++) {
        u32 j = touched->at[i], at = found < CANDIDATES ? found++ : CANDIDATES;
        while (at > 0 && votes[best[at - 1]] < votes[j]) {
            if (at < CANDIDATES) best[at] = best[at - 1];
            at--;
        }
        if (at < CANDIDATES) best[at] = j;
    }
    for (u32 i = 0; i < touched->n; i++) votes[touched->at[i]] = 0;
    return found;
}

/* What is left: the most similar old function anywhere; one that is taken already may still serve as a repeated base. */
static void match_anywhere(matcher *m) {
    u32 n;
    pair *index = window_index(m->op, m->on, &n);
    u32 *votes = allocate((u64)m->on * 4 + 4), best[CANDIDATES + 1];
    candidate *best_of = allocate((u64)m->nn * sizeof(candidate) + 1);
    u32s touched = {0};
    candidates all = {0};
    for (u32 i = 0; i < m->nn; i++) {
        if (!open(m, i)) continue;
        u32 found = vote(&m->np[i], index, n, votes, &touched, best);
        for (u32 k = 0; k < found; k++) {
            u32 j = best[k];
            float s = similarity(&m->np[i], &m->op[j]);
            if (s > 0.2f && !m->used[j]) PUSH(all, ((candidate){s, i, j}));
            if (s > best_of[i].score) best_of[i] = (candidate){s, i, j};
        }
    }
    pair *order = allocate((u64)all.n * sizeof(pair) + 1);
    for (u32 k = 0; k < all.n; k++) order[k] = (pair){(u64)((1.0f - all.at[k].score) * 1e6f), k};
    sort_pairs(order, all.n);
    for (u32 k = 0; k < all.n; k++) {
        candidate c = all.at[order[k].value];
        if (open(m, c.i) && !m->used[c.j] && best_of[c.i].score <= c.score * 1.6f + 0.1f) match(m, c.i, c.j);
    }
    for (u32 i = 0; i < m->nn; i++)
        if (open(m, i) && best_of[i].score > 0.15f) m->refs[i] = best_of[i].j | REF_REPEATED;
}

void match_functions(const module *o, const module *n, u32 *refs) {
    matcher m = {o, n, profile_all(o), profile_all(n), o->bodies.n, n->bodies.n, refs, 0};
    m.used = allocate((u64)m.on + 1);
    for (u32 i = 0; i < m.nn; i++) refs[i] = m.np[i].readable ? REF_NONE : REF_RAW;
    for (u32 j = 0; j < m.on; j++) m.used[j] = !m.op[j].readable;
    pair *oh = sorted_hashes(m.op, m.on), *nh = sorted_hashes(m.np, m.nn);
    match_equal(&m, oh, m.on, nh, m.nn, 1);
    match_equal_neighbours(&m);
    match_names(&m);
    match_similar_neighbours(&m, 0.5f);
    match_similar_neighbours(&m, 0.25f);
    match_equal(&m, oh, m.on, nh, m.nn, 0);
    match_anywhere(&m);
}
