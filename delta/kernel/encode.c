/* The encoder: base and target in, streams out. Mirrors the decoder step by step; what both must do alike is in model.c,
   maps.c and streams.c. The host decodes the result again before it is shipped, so a form that is not reproduced exactly
   costs compression, never correctness. */
#include "align.h"
#include "cover.h"
#include "match.h"
#include "streams.h"

typedef struct {
    bytes s[STREAMS];
    u64 run[CLASSES];
    u64 data_run;
    model m;
    word_model words;
    address_map addresses;
    label_map functions, types;
    wide_map wide;
    module *o, *n;
    aligner align;
    tokens old_tokens, new_tokens;
    i64s labels;
    u32 *refs;
} encoder;

static void number(encoder *e, u32 stream, u64 v) { put_number(&e->s[stream], v); }

static i64 label_of(const encoder *e, u32 cls, i64 v) {
    switch (cls) {
    case C_FUNC:
        if ((u64)v >= e->functions.label_of_new.n) fail(E_MODULE);
        return e->functions.label_of_new.at[v];
    case C_TYPE: return (u64)v < e->types.label_of_new.n ? (i64)e->types.label_of_new.at[v] : v;
    case C_I32: {
        i64 x = address_label(&e->addresses, (u32)v);
        return x >= ESCAPED ? x : (i32)x;
    }
    case C_OFFSET: return address_label(&e->addresses, v);
    case C_I64: return e->n->go ? wide_label(&e->wide, v) : v;
    default: return v;
    }
}

static void label_tokens(encoder *e, const token *b, u32 n) {
    e->labels.n = 0;
    RESERVE(e->labels, n);
    for (u32 i = 0; i < n; i++) e->labels.at[i] = label_of(e, TOKEN_CLASS(b[i].op), b[i].v);
}

static void write_exception(encoder *e, u32 cls, i64 v, i64 predicted, i64 actual) {
    u64 x;
    switch (cls) {
    case C_FUNC: x = (u64)label_of(e, cls, actual); break;
    case C_TYPE: x = (u64)actual; break;
    case C_I32: case C_OFFSET: {
        int has_slot = cls == C_I32 && (u32)v < e->m.table_count;
        x = exception_code(actual, predicted, has_slot, has_slot ? (i32)e->m.table[(u32)v] : 0, v);
        break;
    }
    default: x = zigzag(actual - predicted);
    }
    number(e, S_VALUE + cls, x);
}

static void copy_operand(encoder *e, u32 cls, i64 v, i64 actual) {
    i64 predicted = predict(&e->m, cls, v);
    if (predicted == actual) {
        e->run[cls]++;
    } else {
        number(e, S_GAP + cls, e->run[cls]);
        e->run[cls] = 0;
        write_exception(e, cls, v, predicted, actual);
    }
    learn(&e->m, cls, v, predicted, actual);
}

static void copy_tokens(encoder *e, const token *a, const token *b, u32 n) {
    for (u32 i = 0; i < n; i++) {
        u32 cls = TOKEN_CLASS(a[i].op);
        if (cls != C_NONE) copy_operand(e, cls, a[i].v, b[i].v);
    }
}

/* Writes an instruction in the old numbering. A padded address whose label would fill five bytes anyway, or has none, is
   marked, so that the decoder pads it again. */
static void write_literal(encoder *e, const token *t, i64 label) {
    bytes *s = &e->s[S_LITERAL];
    const u8 *b = e->n->b + t->pos;
    u32 cls = TOKEN_CLASS(t->op), op = t->op, tail = t->operand_at + t->operand_len;
    if (cls == C_NONE) {
        put(s, b, t->len);
        return;
    }
    if ((op & OP_PADDED) && (cls == C_I32 || cls == C_OFFSET)) {
        u32 natural = cls == C_I32 ? sleb_bytes(label) : uleb_bytes((u64)label);
        if (label >= ESCAPED || natural >= 5) {
            label = (cls == C_I32 ? (i64)(u32)t->v : t->v) + ESCAPED_PADDED;
            op &= ~OP_PADDED;
        }
    }
    put(s, b, t->operand_at);
    RESERVE(*s, 10);
    s->n += write_operand(s->at + s->n, op, label);
    put(s, b + tail, t->len - tail);
}

static void write_inserted(encoder *e, const token *t, i64 label, enum list_kind kind) {
    if (kind == LIST_BODY) {
        write_literal(e, t, label);
    } else if (kind == LIST_ELEMENTS) {
        number(e, S_LITERAL, (u64)label);
    } else {
        PUSH(e->s[S_SEGMENT], (u8)((t->op >> 8 & 15) << 4 | (t->op & 15)));
        number(e, S_SEGMENT, (u64)t->v);
    }
}

static void encode_list(encoder *e, const tokens *a, const tokens *b, enum list_kind kind) {
    aligner *x = &e->align;
    model_next_function(&e->m);
    label_tokens(e, b->at, b->n);
    align(x, a->at, a->n, b->at, b->n, e->labels.at, kind);
    if (x->best.n == 0 || (x->best.n == 1 && x->best.at[0].copied == a->n && a->n == b->n)) {
        number(e, S_OPS, 0);
        copy_tokens(e, a->at, b->at, b->n);
        return;
    }
    number(e, S_OPS, x->best.n);
    u32 i = 0, j = 0;
    for (u32 k = 0; k < x->best.n; k++) {
        step s = x->best.at[k];
        number(e, S_COPY, s.copied);
        number(e, S_DELETE, s.deleted);
        number(e, S_INSERT, s.inserted);
        copy_tokens(e, a->at + i, b->at + j, s.copied);
        i += s.copied + s.deleted;
        j += s.copied;
        for (u32 end = j + s.inserted; j < end; j++) write_inserted(e, &b->at[j], e->labels.at[j], kind);
    }
}

static void encode_bodies(encoder *e) {
    for (u32 i = 0; i < e->n->bodies.n; i++) {
        range body = e->n->bodies.at[i];
        u32 ref = e->refs[i];
        if (ref == REF_RAW) {
            number(e, S_OPS, body.end - body.start);
            put(&e->s[S_RAW], e->n->b + body.start, body.end - body.start);
            continue;
        }
        if (!read_body(e->n, body, &e->new_tokens)) fail(E_MODULE);
        if (ref_is_old(ref)) {
            if (!read_body(e->o, e->o->bodies.at[ref & REF_INDEX], &e->old_tokens)) fail(E_MODULE);
            encode_list(e, &e->old_tokens, &e->new_tokens, LIST_BODY);
            continue;
        }
        label_tokens(e, e->new_tokens.at, e->new_tokens.n);
        number(e, S_OPS, e->new_tokens.n);
        for (u32 k = 0; k < e->new_tokens.n; k++) write_literal(e, &e->new_tokens.at[k], e->labels.at[k]);
    }
}

static void segment_tokens(const segments *s, tokens *out) {
    i64 expected = 0;
    out->n = 0;
    for (u32 i = 0; i < s->n; i++) {
        i64 addr = s->at[i].addr < 0 ? -1 : s->at[i].addr;
        PUSH(*out, ((token){.op = PSEUDO(PSEUDO_SEGMENT, s->at[i].flag) | C_MISC << OP_CLASS_SHIFT,
                            .v = segment_gap(&s->at[i], expected)}));
        PUSH(*out, ((token){.op = PSEUDO(PSEUDO_SEGMENT_BYTES, 0) | C_MISC << OP_CLASS_SHIFT, .v = s->at[i].len}));
        expected = addr + s->at[i].len;
    }
}

static void element_tokens(const u32s *s, tokens *out) {
    out->n = 0;
    for (u32 i = 0; i < s->n; i++)
        PUSH(*out, ((token){.op = PSEUDO(PSEUDO_ELEMENT, 0) | C_FUNC << OP_CLASS_SHIFT, .v = s->at[i]}));
}

/* The payloads with every word that looks like a data address made the same, so that moved pointers still match. */
static const u8 *without_addresses(const module *m) {
    enum { TELLING = 65536 }; /* lower addresses look like any number */
    static const u8 same[4] = {0xF7, 0xE9, 0xD3, 0xB5};
    if (m->low < TELLING || !m->pay.n) return m->pay.at;
    u8 *v = allocate(m->pay.n);
    __builtin_memcpy(v, m->pay.at, m->pay.n);
    for (u32 i = 0; i < m->segs.n; i++) {
        const segment *s = &m->segs.at[i];
        if (s->addr < 0) continue;
        for (u32 k = s->pay + (u32)(-s->addr & 3); k + 4 <= s->pay + s->len; k += 4) {
            i64 w = word_at(v + k);
            if (w >= m->low && w < m->data_end) __builtin_memcpy(v + k, same, 4);
        }
    }
    return v;
}

static void encode_covers(encoder *e, const covers *c) {
    u32 at = 0;
    i64 old_at = 0;
    number(e, S_COVER, c->n);
    for (u32 i = 0; i < c->n; i++) {
        number(e, S_COVER, c->at[i].n - at);
        number(e, S_COVER, c->at[i].len);
        number(e, S_COVER, zigzag((i64)c->at[i].o - old_at));
        at = c->at[i].n + c->at[i].len;
        old_at = (i64)c->at[i].o + c->at[i].len;
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

static void data_exception(encoder *e) {
    number(e, S_DATA_GAP, e->data_run);
    e->data_run = 0;
}

static void encode_cover(encoder *e, cover c) {
    const segments *segs = &e->n->segs, *old = &e->o->segs;
    const u8 *from = e->o->pay.at, *to = e->n->pay.at;
    u32 si = segment_of(segs, c.n), oi = segment_of(old, c.o), end = c.n + c.len;
    for (u32 i = c.n; i < end;) {
        u32 j = c.o + (i - c.n);
        while (si + 1 < segs->n && segs->at[si + 1].pay <= i) si++;
        while (oi + 1 < old->n && old->at[oi + 1].pay <= j) oi++;
        u64 na = start_of(&segs->at[si]) + i - segs->at[si].pay, oa = start_of(&old->at[oi]) + j - old->at[oi].pay;
        if (i + 4 > end || ((na | oa) & 3)) {
            if (from[j] == to[i]) {
                e->data_run++;
            } else {
                data_exception(e);
                PUSH(e->s[S_DATA_VALUE], to[i]);
            }
            i++;
            continue;
        }
        i64 v = word_at(from + j), actual = word_at(to + i), next = j + 8 <= e->o->pay.n ? word_at(from + j + 4) : 0;
        word_guess g = predict_word(&e->words, &e->m, v, next);
        if (g.likely == actual) {
            e->data_run++;
        } else {
            data_exception(e);
            number(e, S_DATA_VALUE, exception_code(actual, g.likely, 1, g.other, v));
        }
        learn_word(&e->words, &e->m, v, actual, g);
        i += 4;
    }
}

static void encode_data(encoder *e, const covers *c) {
    u32 at = 0;
    word_model_open(&e->words);
    for (u32 i = 0; i < c->n; i++) {
        put(&e->s[S_DATA_LITERAL], e->n->pay.at + at, c->at[i].n - at);
        encode_cover(e, c->at[i]);
        at = c->at[i].n + c->at[i].len;
    }
    put(&e->s[S_DATA_LITERAL], e->n->pay.at + at, e->n->pay.n - at);
}

static void encode_names(encoder *e) {
    const module *o = e->o, *n = e->n;
    for (u32 i = 0; i < n->names.n; i++) {
        range r = n->names.at[i], old = {0, 0};
        if (i < e->functions.label_of_new.n && e->functions.label_of_new.at[i] < o->names.n)
            old = o->names.at[e->functions.label_of_new.at[i]];
        const u8 *x = o->b + old.start, *y = n->b + r.start;
        u32 xn = old.end - old.start, yn = r.end - r.start, prefix = 0, suffix = 0;
        while (prefix < xn && prefix < yn && x[prefix] == y[prefix]) prefix++;
        if (prefix == xn && xn == yn) {
            number(e, S_NAME, 0);
            continue;
        }
        while (suffix < xn - prefix && suffix < yn - prefix && x[xn - 1 - suffix] == y[yn - 1 - suffix]) suffix++;
        number(e, S_NAME, prefix + 1);
        number(e, S_NAME, suffix);
        number(e, S_NAME, yn - prefix - suffix);
        put(&e->s[S_NAME], y + prefix, yn - prefix - suffix);
    }
}

static enum section_mode mode_of(const encoder *e, u32 index) {
    const module *o = e->o, *n = e->n;
    switch (n->secs.at[index].id) {
    case SECTION_CUSTOM: return n->names_ok && o->names_ok && n->names_section == index ? MODE_NAMES : MODE_RAW;
    case SECTION_FUNCTION: return MODE_FUNCTION_TYPES;
    case SECTION_ELEMENT: return n->elements_ok && o->elements_ok ? MODE_ELEMENTS : MODE_RAW;
    case SECTION_CODE: return MODE_CODE;
    case SECTION_DATA: return n->data_ok && o->data_ok ? MODE_DATA : MODE_RAW;
    default: return MODE_RAW;
    }
}

static void raw(encoder *e, u32 from, u32 to) { put(&e->s[S_RAW], e->n->b + from, to - from); }

static void encode_sections(encoder *e) {
    const module *n = e->n;
    number(e, S_META, n->secs.n);
    for (u32 i = 0; i < n->secs.n; i++) {
        section s = n->secs.at[i];
        enum section_mode mode = mode_of(e, i);
        number(e, S_META, s.id | (u32)mode << SECTION_MODE_SHIFT | (s.padded ? SECTION_PADDED : 0));
        number(e, S_META, s.end - s.start);
        if (mode == MODE_RAW) {
            raw(e, s.start, s.end);
        } else if (mode == MODE_ELEMENTS) {
            number(e, S_META, n->elements_head_end - s.start);
            raw(e, s.start, n->elements_head_end);
        } else if (mode == MODE_NAMES) {
            number(e, S_META, n->names_range.start - s.start);
            number(e, S_META, s.end - n->names_range.end);
            number(e, S_META, n->names.n);
            raw(e, s.start, n->names_range.start);
            raw(e, n->names_range.end, s.end);
        }
    }
}

static void encode_passive_addresses(encoder *e) {
    u32 count = 0;
    for (u32 i = 0; i < e->o->segs.n; i++) count += e->o->segs.at[i].flag && e->o->segs.at[i].addr >= 0;
    number(e, S_META, count);
    for (u32 i = 0; i < e->o->segs.n; i++) {
        if (!e->o->segs.at[i].flag || e->o->segs.at[i].addr < 0) continue;
        number(e, S_META, i);
        number(e, S_META, (u64)e->o->segs.at[i].addr);
    }
}

static void encode_refs(encoder *e) {
    i64 expected = 0;
    for (u32 i = 0; i < e->n->bodies.n; i++) {
        u32 ref = e->refs[i];
        if (!ref_is_old(ref)) {
            number(e, S_REF, ref == REF_NONE ? 0 : 1);
            continue;
        }
        i64 v = ref & REF_INDEX;
        number(e, S_REF, (zigzag(v - expected) << 1 | ((ref & REF_REPEATED) != 0)) + 2);
        expected = v + 1;
    }
}

static void encode_function_types(encoder *e) {
    for (u32 i = 0; i < e->n->function_types.n; i++) {
        u32 type = e->n->function_types.at[i];
        if (type >= e->types.label_of_new.n) fail(E_MODULE);
        u32 label = e->types.label_of_new.at[type], ref = e->refs[i];
        int same = ref_is_old(ref) && e->o->function_types.at[ref & REF_INDEX] == label;
        number(e, S_FUNCTION_TYPE, same ? 0 : (u64)label + 1);
    }
}

static void encode_elements(encoder *e) {
    u32s none = {0};
    const u32s *fresh = e->n->elements_ok && e->o->elements_ok ? &e->n->elements : &none;
    element_tokens(&e->o->elements, &e->old_tokens);
    element_tokens(fresh, &e->new_tokens);
    if (fresh != &none) encode_list(e, &e->old_tokens, &e->new_tokens, LIST_ELEMENTS);
    u32 slots;
    u32 *table = map_table(e->o, &e->functions, fresh, e->n->element_base, &slots);
    model_set_table(&e->m, table, slots);
}

static void encode_module(encoder *e, module *o, module *n) {
    covers c = {0};
    e->o = o;
    e->n = n;
    o->go = n->go; /* one way to read calls, which the patch names once */
    find_passive_addresses(o);
    find_passive_addresses(n);
    e->refs = allocate((u64)n->bodies.n * 4 + 4);
    match_functions(o, n, e->refs);
    int with_data = n->data_ok && o->data_ok && n->secs.n;
    if (with_data) find_covers(without_addresses(o), o->pay.n, without_addresses(n), n->pay.n, &c);
    number(e, S_META, (n->go ? MODULE_GO : 0) | (n->bodies_padded ? MODULE_BODIES_PADDED : 0) |
                          (n->elements_padded ? MODULE_ELEMENTS_PADDED : 0) | n->segment_padding << MODULE_SEGMENT_PADDING_SHIFT);
    number(e, S_META, n->bodies.n);
    number(e, S_META, n->element_base);
    encode_sections(e);
    encode_passive_addresses(e);
    encode_refs(e);
    e->functions = e->types = (label_map){0};
    e->addresses = (address_map){0};
    map_functions(&e->functions, o, n, n->bodies.n, e->refs);
    map_types(&e->types, o, n);
    segments no_segments = {0}, *segs = with_data ? &n->segs : &no_segments;
    if (with_data) {
        segment_tokens(&o->segs, &e->old_tokens);
        segment_tokens(&n->segs, &e->new_tokens);
        encode_list(e, &e->old_tokens, &e->new_tokens, LIST_SEGMENTS);
    }
    encode_covers(e, &c);
    map_addresses(&e->addresses, &c, o, segs);
    e->wide = (wide_map){&e->addresses, &e->functions, o->imports, n->imports};
    model_open(&e->m, o, &e->addresses, &e->functions, &e->types);
    encode_elements(e);
    encode_function_types(e);
    encode_bodies(e);
    if (with_data) encode_data(e, &c);
    if (n->names_ok && o->names_ok) encode_names(e);
}

static module *read_module(const u8 *file, range r) {
    module *m = allocate(sizeof(module));
    m->go = is_go(file + r.start, r.end - r.start);
    parse_module(m, file + r.start, r.end - r.start);
    return m;
}

/* The old module for a new one: of the same rank where there are equally many, else the one nearest in size. */
static u32 counterpart(const ranges *o, const ranges *n, u32 i) {
    if (o->n == n->n) return i;
    u32 size = n->at[i].end - n->at[i].start, best = 0;
    u64 least = ~0ull;
    for (u32 k = 0; k < o->n; k++) {
        i64 off = (i64)(o->at[k].end - o->at[k].start) - size;
        if ((u64)(off < 0 ? -off : off) < least) {
            least = (u64)(off < 0 ? -off : off);
            best = k;
        }
    }
    return best;
}

static void piece_between(encoder *e, const u8 *target, u32 from, u32 to) {
    number(e, S_META, 0);
    number(e, S_META, to - from);
    put(&e->s[S_RAW], target + from, to - from);
}

/* Makes the streams; returns where they are. Traps where either side holds no module that is understood. */
__attribute__((export_name("kernel_encode"))) u32 kernel_encode(const u8 *base, u32 base_bytes, const u8 *target,
                                                                 u32 target_bytes) {
    encoder *e = allocate(sizeof(encoder));
    ranges o = {0}, n = {0};
    bytes joined = {0};
    find_modules(base, base_bytes, &o);
    find_modules(target, target_bytes, &n);
    if (!o.n || !n.n) fail(E_MODULE);
    u32 gaps = 0, at = 0;
    for (u32 i = 0; i < n.n; at = n.at[i++].end) gaps += n.at[i].start > at;
    gaps += target_bytes > at;
    number(e, S_META, n.n + gaps);
    at = 0;
    for (u32 i = 0; i < n.n; i++) {
        if (n.at[i].start > at) piece_between(e, target, at, n.at[i].start);
        u32 k = counterpart(&o, &n, i);
        number(e, S_META, k + 1);
        encode_module(e, read_module(base, o.at[k]), read_module(target, n.at[i]));
        at = n.at[i].end;
    }
    if (target_bytes > at) piece_between(e, target, at, target_bytes);
    join_streams(e->s, STREAMS, FIRST_TEXT, &joined);
    return (u32)joined.at;
}
