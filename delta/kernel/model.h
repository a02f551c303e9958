/* The predictions that encoder and decoder make in step: given an old operand, what will the new one be? Both sides call
   `predict` and then `learn` with the truth; only the wrong predictions travel. */
#ifndef LOWCLOUD_MODEL_H
#define LOWCLOUD_MODEL_H

#include "maps.h"

/* The streams of a patch, in the order in which they are written. The last three are bytes of the target as they are (code
   in the base's numbering), which the last stage compresses with the base at hand; the others are numbers. */
enum stream {
    S_META, S_REF, S_OPS, S_COPY, S_DELETE, S_INSERT, S_COVER, S_DATA_GAP, S_DATA_VALUE, S_NAME, S_FUNCTION_TYPE, S_SEGMENT,
    S_GAP, /* one per operand class: how many predictions in a row were right */
    S_VALUE = S_GAP + CLASSES, /* one per operand class: what was meant where one was wrong */
    S_LITERAL = S_VALUE + CLASSES, S_RAW, S_DATA_LITERAL,
    STREAMS,
    FIRST_TEXT = S_LITERAL
};

/* A value with a confidence. It is replaced when it has been wrong more often than right of late. */
typedef struct {
    u32 v;
    i32 trust;
} belief;
enum { MAX_TRUST = 3 };

INLINE void believe(belief *e, u32 actual) {
    if (e->v == actual) {
        if (e->trust < MAX_TRUST) e->trust++;
    } else if (--e->trust < 0) {
        e->v = actual;
        e->trust = 0;
    }
}

/* Old address -> belief about the new one; open addressing, grown when half full. */
typedef struct {
    u32 key; /* address + 1; 0 is free */
    belief belief;
} address_slot;

typedef struct {
    address_slot *slots;
    u32 n, mask;
} address_beliefs;

belief *address_belief_slow(address_beliefs *t, u32 key, int *is_new);

typedef struct {
    u32 generation;
    i32 shift;
} local_shift;

enum { LOCALS = 1 << 16, LOCAL_REACH = 24, GLOBALS = 1 << 16 };

typedef struct {
    belief *functions, *types, *small; /* small: i32 constants that may be table slots */
    u32 function_count, type_count, table_count;
    u32 *table; /* old table slot -> new */
    i32 *global_shifts;
    local_shift *local_shifts;
    u32 generation;
    int locals_differ; /* in this function */
    address_beliefs addresses;
    address_beliefs wide; /* Go: program counters in i64.const, by their low 32 bits */
    const address_map *map;
    i64 low, high, old_end;
    i64 bss_shift;
    int go;
    i64 old_imports;
    belief *hit; /* what the last prediction used */
} model;

void model_open(model *m, const module *o, const address_map *map, const label_map *functions, const label_map *types);
/* `base`: the slot of the first element. */
void model_set_table(model *m, u32 *table, u32 count);

INLINE void model_next_function(model *m) {
    m->generation++;
    m->locals_differ = 0;
}

INLINE belief *address_belief(address_beliefs *t, u32 key, int *is_new) {
    *is_new = 0;
    if (LIKELY(t->mask)) {
        u32 i = (u32)((key * 0x9E3779B97F4A7C15ull) >> 40) & t->mask;
        if (LIKELY(t->slots[i].key == key + 1)) return &t->slots[i].belief;
    }
    return address_belief_slow(t, key, is_new);
}

/* Go's program counters: (function index + 0x1000) << 16 | block; the constants are in maps.h. `*to`: the likely new one. */
INLINE int go_counter(const model *m, i64 v, i64 *to) {
    if (!m->go || v < GO_FIRST_PC) return 0;
    i64 f = (v >> 16) - GO_FIRST_FUNCTION + m->old_imports;
    if (f < 0 || f >= m->function_count) return 0;
    *to = ((i64)m->functions[f].v - m->old_imports + GO_FIRST_FUNCTION) << 16 | (v & 0xffff);
    return 1;
}

INLINE i64 predict_address(model *m, i64 v) {
    int is_new;
    belief *e = address_belief(&m->addresses, (u32)v, &is_new);
    if (UNLIKELY(is_new)) e->v = (u32)(v >= m->old_end ? v + m->bss_shift : address_forward(m->map, v));
    m->hit = e;
    return e->v;
}

INLINE i64 predict_local(const model *m, i64 v) {
    if (!m->locals_differ || (u64)v >= LOCALS) return v;
    for (i64 k = v, end = v - LOCAL_REACH; k >= 0 && k >= end; k--)
        if (m->local_shifts[k].generation == m->generation) return v + m->local_shifts[k].shift;
    return v;
}

INLINE i64 predict_i32(model *m, i64 signed_v) {
    i64 v = (i64)(u32)signed_v, to;
    if (v >= m->low && v < m->high) {
        if (m->go && go_counter(m, v, &to)) return (i32)to;
        return (i32)predict_address(m, v);
    }
    if (v < m->table_count) {
        m->hit = &m->small[v];
        return (i32)m->hit->v;
    }
    return m->go && go_counter(m, v, &to) ? (i32)to : signed_v;
}

/* Go keeps pointers and program counters in 64-bit constants. */
INLINE i64 predict_i64(model *m, i64 v) {
    if (!m->go || v < m->low || v > 0xffffffffll) return v;
    if (v < m->high && v < GO_FIRST_PC) return predict_address(m, v);
    int is_new;
    belief *e = address_belief(&m->wide, (u32)v, &is_new);
    if (is_new) {
        i64 to = v;
        go_counter(m, v, &to);
        e->v = (u32)to;
    }
    m->hit = e;
    return e->v;
}

/* What the new operand will be, given the old one. */
INLINE i64 predict(model *m, u32 cls, i64 v) {
    m->hit = 0;
    switch (cls) {
    case C_FUNC:
        if ((u64)v >= m->function_count) return v;
        m->hit = &m->functions[v];
        return m->hit->v;
    case C_TYPE:
        if ((u64)v >= m->type_count) return v;
        m->hit = &m->types[v];
        return m->hit->v;
    case C_GLOBAL: return (u64)v < GLOBALS ? v + m->global_shifts[v] : v;
    case C_LOCAL: return predict_local(m, v);
    case C_I32: return predict_i32(m, v);
    case C_OFFSET: return v >= m->low && v < m->high ? predict_address(m, v) : v;
    case C_I64: return predict_i64(m, v);
    default: return v;
    }
}

INLINE void learn_local(model *m, i64 v, i64 predicted, i64 actual) {
    if (predicted != actual) m->locals_differ = 1;
    if (m->locals_differ && (u64)v < LOCALS) m->local_shifts[v] = (local_shift){m->generation, (i32)(actual - v)};
}

/* Tells the model the truth. Must follow `predict` for the same operand. */
INLINE void learn(model *m, u32 cls, i64 v, i64 predicted, i64 actual) {
    switch (cls) {
    case C_I64:
        if (m->hit) believe(m->hit, (u32)actual);
        return;
    case C_FUNC: case C_TYPE:
        if (predicted != actual && m->hit) believe(m->hit, (u32)actual);
        return;
    case C_GLOBAL:
        if (predicted != actual && (u64)v < GLOBALS) m->global_shifts[v] = (i32)(actual - v);
        return;
    case C_LOCAL: learn_local(m, v, predicted, actual); return;
    case C_I32: case C_OFFSET:
        v = cls == C_I32 ? (i64)(u32)v : v;
        if (v >= m->old_end && v < m->high && (u32)actual != v) m->bss_shift = (i64)(u32)actual - v;
        if (m->hit) believe(m->hit, (u32)actual);
        return;
    default: return;
    }
}

/* Data: words of the old payload at equal alignment, predicted as addresses, table slots or program counters. */
enum { WORD_CONTEXTS = 32, WORD_PAGES = 1 << 16, WORD_NOT_SLOT = 64, WORD_PLAIN_BELOW = 2048, SMALL_SLOT = 48 };

typedef struct {
    i32 shift;
    i8 trust;
    i8 choice; /* below 0: believe the address map, else the shift of its page */
} page_shift;

typedef struct {
    i8 slot_score[WORD_CONTEXTS];
    int was_slot, before_was_slot;
    page_shift *pages;
} word_model;

typedef struct {
    i64 likely, other; /* the prediction and the second guess */
    i64 mapped;        /* of an address: what the address map and experience say */
    u32 context;       /* WORD_NOT_SLOT, or what is known around a possible table slot */
} word_guess;

void word_model_open(word_model *w);
word_guess predict_word(word_model *w, model *m, i64 v, i64 next);
/* Must follow `predict_word` for the same word. */
void learn_word(word_model *w, model *m, i64 v, i64 actual, word_guess g);

INLINE page_shift *page_of(word_model *w, i64 v) { return &w->pages[v >> 11 & (WORD_PAGES - 1)]; }

/* Words that are neither addresses nor table slots nor program counters: most of them. For these, when the prediction is
   right, this is what `predict_word` and `learn_word` come to. */
INLINE int is_plain_word(const model *m, u32 v) {
    return (v < m->low || v >= m->high) && (v == 0 || v >= m->table_count) && !(m->go && v >= GO_FIRST_PC);
}
INLINE u32 plain_word(word_model *w, u32 v) {
    w->before_was_slot = w->was_slot;
    w->was_slot = 0;
    if (v < WORD_PLAIN_BELOW) return v;
    page_shift *page = page_of(w, v);
    if (page->trust < MAX_TRUST) page->trust++;
    return v + (u32)page->shift;
}

/* How an exception's value is written: 0 the second guess, 1 the old value, else the distance to the prediction. */
INLINE u64 exception_code(i64 actual, i64 predicted, int has_other, i64 other, i64 old) {
    if (has_other && actual == other) return 0;
    if (actual == old) return 1;
    return zigzag(actual - predicted) + 1;
}
INLINE i64 exception_value(u64 code, i64 predicted, i64 other, i64 old) {
    if (code == 0) return other;
    if (code == 1) return old;
    return predicted + unzigzag(code - 1);
}

#endif
