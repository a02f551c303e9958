/* The reading side of text.h. Every step makes at least one byte, so time is bounded by the size that was announced,
   whatever the packed bytes are. The coder's state is local to the loop and the steps are inlined into it, so that the
   state stays in registers: a tenth less time. */
#include "text.h"

typedef struct {
    const u8 *base, *text; /* one row of bytes to the copies: the base up to `start`, then the text */
    u8 *to;
    u32 start, end, p;
    text_model m;
    u32 state, near;
    u32 distances[DISTANCES];
} text_decoder;

INLINE u32 read_length(range_decoder *d, length_model *m) {
    u32 slot = decode_tree(d, m->slot, LENGTH_SLOT_BITS), below = length_bits_below(slot);
    if (!below) return slot;
    u32 v = 4 | (slot & 3);
    for (u32 k = below; k-- > 1;) v = v * 2 + decode_with(d, EVEN_ODDS);
    return v * 2 + decode_bit(d, &m->last_bit[slot]);
}

INLINE u32 read_place(range_decoder *d, place_model *m, u32 class) {
    u32 slot = decode_tree(d, m->slot[class], PLACE_SLOT_BITS), below = place_bits_below(slot), v = 2 | (slot & 1), k = 0;
    if (slot < 4) return slot;
    for (u32 c = 1; k < below && k < MODELLED_BITS; k++) {
        u32 bit = decode_bit(d, &m->below[slot][c]);
        c = c * 2 + bit;
        v = v * 2 + bit;
    }
    for (; k < below; k++) v = v * 2 + decode_with(d, EVEN_ODDS);
    return v;
}

INLINE u32 byte_at(const text_decoder *t, u32 at) { return at < t->start ? t->base[at] : t->text[at - t->start]; }

INLINE void read_literal(text_decoder *t, range_decoder *in) {
    bit_model(*after)[256] = t->m.after;
    u32 before = t->p ? byte_at(t, t->p - 1) : 0, c = 1;
    if (after_copy(t->state) && t->distances[0]) {
        u32 expected = byte_at(t, t->p - t->distances[0]);
        for (u32 k = 8; k > 0 && c < 256;) {
            u32 other = expected >> --k & 1, bit = decode_bit(in, &t->m.instead[other][c]);
            c = c * 2 + bit;
            if (bit != other) break;
        }
    }
    while (c < 256) {
        bit_model *here = &after[before][c], *any = &t->m.any[c];
        u32 bit = decode_with(in, literal_odds(here, any));
        learn_literal(here, any, bit);
        c = c * 2 + bit;
    }
    t->to[t->p++ - t->start] = (u8)c;
    t->state = next_state(t->state, LITERAL);
}

static void copy_from(text_decoder *t, u32 from, u32 len, enum step_kind kind) {
    if (len > t->end - t->p || (from < t->start && len > t->start - from)) fail(E_STREAM);
    u8 *to = t->to + (t->p - t->start);
    if (from < t->start) {
        copy_bytes(to, t->base + from, len);
        t->near = from + len;
    } else {
        const u8 *source = t->text + (from - t->start);
        for (u32 i = 0; i < len; i++) to[i] = source[i]; /* it may overlap itself */
    }
    t->p += len;
    t->state = next_state(t->state, kind);
}

INLINE void read_match(text_decoder *t, range_decoder *in) {
    u32 len = read_length(in, &t->m.match_length), class, place, from;
    if (len > t->end - t->p) fail(E_STREAM);
    len += SHORTEST_MATCH;
    class = length_class(len);
    if (decode_bit(in, &t->m.from_base[class])) {
        u32 back = decode_bit(in, &t->m.backwards[class]);
        place = read_place(in, &t->m.base_place, class);
        if (back ? place >= t->near : place >= t->start - t->near) fail(E_STREAM);
        from = back ? t->near - 1 - place : t->near + place;
    } else {
        place = read_place(in, &t->m.text_place, class);
        if (place >= t->p - t->start) fail(E_STREAM);
        from = t->p - 1 - place;
    }
    for (u32 k = DISTANCES - 1; k > 0; k--) t->distances[k] = t->distances[k - 1];
    t->distances[0] = t->p - from;
    copy_from(t, from, len, MATCH);
}

INLINE void read_repeat(text_decoder *t, range_decoder *in) {
    text_model *m = &t->m;
    u32 s = t->state, rank = 0, len = 1, distance;
    if (!decode_bit(in, &m->is_last[s])) rank = decode_bit(in, &m->is_second[s]) ? 1 : decode_bit(in, &m->is_third[s]) ? 2 : 3;
    if (rank || !decode_bit(in, &m->is_single[s])) {
        len = read_length(in, &m->repeat_length);
        if (len > t->end - t->p) fail(E_STREAM);
        len += SHORTEST_MATCH;
    }
    distance = t->distances[rank];
    if (!distance) fail(E_STREAM);
    for (u32 k = rank; k > 0; k--) t->distances[k] = t->distances[k - 1];
    t->distances[0] = distance;
    copy_from(t, t->p - distance, len, REPEAT);
}

/* Puts the streams together: the numbers as they are and the text that `packed` holds; returns where they are. */
__attribute__((export_name("kernel_unpack_text"))) u32 kernel_unpack_text(const u8 *base, u32 base_bytes, const u8 *numbers,
                                                                           u32 numbers_bytes, const u8 *packed,
                                                                           u32 packed_bytes, u32 text_bytes) {
    text_decoder *t = allocate(sizeof(text_decoder));
    u8 *streams = allocate((u64)numbers_bytes + text_bytes + 16);
    copy_bytes(streams, numbers, numbers_bytes);
    t->base = base;
    t->text = t->to = streams + numbers_bytes;
    t->start = t->p = base_bytes;
    if (text_bytes > 0xffffffffu - base_bytes) fail(E_STREAM);
    t->end = base_bytes + text_bytes;
    range_decoder in;
    begin_decoding(&in, packed, packed_bytes);
    while (t->p < t->end) {
        u32 s = t->state;
        if (!decode_bit(&in, &t->m.is_copy[s])) read_literal(t, &in);
        else if (decode_bit(&in, &t->m.is_repeat[s])) read_repeat(t, &in);
        else read_match(t, &in);
    }
    if (!decoded_all(&in)) fail(E_STREAM);
    return (u32)streams;
}
