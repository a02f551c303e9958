/* What the coder of text is made of, which its two sides must do alike. Text is what a patch holds of the target's bytes
   as they are: inserted code in the base's numbering, new data. Much of it is in the base or was in the text before.

   As in LZMA (I. Pavlov), a text is a row of steps: a literal byte; a match, which copies from a new place; a repeat, which
   copies from one of the last four distances, or a single byte from the last. Places in the text are told by their
   distance, places in the base from the end of the last copy out of the base, for what belongs together lies together. */
#ifndef LOWCLOUD_TEXT_H
#define LOWCLOUD_TEXT_H

#include "range_coder.h"

enum step_kind { LITERAL, MATCH, REPEAT, STEP_KINDS };

enum {
    STATES = STEP_KINDS * STEP_KINDS, /* what the last two steps were */
    DISTANCES = 4,
    SHORTEST_MATCH = 2,
    LENGTH_SLOT_BITS = 7,
    PLACE_SLOT_BITS = 6,
    LENGTH_CLASSES = 4,
    INHERITED_SEEN = 2, /* what inherited odds are worth */
    MODELLED_BITS = 2, /* of a place's bits below its slot; the others are even */
};

typedef struct {
    bit_model slot[1 << LENGTH_SLOT_BITS], last_bit[1 << LENGTH_SLOT_BITS];
} length_model;

typedef struct {
    bit_model slot[LENGTH_CLASSES][1 << PLACE_SLOT_BITS], below[1 << PLACE_SLOT_BITS][1 << MODELLED_BITS];
} place_model;

typedef struct {
    bit_model is_copy[STATES], is_repeat[STATES], is_last[STATES], is_single[STATES], is_second[STATES], is_third[STATES];
    length_model match_length, repeat_length;
    bit_model from_base[LENGTH_CLASSES], backwards[LENGTH_CLASSES];
    place_model text_place, base_place;
    bit_model any[256];           /* literals, by their bits so far, */
    bit_model after[256][256];    /* also by the byte before, */
    bit_model instead[2][256];    /* and, after a copy, while they agree with the byte that would have continued it */
} text_model;

INLINE u32 next_state(u32 state, enum step_kind kind) { return (u32)kind * STEP_KINDS + state / STEP_KINDS; }
INLINE int after_copy(u32 state) { return state >= STEP_KINDS; }
INLINE u32 length_class(u32 len) { return len < 4 ? 0 : len < 6 ? 1 : len < 10 ? 2 : 3; }

INLINE u32 log2_of(u32 v) { return 31 - (u32)__builtin_clz(v); }

/* A slot tells how many bits a number has and the first of them: three for lengths, two for places. */
INLINE u32 length_slot(u32 v) { return v < 8 ? v : log2_of(v) * 4 - 4 + (v >> (log2_of(v) - 2) & 3); }
INLINE u32 length_bits_below(u32 slot) { return slot < 8 ? 0 : slot / 4 - 1; }
INLINE u32 place_slot(u32 v) { return v < 4 ? v : log2_of(v) * 2 + (v >> (log2_of(v) - 1) & 1); }
INLINE u32 place_bits_below(u32 slot) { return slot < 4 ? 0 : slot / 2 - 1; }

/* A byte that was not seen after this one before is as likely as it is anywhere. */
INLINE u32 literal_odds(const bit_model *after, const bit_model *any) { return after->seen ? after->odds : odds_of(any); }
INLINE void learn_literal(bit_model *after, bit_model *any, u32 bit) {
    if (!after->seen) *after = (bit_model){(u16)odds_of(any), INHERITED_SEEN};
    learn_bit(after, bit);
    learn_bit(any, bit);
}

#endif
