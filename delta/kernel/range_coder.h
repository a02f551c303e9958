/* An arithmetic coder of single bits, each with odds that adapt to what came before: two bounds of 32 bits whose common
   leading bytes are shifted out, as in M. Mahoney's lpaq. */
#ifndef LOWCLOUD_RANGE_CODER_H
#define LOWCLOUD_RANGE_CODER_H

#include "base.h"

/* How likely the next bit is a 1, in 65536ths, and from how many bits this was learned; all zero where from none. */
typedef struct {
    u16 odds;
    u16 seen;
} bit_model;

enum { EVEN_ODDS = 32768, LEAST_ODDS = 48, SEEN_LIMIT = 30 };

INLINE u32 odds_of(const bit_model *m) { return m->seen ? m->odds : EVEN_ODDS; }

/* A fresh model learns fast, an old one slowly: 65536 / (seen + 2). */
static const u16 learning_rates[SEEN_LIMIT + 1] = {
    32768, 21845, 16384, 13107, 10922, 9362, 8192, 7281, 6553, 5957, 5461, 5041, 4681, 4369, 4096, 3855,
    3640, 3449, 3276, 3120, 2978, 2849, 2730, 2621, 2520, 2427, 2340, 2259, 2184, 2114, 2048,
};

INLINE void learn_bit(bit_model *m, u32 bit) {
    u32 odds = odds_of(m), rate = learning_rates[m->seen];
    if (bit) odds += (65535 - LEAST_ODDS - odds) * rate >> 16;
    else odds -= (odds - LEAST_ODDS) * rate >> 16;
    m->odds = (u16)odds;
    if (m->seen < SEEN_LIMIT) m->seen++;
}

INLINE u32 middle_of(u32 low, u32 high, u32 odds) { return low + (u32)((u64)(high - low) * odds >> 16); }

typedef struct {
    u32 low, high;
    bytes out;
} range_encoder;

INLINE void encode_with(range_encoder *e, u32 bit, u32 odds) {
    u32 middle = middle_of(e->low, e->high, odds);
    if (bit) e->high = middle;
    else e->low = middle + 1;
    while (((e->low ^ e->high) >> 24) == 0) {
        PUSH(e->out, (u8)(e->high >> 24));
        e->low <<= 8;
        e->high = e->high << 8 | 255;
    }
}

INLINE void encode_bit(range_encoder *e, bit_model *m, u32 bit) {
    encode_with(e, bit, odds_of(m));
    learn_bit(m, bit);
}

/* `bits` bits from the highest on, each with a model of its own for what came before it; m[1 << bits]. */
INLINE void encode_tree(range_encoder *e, bit_model *m, u32 bits, u32 v) {
    for (u32 c = 1, k = bits; k-- > 0; c = c * 2 + (v >> k & 1)) encode_bit(e, &m[c], v >> k & 1);
}

/* Behind the end a reader finds zeros; the bounds differ in their leading byte, so that of the upper one is between. */
INLINE void end_encoding(range_encoder *e) { PUSH(e->out, (u8)(e->high >> 24)); }

typedef struct {
    u32 low, high, value;
    const u8 *at, *end;
    u32 beyond; /* bytes asked for behind the end */
} range_decoder;

enum { UNWRITTEN = 3 }; /* of the four bytes that a reader looks at, those behind the last one that was written */

/* A code that goes on for longer is damaged. Failing at once keeps a short one from taking the time of a long text. */
INLINE u32 next_coded_byte(range_decoder *d) {
    if (LIKELY(d->at < d->end)) return *d->at++;
    if (++d->beyond > UNWRITTEN) fail(E_STREAM);
    return 0;
}

INLINE void begin_decoding(range_decoder *d, const u8 *packed, u32 n) {
    *d = (range_decoder){0, 0xffffffffu, 0, packed, packed + n, 0};
    for (u32 k = 0; k < 4; k++) d->value = d->value << 8 | next_coded_byte(d);
}

/* Whether what was decoded is all that there is. */
INLINE int decoded_all(const range_decoder *d) { return d->beyond == UNWRITTEN; }

INLINE u32 decode_with(range_decoder *d, u32 odds) {
    u32 middle = middle_of(d->low, d->high, odds), bit = d->value <= middle;
    if (bit) d->high = middle;
    else d->low = middle + 1;
    while (((d->low ^ d->high) >> 24) == 0) {
        d->low <<= 8;
        d->high = d->high << 8 | 255;
        d->value = d->value << 8 | next_coded_byte(d);
    }
    return bit;
}

INLINE u32 decode_bit(range_decoder *d, bit_model *m) {
    u32 bit = decode_with(d, odds_of(m));
    learn_bit(m, bit);
    return bit;
}

INLINE u32 decode_tree(range_decoder *d, bit_model *m, u32 bits) {
    u32 c = 1;
    for (u32 k = 0; k < bits; k++) c = c * 2 + decode_bit(d, &m[c]);
    return c - (1u << bits);
}

#endif
