/* The decoder's state: the streams of a patch being read, the model in step with the encoder's, the target being written. */
#ifndef LOWCLOUD_DECODER_H
#define LOWCLOUD_DECODER_H

#include "streams.h"

typedef struct {
    u8 *at;
    u32 n, room;
} output;

enum {
    SLACK = 64, /* bytes behind the output's room that a short write may touch before its size is checked */
    SPARE = 16, /* a body may be written a few bytes too far before its size is known */
};

INLINE void need(const output *o, u32 n) {
    if (UNLIKELY(o->n > o->room || n > o->room - o->n)) fail(E_OUTPUT);
}

INLINE void out_bytes(output *o, const u8 *from, u32 n) {
    need(o, n);
    copy_bytes(o->at + o->n, from, n);
    o->n += n;
}

INLINE void out_number(output *o, u64 v) {
    need(o, 0);
    o->n += write_uleb(o->at + o->n, v);
    need(o, 0);
}

INLINE void out_padded_or_not(output *o, i64 v, int padded) {
    if (!padded) {
        out_number(o, (u64)v);
        return;
    }
    need(o, 5);
    o->n += write_padded(o->at + o->n, v);
}

/* How to step over an instruction of which nothing can change but by an exception: its first four bytes equal `want`
   where `mask` says so, and it is `len` bytes long. */
typedef struct {
    u32 mask, want, cls, len;
} quick_step;

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
    quick_step quick[2][256]; /* by opcode; the second where local indices differ */
    u32 new_groups; /* local groups of the body being written that are still to come */
    int new_head;   /* its first number is still to come */
} decoder;

INLINE u64 next_run(reader *r) { return r->p < r->end ? take_number(r) : ~0ull; }

/* The operand that the prediction got wrong. */
i64 read_exception(decoder *d, u32 cls, i64 v, i64 predicted);

INLINE i64 copy_operand(decoder *d, u32 cls, i64 v) {
    i64 predicted = predict(&d->m, cls, v), actual = predicted;
    if (LIKELY(d->run[cls] > 0)) d->run[cls]--;
    else actual = read_exception(d, cls, v, predicted);
    learn(&d->m, cls, v, predicted, actual);
    return actual;
}

/* Must precede the module's first function, once the model is open. */
void open_code(decoder *d);

/* Writes a function of the target with its size in front. `ref`: what it is made from (maps.h). */
void decode_sized_body(decoder *d, u32 ref, int padded);

#endif
