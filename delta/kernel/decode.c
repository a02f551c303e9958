/* The decoder: the streams and the base in, the target out. The order is that of the encoder, piece by piece and section
   by section; function bodies are in decode_code.c. */
#include "decoder.h"

/* Segments and elements: a list of numbers coded like a body, with the same copy, delete and insert steps. */
typedef struct {
    u32 op;
    i64 v;
} item;
typedef VEC(item) items;

static void copy_items(decoder *d, const items *old, u32 from, u32 n, items *out) {
    if (n > old->n - from) fail(E_STREAM);
    RESERVE(*out, n);
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
    RESERVE(*out, old->n);
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
    RESERVE(old, 2 * d->o->segs.n);
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
    RESERVE(*segs, fresh.n / 2);
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

/* Bytes that are in no aligned word of both sides. */
static void copy_data_bytes(decoder *d, u8 *to, const u8 *from, u32 n) {
    for (u32 i = 0; i < n;) {
        u32 right = d->data_run < n - i ? (u32)d->data_run : n - i;
        copy_bytes(to + i, from + i, right);
        d->data_run -= right;
        i += right;
        if (i == n) return;
        to[i++] = *take_bytes(&d->s[S_DATA_VALUE], 1);
        d->data_run = next_run(&d->s[S_DATA_GAP]);
    }
}

/* `known`: how many bytes of the old payload there are from `from` on. */
static u32 next_word(decoder *d, const u8 *from, u32 known) {
    i64 v = word_at(from), next = known >= 8 ? word_at(from + 4) : 0;
    word_guess g = predict_word(&d->words, &d->m, v, next);
    i64 actual = g.likely;
    if (d->data_run > 0) {
        d->data_run--;
    } else {
        actual = exception_value(take_number(&d->s[S_DATA_VALUE]), g.likely, g.other, v);
        d->data_run = next_run(&d->s[S_DATA_GAP]);
    }
    learn_word(&d->words, &d->m, v, actual, g);
    return (u32)actual;
}

static void copy_data_words(decoder *d, u8 *to, const u8 *from, u32 words, u32 known) {
    for (u32 i = 0; i < 4 * words; i += 4) {
        u32 v = word_at(from + i);
        if (LIKELY(d->data_run > 0 && is_plain_word(&d->m, v))) {
            d->data_run--;
            v = plain_word(&d->words, v);
        } else {
            v = next_word(d, from + i, known - i);
        }
        __builtin_memcpy(to + i, &v, 4);
    }
}

/* Bytes from where the segments of both sides are known: words where both addresses are aligned, single bytes before. A
   word may reach into the next segment, but not beyond the cover. */
static u32 decode_stretch(decoder *d, u8 *to, const u8 *from, u64 new_address, u64 old_address, u32 in_segments,
                          u32 in_cover, u32 known) {
    u32 i = (u32)(-new_address & 3);
    if (((new_address ^ old_address) & 3) || i >= in_segments) i = in_segments;
    copy_data_bytes(d, to, from, i);
    if (i == in_segments) return i;
    u32 words = (in_segments - i + 3) / 4, most = (in_cover - i) / 4;
    if (words > most) words = most;
    copy_data_words(d, to + i, from + i, words, known - i);
    i += 4 * words;
    if (i >= in_segments) return i;
    copy_data_bytes(d, to + i, from + i, in_segments - i);
    return in_segments;
}

static u32 end_of(const segments *s, u32 i, u32 end) { return i + 1 < s->n ? s->at[i + 1].pay : end; }

static void decode_cover(decoder *d, const segments *segs, u8 *pay, cover c) {
    const segments *old = &d->o->segs;
    if (!segs->n || !old->n) return;
    u32 si = segment_of(segs, c.n), oi = segment_of(old, c.o);
    for (u32 i = 0; i < c.len;) {
        u32 at = c.n + i, from = c.o + i, in_segments = c.len - i;
        while (end_of(segs, si, ~0u) <= at) si++;
        while (end_of(old, oi, ~0u) <= from) oi++;
        if (end_of(segs, si, ~0u) - at < in_segments) in_segments = end_of(segs, si, ~0u) - at;
        if (end_of(old, oi, ~0u) - from < in_segments) in_segments = end_of(old, oi, ~0u) - from;
        u64 new_address = start_of(&segs->at[si]) + at - segs->at[si].pay;
        u64 old_address = start_of(&old->at[oi]) + from - old->at[oi].pay;
        i += decode_stretch(d, pay + at, d->o->pay.at + from, new_address, old_address, in_segments, c.len - i,
                            d->o->pay.n - from);
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
    RESERVE(old, d->o->elements.n);
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
    open_code(d);
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
