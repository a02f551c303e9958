#include "align.h"

enum {
    SHORT_COPY = 8,   /* a copy of fewer tokens between two changes costs more as a step than as text */
    INNER_COPY = 4,   /* within a change, copies by opcode alone must be this long */
    SMALL_NUMBER = 1024,
};

/* Whether a copy step can turn x into y: only the operand may differ. */
static int copyable(const token *x, const token *y) {
    return x->op == y->op && (TOKEN_CLASS(x->op) != C_NONE || (x->v == y->v && x->len == y->len));
}

static int predicted_class(u32 cls) { return cls == C_FUNC || cls == C_TYPE || cls == C_I32 || cls == C_OFFSET; }

static int agrees_throughout(const token *a, u32 an, const token *b, u32 bn, const i64 *labels) {
    enum { TOLERANCE = 16, SHARE = 8 };
    u32 wrong = 0;
    if (an != bn) return 0;
    for (u32 i = 0; i < an; i++) {
        if (!copyable(&a[i], &b[i])) return 0;
        wrong += a[i].v != labels[i] && !predicted_class(TOKEN_CLASS(a[i].op));
    }
    return wrong * SHARE <= an + TOLERANCE;
}

static u64 op_key(const token *t) { return (u64)t->op * 0x9E3779B97F4A7C15ull; }
static u64 keyed(const token *t, i64 v) {
    u64 k = op_key(t) ^ (u64)v * 0xff51afd7ed558ccdull;
    return k << 7 | k >> 57;
}

static u64 exact_key(const token *t, i64 v, enum list_kind kind) {
    return keyed(t, kind == LIST_BODY && (t->op & OP_PSEUDO) ? 0 : v);
}

/* Equal where the instruction is the same and the operand is one that shifts. */
static u64 masked_key(const token *t) {
    u32 cls = TOKEN_CLASS(t->op);
    int small = (cls == C_I32 && (u32)t->v < SMALL_NUMBER) || (cls == C_OFFSET && t->v < SMALL_NUMBER);
    return keyed(t, cls == C_NONE || small ? t->v : 0);
}

static u64 opcode_key(const token *t) { return keyed(t, TOKEN_CLASS(t->op) == C_NONE ? t->v : 0); }

static void add_pairs(aligner *x, u32 i, u32 j, u32 n) {
    RESERVE(x->pairs, n);
    for (u32 k = 0; k < n; k++) PUSH(x->pairs, ((aligned){i + k, j + k}));
}

/* Looks inside a change for tokens that differ in their operand only. */
static void add_inner_pairs(aligner *x, const token *a, const token *b, u32 i, u32 j, step s) {
    int all = s.deleted == s.inserted;
    for (u32 k = 0; all && k < s.deleted; k++) all = copyable(&a[i + k], &b[j + k]);
    if (all) {
        add_pairs(x, i, j, s.deleted);
        return;
    }
    x->ak.n = x->bk.n = 0;
    RESERVE(x->ak, s.deleted);
    RESERVE(x->bk, s.inserted);
    for (u32 k = 0; k < s.deleted; k++) x->ak.at[k] = opcode_key(&a[i + k]);
    for (u32 k = 0; k < s.inserted; k++) x->bk.at[k] = opcode_key(&b[j + k]);
    compare(&x->diff, x->ak.at, s.deleted, x->bk.at, s.inserted, &x->inner);
    u32 di = 0, dj = 0;
    for (u32 k = 0; k < x->inner.n; k++) {
        step t = x->inner.at[k];
        int at_edge = di == 0 || (t.deleted == 0 && t.inserted == 0);
        if (t.copied >= INNER_COPY || (at_edge && t.copied)) add_pairs(x, i + di, j + dj, t.copied);
        di += t.copied + t.deleted;
        dj += t.copied + t.inserted;
    }
}

static void steps_from_pairs(aligner *x, u32 an, u32 bn, steps *out) {
    u32 i = 0, j = 0, copied = 0;
    out->n = 0;
    for (u32 k = 0; k <= x->pairs.n; k++) {
        aligned p = k < x->pairs.n ? x->pairs.at[k] : (aligned){an, bn};
        if (p.i == i && p.j == j && k < x->pairs.n) {
            copied++;
            i++;
            j++;
            continue;
        }
        u32 deleted = p.i - i, inserted = p.j - j;
        step *last = out->n ? &out->at[out->n - 1] : 0;
        if (last && copied < SHORT_COPY && k < x->pairs.n) {
            last->deleted += copied + deleted;
            last->inserted += copied + inserted;
        } else if (deleted || inserted || copied) {
            PUSH(*out, ((step){copied, deleted, inserted}));
        }
        copied = 0;
        i = p.i;
        j = p.j;
        if (k < x->pairs.n) k--; /* the pair itself is looked at again, as a copy */
    }
}

/* Turns what a comparison found into steps: changes are searched for copies with other operands, crumbs are dropped. */
static void refine(aligner *x, const token *a, u32 an, const token *b, u32 bn, enum list_kind kind, steps *out) {
    u32 i = 0, j = 0;
    x->pairs.n = 0;
    for (u32 k = 0; k < x->found.n; k++) {
        step s = x->found.at[k];
        add_pairs(x, i, j, s.copied);
        i += s.copied;
        j += s.copied;
        if (s.deleted && s.inserted && kind != LIST_ELEMENTS) add_inner_pairs(x, a, b, i, j, s);
        i += s.deleted;
        j += s.inserted;
    }
    steps_from_pairs(x, an, bn, out);
}

/* About how many bytes the steps take after compression. The weights are fitted to real modules. */
static float cost_of_copy(aligner *x, const token *a, const token *b, i64 label) {
    u32 cls = TOKEN_CLASS(a->op);
    switch (cls) {
    case C_NONE: return 0;
    case C_LOCAL: {
        if (a->v >= LOCALS) return 0;
        if (x->locals[a->v].generation != x->generation) {
            x->locals[a->v].generation = x->generation;
            x->locals[a->v].v = a->v;
        }
        if (x->locals[a->v].v == b->v) return 0;
        x->locals[a->v].v = b->v;
        return 1.6f;
    }
    case C_FUNC: case C_TYPE: case C_I32: case C_I64: case C_OFFSET: return label != a->v ? 2.5f : 0;
    default: return a->v != b->v ? 1.8f : 0;
    }
}

static float cost(aligner *x, const steps *s, const token *a, const token *b, const i64 *labels) {
    float sum = 0;
    u32 i = 0, j = 0;
    x->generation++;
    for (u32 k = 0; k < s->n; k++) {
        step t = s->at[k];
        for (u32 c = 0; c < t.copied; c++) sum += cost_of_copy(x, &a[i + c], &b[j + c], labels[j + c]);
        i += t.copied + t.deleted;
        j += t.copied + t.inserted;
        sum += 1.7f + 1.1f * (float)t.inserted;
    }
    return sum;
}

static void compare_exact(aligner *x, const token *a, u32 an, const token *b, u32 bn, const i64 *labels,
                          enum list_kind kind) {
    x->ak.n = x->bk.n = 0;
    RESERVE(x->ak, an);
    RESERVE(x->bk, bn);
    for (u32 i = 0; i < an; i++) x->ak.at[i] = exact_key(&a[i], a[i].v, kind);
    for (u32 j = 0; j < bn; j++) x->bk.at[j] = exact_key(&b[j], labels[j], kind);
    compare(&x->diff, x->ak.at, an, x->bk.at, bn, &x->found);
}

static void compare_masked(aligner *x, const token *a, u32 an, const token *b, u32 bn) {
    x->ak.n = x->bk.n = 0;
    RESERVE(x->ak, an);
    RESERVE(x->bk, bn);
    for (u32 i = 0; i < an; i++) x->ak.at[i] = masked_key(&a[i]);
    for (u32 j = 0; j < bn; j++) x->bk.at[j] = masked_key(&b[j]);
    compare(&x->diff, x->ak.at, an, x->bk.at, bn, &x->found);
}

void align(aligner *x, const token *a, u32 an, const token *b, u32 bn, const i64 *labels, enum list_kind kind) {
    if (!x->locals) x->locals = allocate(LOCALS * sizeof(*x->locals));
    x->best.n = 0;
    if (agrees_throughout(a, an, b, bn, labels)) {
        PUSH(x->best, ((step){an, 0, 0}));
        return;
    }
    compare_exact(x, a, an, b, bn, labels, kind);
    refine(x, a, an, b, bn, kind, &x->best);
    if (kind != LIST_BODY) return;
    compare_masked(x, a, an, b, bn);
    refine(x, a, an, b, bn, kind, &x->tried);
    if (cost(x, &x->tried, a, b, labels) < cost(x, &x->best, a, b, labels)) {
        steps other = x->best;
        x->best = x->tried;
        x->tried = other;
    }
}
