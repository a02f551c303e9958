/* The decoder: the streams and the base in, the target out. Runs over the old code once, writing runs of unchanged bytes
   as they are and stopping only where an operand differs. */
#include "streams.h"

typedef struct {
    u8 *at;
    u32 n, room;
} output;

enum {
    SLACK = 64, /* bytes behind the output's end that a single short write may touch */
    SPARE = 16, /* a body may be written a few bytes too far before its size is known */
};

static void need(const output *o, u32 n) {
    if (UNLIKELY(o->n > o->room || n > o->room - o->n)) fail(E_OUTPUT);
}

static void out_bytes(output *o, const u8 *from, u32 n) {
    need(o, n);
    copy_bytes(o->at + o->n, from, n);
    o->n += n;
}

static void out_number(output *o, u64 v) {
    need(o, 0);
    o->n += write_uleb(o->at + o->n, v);
    need(o, 0);
}

static void out_padded_or_not(output *o, i64 v, int padded) {
    if (!padded) {
        out_number(o, (u64)v);
        return;
    }
    need(o, 5);
    o->n += write_padded(o->at + o->n, v);
}

typedef struct {
    reader s[STREAMS];
    u64 run[CLASSES]; /* right predictions left before the next wrong one */
    u64 data_run;
    model m;
    word_model words;
    address_map addresses;
    label_map functions, types;
    wide_map wide;
    const module *o;
    output out;
    u32 new_groups; /* local groups of the body being written that are still to come */
    int new_head;   /* its first number is still to come */
} decoder;

static u64 next_run(reader *r) { return r->p < r->end ? take_number(r) : ~0ull; }

/* The operand that the prediction got wrong. */
static i64 read_exception(decoder *d, u32 cls, i64 v, i64 predicted) {
    u64 x = take_number(&d->s[S_VALUE + cls]);
    d->run[cls] = next_run(&d->s[S_GAP + cls]);
    switch (cls) {
    case C_FUNC: return label_to_new(&d->functions, x);
    case C_TYPE: return (i64)x;
    case C_I32: case C_OFFSET: {
        i64 slot = cls == C_I32 && (u32)v < d->m.table_count ? (i32)d->m.table[(u32)v] : 0;
        return exception_value(x, predicted, slot, v);
    }
    default: return predicted + unzigzag(x);
    }
}

INLINE i64 copy_operand(decoder *d, u32 cls, i64 v) {
    i64 predicted = predict(&d->m, cls, v), actual = predicted;
    if (LIKELY(d->run[cls] > 0)) d->run[cls]--;
    else actual = read_exception(d, cls, v, predicted);
    learn(&d->m, cls, v, predicted, actual);
    return actual;
}

static void out_token(output *o, const u8 *b, const token *t, u32 op, i64 v) {
    need(o, 0);
    if (TOKEN_CLASS(op) == C_NONE) {
        out_bytes(o, b + t->pos, t->len);
        return;
    }
    u8 *to = o->at + o->n;
    u32 n = 0, tail = t->operand_at + t->operand_len;
    for (; n < t->operand_at; n++) to[n] = b[t->pos + n];
    n += write_operand(to + n, op, v);
    o->n += n;
    out_bytes(o, b + t->pos + tail, t->len - tail);
}

typedef struct {
    const u8 *b;
    u32 p, end;
    i64 groups; /* of locals, still to be read; -1 before the head */
} old_body;

static void read_old(const decoder *d, old_body *c, token *t) {
    int ok;
    if (LIKELY(c->groups == 0)) {
        ok = read_instruction_inline(c->b, c->p, c->end, d->m.go, 0, t);
    } else if (c->groups < 0) {
        ok = read_local_groups(c->b, c->p, c->end, t);
        c->groups = ok ? t->v : 0;
    } else {
        ok = read_local_group(c->b, c->p, c->end, t);
        c->groups--;
    }
    if (UNLIKELY(!ok)) fail(E_STREAM);
    c->p += t->len;
}

static void note_head(decoder *d, const token *t, i64 v) {
    if (!(t->op & OP_PSEUDO)) return;
    if ((t->op >> 8 & 255) == PSEUDO_BODY) {
        d->new_groups = (u32)v;
        d->new_head = 0;
    } else if (d->new_groups) {
        d->new_groups--;
    }
}

/* Instructions whose operand, if any, is one byte that is right most of the time: what to check before stepping over. */
enum quick { Q_NO, Q_PLAIN, Q_LOCAL, Q_I32, Q_MEMORY, Q_LABEL, Q_BLOCK };
static const u8 quick_kind[256] = {
    [0x00] = Q_PLAIN, [0x01] = Q_PLAIN, [0x05] = Q_PLAIN, [0x0b] = Q_PLAIN, [0x0f] = Q_PLAIN, [0x1a] = Q_PLAIN,
    [0x1b] = Q_PLAIN, [0x45 ... 0xc4] = Q_PLAIN, [0x20 ... 0x22] = Q_LOCAL, [0x41] = Q_I32, [0x28 ... 0x3e] = Q_MEMORY,
    [0x0c] = Q_LABEL, [0x0d] = Q_LABEL, [0x02 ... 0x04] = Q_BLOCK,
};
enum { QUICK_TAIL = 3, SMALLEST_QUICK_ADDRESS = 128 };

/* Steps over one common instruction; returns its length, or 0 where the general path must look. */
INLINE u32 quick_step(decoder *d, const u8 *b, int quick_numbers) {
    u8 x = b[1];
    switch (quick_kind[b[0]]) {
    case Q_PLAIN: return 1;
    case Q_LOCAL:
        if (x >= 128 || d->m.locals_differ || d->run[C_LOCAL] == 0) return 0;
        d->run[C_LOCAL]--;
        return 2;
    case Q_I32:
        if (x >= 128 || !quick_numbers || d->run[C_I32] == 0) return 0;
        if (x < 64 && x < d->m.table_count) { /* 64..127 are negative */
            belief *e = &d->m.small[x];
            if (e->v != x) return 0;
            if (e->trust < MAX_TRUST) e->trust++;
        }
        d->run[C_I32]--;
        return 2;
    case Q_MEMORY:
        if (x >= 64 || b[2] >= 128 || !quick_numbers || d->run[C_OFFSET] == 0) return 0;
        d->run[C_OFFSET]--;
        return 3;
    case Q_LABEL:
        if (x >= 128 || d->run[C_LABEL] == 0) return 0;
        d->run[C_LABEL]--;
        return 2;
    case Q_BLOCK: return (x & 0xc0) == 0x40 && x != 0x63 && x != 0x64 ? 2 : 0;
    default: return 0;
    }
}

static void copy_tokens(decoder *d, old_body *c, u32 count) {
    const u8 *b = c->b;
    u32 run = c->p;
    int quick_numbers = d->m.low >= SMALLEST_QUICK_ADDRESS && !d->m.go;
    while (count > 0 && c->p < c->end) {
        count--;
        if (LIKELY(c->groups == 0 && c->p + QUICK_TAIL < c->end)) {
            u32 n = quick_step(d, b + c->p, quick_numbers);
            if (LIKELY(n)) {
                c->p += n;
                continue;
            }
        }
        token t;
        read_old(d, c, &t);
        u32 cls = TOKEN_CLASS(t.op);
        if (cls == C_NONE) continue;
        i64 v = copy_operand(d, cls, t.v);
        note_head(d, &t, v);
        if (v == t.v) continue;
        out_bytes(&d->out, b + run, t.pos - run);
        out_token(&d->out, b, &t, t.op, v);
        run = c->p;
    }
    out_bytes(&d->out, b + run, c->p - run);
}

/* The new operand of a written instruction; marks on addresses are taken off (`*op` may change with them). */
static i64 literal_operand(const decoder *d, u32 *op, i64 v) {
    switch (TOKEN_CLASS(*op)) {
    case C_FUNC: return label_to_new(&d->functions, (u64)v);
    case C_TYPE: return (u64)v < d->types.new_of_label.n ? (i64)label_to_new(&d->types, (u64)v) : v;
    case C_I32: case C_OFFSET: {
        if (v >= ESCAPED_PADDED && v < ESCAPED) *op |= OP_PADDED;
        int is_i32 = TOKEN_CLASS(*op) == C_I32;
        i64 y = address_of_label(&d->addresses, v >= ESCAPED_PADDED || !is_i32 ? v : (i64)(u32)v);
        return is_i32 ? (i32)y : y;
    }
    case C_I64: return d->m.go ? wide_of_label(&d->wide, v) : v;
    default: return v;
    }
}

static void write_literal(decoder *d) {
    reader *r = &d->s[S_LITERAL];
    token t;
    int ok;
    if (d->new_head) ok = read_local_groups(r->b, r->p, r->end, &t);
    else if (d->new_groups) ok = read_local_group(r->b, r->p, r->end, &t);
    else ok = read_instruction_inline(r->b, r->p, r->end, d->m.go, 0, &t);
    if (!ok) fail(E_STREAM);
    note_head(d, &t, t.v);
    r->p += t.len;
    u32 op = t.op;
    i64 v = literal_operand(d, &op, t.v);
    out_token(&d->out, r->b, &t, op, v);
}

static void decode_body(decoder *d, u32 ref) {
    u64 ops = take_number(&d->s[S_OPS]);
    if (ref == REF_RAW) {
        out_bytes(&d->out, take_bytes(&d->s[S_RAW], ops), (u32)ops);
        return;
    }
    model_next_function(&d->m);
    d->new_head = 1;
    d->new_groups = 0;
    if (ref == REF_NONE) {
        for (; ops > 0; ops--) write_literal(d);
        return;
    }
    range old = d->o->bodies.at[ref & REF_INDEX];
    old_body c = {d->o->b, old.start, old.end, -1};
    if (ops == 0) copy_tokens(d, &c, 0xffffffff);
    for (; ops > 0; ops--) {
        u32 copied = take_below(&d->s[S_COPY], 1ull << 32), deleted = take_below(&d->s[S_DELETE], 1ull << 32);
        u32 inserted = take_below(&d->s[S_INSERT], 1ull << 32);
        copy_tokens(d, &c, copied);
        for (token t; deleted > 0; deleted--) read_old(d, &c, &t);
        for (; inserted > 0; inserted--) write_literal(d);
    }
}

/* A body is written after room for its size, which the old body's size usually guesses right. */
static void decode_sized_body(decoder *d, u32 ref, int padded) {
    output *o = &d->out;
    u32 guess = ref_is_old(ref) ? d->o->bodies.at[ref & REF_INDEX].end - d->o->bodies.at[ref & REF_INDEX].start : 100;
    u32 room = padded ? 5 : uleb_bytes(guess), head = o->n;
    need(o, room);
    o->n += room;
    decode_body(d, ref);
    u32 size = o->n - head - room, used = padded ? 5 : uleb_bytes(size);
    if (used != room) {
        need(o, 5);
        __builtin_memmove(o->at + head + used, o->at + head + room, size);
        o->n = head + used + size;
    }
    if (padded) write_padded(o->at + head, size);
    else write_uleb(o->at + head, size);
}

/* Segments and elements: a list of numbers coded like a body, with the same copy, delete and insert steps. */
typedef struct {
    u32 op;
    i64 v;
} item;
typedef VEC(item) items;

static void copy_items(decoder *d, const items *old, u32 from, u32 n, items *out) {
    if (n > old->n - from) fail(E_STREAM);
    for (u32 i = from; i < from + n; i++)
        PUSH(*out, ((item){old->at[i].op, copy_operand(d, TOKEN_CLASS(old->at[i].op), old->at[i].v)}));
}

static item inserted_item(decoder *d, int segments_wanted) {
    if (!segments_wanted) return (item){0, label_to_new(&d->functions, take_number(&d->s[S_LITERAL]))};
    u32 kind = take_below(&d->s[S_SEGMENT], 256);
    return (item){PSEUDO(kind >> 4, kind & 15), (i64)take_number(&d->s[S_SEGMENT])};
}

static void decode_items(decoder *d, const items *old, int segments_wanted, items *out) {
    model_next_function(&d->m);
    u64 ops = take_number(&d->s[S_OPS]);
    u32 at = 0;
    if (ops == 0) copy_items(d, old, 0, old->n, out);
    for (; ops > 0; ops--) {
        u32 copied = take_below(&d->s[S_COPY], 1ull << 32), deleted = take_below(&d->s[S_DELETE], 1ull << 32);
        u64 inserted = take_number(&d->s[S_INSERT]);
        copy_items(d, old, at, copied, out);
        at += copied;
        if (deleted > old->n - at) fail(E_STREAM);
        at += deleted;
        for (; inserted > 0; inserted--) PUSH(*out, inserted_item(d, segments_wanted));
    }
}

static void decode_segments(decoder *d, segments *segs) {
    items old = {0}, fresh = {0};
    i64 expected = 0;
    for (u32 i = 0; i < d->o->segs.n; i++) {
        const segment *s = &d->o->segs.at[i];
        i64 addr = s->addr < 0 ? -1 : s->addr;
        PUSH(old, ((item){PSEUDO(PSEUDO_SEGMENT, s->flag) | C_MISC << OP_CLASS_SHIFT, segment_gap(s, expected)}));
        PUSH(old, ((item){PSEUDO(PSEUDO_SEGMENT_BYTES, 0) | C_MISC << OP_CLASS_SHIFT, s->len}));
        expected = addr + s->len;
    }
    decode_items(d, &old, 1, &fresh);
    if (fresh.n & 1) fail(E_STREAM);
    u64 pay = 0;
    expected = 0;
    for (u32 i = 0; i < fresh.n; i += 2) {
        i64 addr = expected + unzigzag((u64)fresh.at[i].v), len = fresh.at[i + 1].v;
        if (len < 0 || len > d->out.room || pay + (u64)len > d->out.room) fail(E_STREAM);
        PUSH(*segs, ((segment){fresh.at[i].op & 1, addr, (u32)pay, (u32)len}));
        pay += (u64)len;
        expected = addr + len;
    }
}

static void decode_covers(decoder *d, u32 pay_bytes, covers *out) {
    reader *r = &d->s[S_COVER];
    u64 n = take_number(r);
    u32 at = 0;
    i64 old_at = 0;
    for (; n > 0; n--) {
        u32 start = at + take_below(r, (u64)pay_bytes - at + 1);
        u32 len = take_below(r, (u64)pay_bytes - start + 1);
        i64 o = old_at + unzigzag(take_number(r));
        if (o < 0 || o > d->o->pay.n || len > d->o->pay.n - o) fail(E_STREAM);
        PUSH(*out, ((cover){start, (u32)o, len}));
        at = start + len;
        old_at = o + len;
    }
}

static u32 segment_of(const segments *s, u32 p) {
    u32 lo = 0, hi = s->n;
    while (lo < hi) {
        u32 mid = (lo + hi) / 2;
        if (s->at[mid].pay <= p) lo = mid + 1;
        else hi = mid;
    }
    return lo ? lo - 1 : 0;
}

static u64 start_of(const segment *s) { return s->addr < 0 ? 0 : (u64)s->addr; }

static void decode_cover(decoder *d, const segments *segs, u8 *pay, cover c) {
    const segments *old = &d->o->segs;
    const u8 *from = d->o->pay.at;
    u32 si = segment_of(segs, c.n), oi = segment_of(old, c.o), end = c.n + c.len;
    if (!segs->n || !old->n) return;
    for (u32 i = c.n; i < end;) {
        u32 j = c.o + (i - c.n);
        while (si + 1 < segs->n && segs->at[si + 1].pay <= i) si++;
        while (oi + 1 < old->n && old->at[oi + 1].pay <= j) oi++;
        u64 na = start_of(&segs->at[si]) + i - segs->at[si].pay, oa = start_of(&old->at[oi]) + j - old->at[oi].pay;
        if (i + 4 > end || ((na | oa) & 3)) {
            if (d->data_run > 0) {
                d->data_run--;
                pay[i] = from[j];
            } else {
                pay[i] = *take_bytes(&d->s[S_DATA_VALUE], 1);
                d->data_run = next_run(&d->s[S_DATA_GAP]);
            }
            i++;
            continue;
        }
        i64 v = word_at(from + j), next = j + 8 <= d->o->pay.n ? word_at(from + j + 4) : 0;
        word_guess g = predict_word(&d->words, &d->m, v, next);
        i64 actual = g.likely;
        if (d->data_run > 0) {
            d->data_run--;
        } else {
            actual = exception_value(take_number(&d->s[S_DATA_VALUE]), g.likely, g.other, v);
            d->data_run = next_run(&d->s[S_DATA_GAP]);
        }
        learn_word(&d->words, &d->m, v, actual, g);
        u32 w = (u32)actual;
        __builtin_memcpy(pay + i, &w, 4);
        i += 4;
    }
}

static u8 *decode_data(decoder *d, const segments *segs, u32 pay_bytes, const covers *c) {
    u8 *pay = allocate((u64)pay_bytes + SLACK);
    u32 at = 0;
    word_model_open(&d->words);
    for (u32 i = 0; i < c->n; i++) {
        copy_bytes(pay + at, take_bytes(&d->s[S_DATA_LITERAL], c->at[i].n - at), c->at[i].n - at);
        decode_cover(d, segs, pay, c->at[i]);
        at = c->at[i].n + c->at[i].len;
    }
    copy_bytes(pay + at, take_bytes(&d->s[S_DATA_LITERAL], pay_bytes - at), pay_bytes - at);
    return pay;
}

typedef struct {
    u8 id, mode, padded;
    u32 size;
    const u8 *head, *tail;
    u32 head_bytes, tail_bytes, count;
} new_section;

typedef struct {
    VEC(new_section) secs;
    u32 flags, functions, elements;
    int has_data, has_elements;
    module known; /* types and imports of the target */
    u32s refs, function_types;
    segments segs;
    covers cov;
    u32s new_elements;
    u32 pay_bytes, element_base;
} new_module;

static void read_sections(decoder *d, new_module *n) {
    reader *meta = &d->s[S_META], *raw = &d->s[S_RAW];
    u32 count = take_below(meta, 1 << 16);
    for (u32 i = 0; i < count; i++) {
        u32 form = take_below(meta, SECTION_FORM_END);
        new_section s = {.id = form & 15, .mode = form >> SECTION_MODE_SHIFT & 15, .padded = (form & SECTION_PADDED) != 0};
        s.size = take_below(meta, (u64)d->out.room + 1);
        if (s.mode == MODE_RAW) s.head_bytes = s.size;
        if (s.mode == MODE_ELEMENTS || s.mode == MODE_NAMES) s.head_bytes = take_below(meta, (u64)s.size + 1);
        if (s.mode == MODE_NAMES) {
            s.tail_bytes = take_below(meta, (u64)s.size + 1);
            s.count = take_below(meta, (u64)s.size + 1);
        }
        s.head = take_bytes(raw, s.head_bytes);
        s.tail = take_bytes(raw, s.tail_bytes);
        if (s.mode == MODE_RAW && (s.id == SECTION_TYPE || s.id == SECTION_IMPORT))
            parse_section(&n->known, s.id, s.head, 0, s.head_bytes, 0);
        n->has_data |= s.mode == MODE_DATA;
        n->has_elements |= s.mode == MODE_ELEMENTS;
        PUSH(n->secs, s);
    }
}

static void read_refs(decoder *d, new_module *n) {
    reader *r = &d->s[S_REF];
    i64 expected = 0;
    if (n->functions > d->out.room) fail(E_STREAM);
    RESERVE(n->refs, n->functions);
    for (u32 i = 0; i < n->functions; i++) {
        u64 x = take_number(r);
        if (x < 2) {
            PUSH(n->refs, x == 0 ? REF_NONE : REF_RAW);
            continue;
        }
        i64 v = expected + unzigzag((x - 2) >> 1);
        if (v < 0 || v >= d->o->bodies.n) fail(E_STREAM);
        PUSH(n->refs, (u32)v | ((x & 1) ? REF_REPEATED : 0));
        expected = v + 1;
    }
}

static void decode_function_types(decoder *d, new_module *n) {
    reader *r = &d->s[S_FUNCTION_TYPE];
    for (u32 i = 0; i < n->functions; i++) {
        u64 x = take_number(r);
        u64 label = x - 1;
        if (x == 0) {
            if (!ref_is_old(n->refs.at[i])) fail(E_STREAM);
            label = d->o->function_types.at[n->refs.at[i] & REF_INDEX];
        }
        PUSH(n->function_types, label_to_new(&d->types, label));
    }
}

static void decode_elements(decoder *d, new_module *n) {
    items old = {0}, fresh = {0};
    for (u32 i = 0; i < d->o->elements.n; i++)
        PUSH(old, ((item){PSEUDO(PSEUDO_ELEMENT, 0) | C_FUNC << OP_CLASS_SHIFT, d->o->elements.at[i]}));
    if (n->has_elements) decode_items(d, &old, 0, &fresh);
    for (u32 i = 0; i < fresh.n; i++) PUSH(n->new_elements, (u32)fresh.at[i].v);
    u32 slots;
    u32 *table = map_table(d->o, &d->functions, &n->new_elements, n->element_base, &slots);
    model_set_table(&d->m, table, slots);
}

static void write_names(decoder *d, const new_section *s) {
    reader *r = &d->s[S_NAME];
    output *out = &d->out;
    out_number(out, s->count);
    for (u32 i = 0; i < s->count; i++) {
        out_number(out, i);
        range old = {0, 0};
        if (i < d->functions.label_of_new.n && d->functions.label_of_new.at[i] < d->o->names.n)
            old = d->o->names.at[d->functions.label_of_new.at[i]];
        u32 old_bytes = old.end - old.start;
        u64 x = take_number(r);
        if (x == 0) {
            out_number(out, old_bytes);
            out_bytes(out, d->o->b + old.start, old_bytes);
            continue;
        }
        if (x - 1 > old_bytes) fail(E_STREAM);
        u32 prefix = (u32)x - 1, suffix = take_below(r, (u64)old_bytes - prefix + 1);
        u32 middle = take_below(r, (u64)out->room + 1);
        out_number(out, (u64)prefix + suffix + middle);
        out_bytes(out, d->o->b + old.start, prefix);
        out_bytes(out, take_bytes(r, middle), middle);
        out_bytes(out, d->o->b + old.end - suffix, suffix);
    }
}

static void write_data(decoder *d, const new_module *n, const u8 *pay) {
    output *out = &d->out;
    u32 padding = n->flags >> MODULE_SEGMENT_PADDING_SHIFT;
    out_number(out, n->segs.n);
    for (u32 i = 0; i < n->segs.n; i++) {
        const segment *s = &n->segs.at[i];
        need(out, 0);
        out->at[out->n++] = (u8)s->flag;
        if (s->flag == 0) {
            i64 a = (i32)(u32)s->addr;
            out->at[out->n++] = 0x41;
            out->n += padding & SEGMENT_ADDRESS_PADDED ? write_padded(out->at + out->n, a) : write_sleb(out->at + out->n, a);
            out->at[out->n++] = 0x0b;
            need(out, 0);
        }
        out_padded_or_not(out, s->len, (padding & SEGMENT_LENGTH_PADDED) != 0);
        out_bytes(out, pay + s->pay, s->len);
    }
}

static void write_section(decoder *d, const new_module *n, const new_section *s, const u8 *pay) {
    output *out = &d->out;
    need(out, 0);
    out->at[out->n++] = s->id;
    out_padded_or_not(out, s->size, s->padded);
    u32 start = out->n;
    out_bytes(out, s->head, s->head_bytes);
    switch (s->mode) {
    case MODE_RAW: break;
    case MODE_FUNCTION_TYPES:
        out_number(out, n->functions);
        for (u32 i = 0; i < n->functions; i++) out_number(out, n->function_types.at[i]);
        break;
    case MODE_ELEMENTS:
        out_number(out, n->new_elements.n);
        for (u32 i = 0; i < n->new_elements.n; i++)
            out_padded_or_not(out, n->new_elements.at[i], (n->flags & MODULE_ELEMENTS_PADDED) != 0);
        break;
    case MODE_CODE:
        out_number(out, n->functions);
        for (u32 i = 0; i < n->functions; i++)
            decode_sized_body(d, n->refs.at[i], (n->flags & MODULE_BODIES_PADDED) != 0);
        break;
    case MODE_DATA: write_data(d, n, pay); break;
    case MODE_NAMES: write_names(d, s); break;
    default: fail(E_STREAM);
    }
    out_bytes(out, s->tail, s->tail_bytes);
    if (out->n - start != s->size) fail(E_OUTPUT);
}

static void read_passive_addresses(decoder *d, module *o) {
    reader *meta = &d->s[S_META];
    for (u64 n = take_number(meta); n > 0; n--) {
        u32 i = take_below(meta, o->segs.n);
        o->segs.at[i].addr = (i64)take_number(meta);
    }
    set_address_range(o);
}

static void decode_module(decoder *d, module *o) {
    static const u8 preamble[8] = {0, 'a', 's', 'm', 1, 0, 0, 0};
    reader *meta = &d->s[S_META];
    new_module n = {0};
    d->o = o;
    n.flags = take_below(meta, MODULE_FLAGS_END);
    o->go = (n.flags & MODULE_GO) != 0;
    n.functions = take_below(meta, REF_INDEX);
    n.element_base = take_below(meta, 1 << 21);
    read_sections(d, &n);
    read_passive_addresses(d, o);
    read_refs(d, &n);
    d->functions = d->types = (label_map){0};
    d->addresses = (address_map){0};
    map_functions(&d->functions, o, &n.known, n.functions, n.refs.at);
    map_types(&d->types, o, &n.known);
    if (n.has_data) decode_segments(d, &n.segs);
    for (u32 i = 0; i < n.segs.n; i++) n.pay_bytes += n.segs.at[i].len;
    decode_covers(d, n.pay_bytes, &n.cov);
    map_addresses(&d->addresses, &n.cov, o, &n.segs);
    d->wide = (wide_map){&d->addresses, &d->functions, o->imports, n.known.imports};
    model_open(&d->m, o, &d->addresses, &d->functions, &d->types);
    decode_elements(d, &n);
    decode_function_types(d, &n);
    out_bytes(&d->out, preamble, 8);
    for (u32 i = 0; i < n.secs.n; i++) {
        const new_section *s = &n.secs.at[i];
        const u8 *pay = s->mode == MODE_DATA ? decode_data(d, &n.segs, n.pay_bytes, &n.cov) : 0;
        write_section(d, &n, s, pay);
    }
}

static void open_streams(decoder *d, const u8 *b, u32 n) {
    split_streams(b, n, d->s, STREAMS);
    for (u32 c = 0; c < CLASSES; c++) d->run[c] = next_run(&d->s[S_GAP + c]);
    d->data_run = next_run(&d->s[S_DATA_GAP]);
}

/* Rebuilds the target of `target_bytes` bytes; returns where it is. */
__attribute__((export_name("kernel_decode"))) u32 kernel_decode(const u8 *base, u32 base_bytes, const u8 *streams,
                                                                 u32 streams_bytes, u32 target_bytes) {
    decoder *d = allocate(sizeof(decoder));
    ranges modules = {0};
    d->out = (output){allocate((u64)target_bytes + SPARE + SLACK), 0, target_bytes + SPARE};
    open_streams(d, streams, streams_bytes);
    find_modules(base, base_bytes, &modules);
    for (u32 pieces = take_below(&d->s[S_META], 1 << 20); pieces > 0; pieces--) {
        u64 kind = take_number(&d->s[S_META]);
        if (kind == 0) {
            u64 size = take_number(&d->s[S_META]);
            out_bytes(&d->out, take_bytes(&d->s[S_RAW], size), (u32)size);
            continue;
        }
        if (kind > modules.n) fail(E_STREAM);
        range old = modules.at[kind - 1];
        module *o = allocate(sizeof(module));
        parse_module(o, base + old.start, old.end - old.start);
        decode_module(d, o);
    }
    if (d->out.n != target_bytes) fail(E_OUTPUT);
    return (u32)d->out.at;
}
