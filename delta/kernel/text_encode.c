/* The writing side of text.h. Plans the cheapest row of steps for a block of text by dynamic programming over the prices
   that the models have at its beginning, writes it, and goes on with the models that this left. */
#include "text.h"
#include "text_find.h"

enum {
    FIRST_BLOCK = 1 << 11, /* short at first, while nothing is known of prices */
    MOST_BLOCK = 1 << 16,
    LONG_ENOUGH = 96,      /* a copy of that length is taken */
    PRICED_LENGTHS = 1024,
    PRICE_OF_BIT = 16,
    UNREACHED = 1 << 30,
};

/* The cheapest known way to a byte of the block: the step that ends before it, and what follows from the way. */
typedef struct {
    u32 cost;
    u32 len, from;
    u8 kind, rank; /* rank: which of the last distances */
    u8 state;
    u32 distances[DISTANCES];
    u32 near; /* the end of the last copy out of the base */
} node;

typedef struct {
    finder find;
    text_model m;
    range_encoder out;
    node *nodes;
    u32s way;
    u32 length_prices[2][PRICED_LENGTHS]; /* of matches, of repeats */
    u32 text_prices[LENGTH_CLASSES][1 << PLACE_SLOT_BITS], base_prices[LENGTH_CLASSES][1 << PLACE_SLOT_BITS];
} text_encoder;

enum { PRICE_STEP = 16, PRICES = 65536 / PRICE_STEP };
static u16 prices[PRICES]; /* of a bit by its odds, in 16ths of a bit */

/* -log2 by squaring: each time the number of bits that overflow is one more bit of the logarithm (LZMA does it so). */
static void fill_prices(void) {
    for (u32 i = 0; i < PRICES; i++) {
        u64 x = i * PRICE_STEP + PRICE_STEP / 2;
        u32 bits = 0;
        for (u32 k = 0; k < 4; k++) {
            x *= x;
            for (bits *= 2; x >= 65536; x >>= 1) bits++;
        }
        prices[i] = (u16)(15 * 16 + 1 - bits);
    }
}

INLINE u32 odds_price(u32 odds, u32 bit) { return prices[(bit ? odds : 65535 - odds) / PRICE_STEP]; }
INLINE u32 price(const bit_model *m, u32 bit) { return odds_price(odds_of(m), bit); }

static u32 tree_price(const bit_model *m, u32 bits, u32 v) {
    u32 sum = 0;
    for (u32 c = 1, k = bits; k-- > 0; c = c * 2 + (v >> k & 1)) sum += price(&m[c], v >> k & 1);
    return sum;
}

static u32 length_price(const length_model *m, u32 v) {
    u32 slot = length_slot(v), below = length_bits_below(slot), sum = tree_price(m->slot, LENGTH_SLOT_BITS, slot);
    return below ? sum + (below - 1) * PRICE_OF_BIT + price(&m->last_bit[slot], v & 1) : sum;
}

static void write_length(range_encoder *e, length_model *m, u32 v) {
    u32 slot = length_slot(v), below = length_bits_below(slot);
    encode_tree(e, m->slot, LENGTH_SLOT_BITS, slot);
    for (u32 k = below; k-- > 1;) encode_with(e, v >> k & 1, EVEN_ODDS);
    if (below) encode_bit(e, &m->last_bit[slot], v & 1);
}

static void write_place(range_encoder *e, place_model *m, u32 class, u32 v) {
    u32 slot = place_slot(v), below = place_bits_below(slot), k = below;
    encode_tree(e, m->slot[class], PLACE_SLOT_BITS, slot);
    for (u32 c = 1; k > 0 && below - k < MODELLED_BITS; c = c * 2 + (v >> k & 1)) {
        k--;
        encode_bit(e, &m->below[slot][c], v >> k & 1);
    }
    while (k-- > 0) encode_with(e, v >> k & 1, EVEN_ODDS);
}

static void refresh_prices(text_encoder *t) {
    const text_model *m = &t->m;
    for (u32 v = 0; v < PRICED_LENGTHS; v++) {
        t->length_prices[0][v] = length_price(&m->match_length, v);
        t->length_prices[1][v] = length_price(&m->repeat_length, v);
    }
    for (u32 c = 0; c < LENGTH_CLASSES; c++) {
        for (u32 s = 0; s < 1 << PLACE_SLOT_BITS; s++) {
            u32 below = place_bits_below(s) * PRICE_OF_BIT;
            t->text_prices[c][s] = price(&m->from_base[c], 0) + tree_price(m->text_place.slot[c], PLACE_SLOT_BITS, s) + below;
            t->base_prices[c][s] = price(&m->from_base[c], 1) + tree_price(m->base_place.slot[c], PLACE_SLOT_BITS, s) +
                                   PRICE_OF_BIT + below;
        }
    }
}

INLINE u32 price_of_length(const text_encoder *t, int repeat, u32 len) {
    u32 v = len - SHORTEST_MATCH;
    return t->length_prices[repeat][v < PRICED_LENGTHS ? v : PRICED_LENGTHS - 1];
}

INLINE u32 forwards(u32 from, u32 near) { return from >= near ? from - near : near - from - 1; }

INLINE u32 price_of_place(const text_encoder *t, u32 p, u32 from, u32 near, u32 len) {
    if (from >= t->find.start) return t->text_prices[length_class(len)][place_slot(p - from - 1)];
    return t->base_prices[length_class(len)][place_slot(forwards(from, near))];
}

/* The byte that would continue the last copy, or -1 where the step before was a literal or there is none. */
static i32 continued(const text_encoder *t, u32 p, const node *x) {
    return after_copy(x->state) && x->distances[0] ? t->find.b[p - x->distances[0]] : -1;
}

static u32 price_of_literal(const text_encoder *t, u32 p, i32 expected) {
    u32 x = t->find.b[p], before = p ? t->find.b[p - 1] : 0, c = 1, k = 8, sum = 0;
    while (expected >= 0 && k > 0) {
        u32 bit = x >> --k & 1, other = (u32)expected >> k & 1;
        sum += price(&t->m.instead[other][c], bit);
        c = c * 2 + bit;
        if (bit != other) break;
    }
    while (k-- > 0) {
        u32 bit = x >> k & 1;
        sum += odds_price(literal_odds(&t->m.after[before][c], &t->m.any[c]), bit);
        c = c * 2 + bit;
    }
    return sum;
}

static void write_literal_byte(text_encoder *t, u32 p, i32 expected) {
    u32 x = t->find.b[p], before = p ? t->find.b[p - 1] : 0, c = 1, k = 8;
    while (expected >= 0 && k > 0) {
        u32 bit = x >> --k & 1, other = (u32)expected >> k & 1;
        encode_bit(&t->out, &t->m.instead[other][c], bit);
        c = c * 2 + bit;
        if (bit != other) break;
    }
    while (k-- > 0) {
        u32 bit = x >> k & 1;
        bit_model *after = &t->m.after[before][c], *any = &t->m.any[c];
        encode_with(&t->out, bit, literal_odds(after, any));
        learn_literal(after, any, bit);
        c = c * 2 + bit;
    }
}

static u32 price_of_rank(const text_model *m, u32 s, u32 rank) {
    if (rank == 0) return price(&m->is_last[s], 1) + price(&m->is_single[s], 0);
    u32 sum = price(&m->is_last[s], 0) + price(&m->is_second[s], rank == 1);
    return rank == 1 ? sum : sum + price(&m->is_third[s], rank == 2);
}

INLINE void arrive(node *x, u32 cost, enum step_kind kind, u32 rank, u32 len, u32 from) {
    if (cost >= x->cost) return;
    x->cost = cost;
    x->kind = (u8)kind;
    x->rank = (u8)rank;
    x->len = len;
    x->from = from;
}

static void move_to_front(node *x, const node *y, u32 rank, u32 distance) {
    for (u32 k = 0; k < DISTANCES; k++) x->distances[k] = y->distances[k];
    for (u32 k = rank; k > 0; k--) x->distances[k] = y->distances[k - 1];
    x->distances[0] = distance;
}

/* What follows from the way to a node, once no cheaper one can be found. `p`: its place. */
static void settle(text_encoder *t, node *x, u32 p) {
    const node *y = x - x->len;
    x->state = (u8)next_state(y->state, x->kind);
    x->near = y->near;
    if (x->kind == LITERAL) {
        move_to_front(x, y, 0, y->distances[0]);
        return;
    }
    if (x->kind == MATCH) move_to_front(x, y, DISTANCES - 1, p - x->len - x->from);
    else move_to_front(x, y, x->rank, y->distances[x->rank]);
    if (x->from < t->find.start) x->near = x->from + x->len;
}

/* Steps from a node by the last distances; returns the longest. */
static u32 try_repeats(text_encoder *t, node *x, u32 p, u32 most, u32 cost) {
    u32 s = x->state, longest = 0;
    for (u32 rank = 0; rank < DISTANCES; rank++) {
        u32 d = x->distances[rank];
        if (!d) continue;
        u32 from = p - d, len = equal_bytes(t->find.b + from, t->find.b + p, copy_room(&t->find, from, most));
        if (rank == 0 && len)
            arrive(x + 1, cost + price(&t->m.is_last[s], 1) + price(&t->m.is_single[s], 1), REPEAT, 0, 1, from);
        if (len > longest) longest = len;
        u32 so_far = cost + price_of_rank(&t->m, s, rank);
        for (u32 l = len > LONG_ENOUGH ? len : SHORTEST_MATCH; l <= len; l++)
            arrive(x + l, so_far + price_of_length(t, 1, l), REPEAT, rank, l, from);
    }
    return longest;
}

static u32 try_matches(text_encoder *t, node *x, u32 p, u32 most, u32 cost) {
    u32 longest = 0;
    find_occurrences(&t->find, p, x->near);
    for (u32 k = 0; k < t->find.found.n; k++) {
        occurrence o = t->find.found.at[k];
        u32 len = o.len < most ? o.len : most;
        if (len > longest) longest = len;
        for (u32 l = len > LONG_ENOUGH ? len : SHORTEST_MATCH; l <= len; l++)
            arrive(x + l, cost + price_of_length(t, 0, l) + price_of_place(t, p, o.from, x->near, l), MATCH, 0, l, o.from);
    }
    return longest;
}

static void plan_block(text_encoder *t, u32 first, u32 n) {
    const text_model *m = &t->m;
    for (u32 i = 1; i <= n; i++) t->nodes[i].cost = UNREACHED;
    for (u32 i = 0; i < n; i++) {
        node *x = &t->nodes[i];
        u32 p = first + i;
        if (i) settle(t, x, p);
        u32 s = x->state, copy = x->cost + price(&m->is_copy[s], 1);
        u32 literal = x->cost + price(&m->is_copy[s], 0) + price_of_literal(t, p, continued(t, p, x));
        arrive(x + 1, literal, LITERAL, 0, 1, 0);
        u32 longest = try_repeats(t, x, p, n - i, copy + price(&m->is_repeat[s], 1));
        u32 matched = longest > LONG_ENOUGH ? 0 : try_matches(t, x, p, n - i, copy + price(&m->is_repeat[s], 0));
        finder_enter(&t->find, p);
        if (matched > longest) longest = matched;
        if (longest <= LONG_ENOUGH) continue;
        while (--longest > 0) finder_enter(&t->find, first + ++i); /* what begins inside of it is not looked at */
    }
    settle(t, &t->nodes[n], first + n);
}

static void write_step(text_encoder *t, u32 p, const node *x, const node *to) {
    text_model *m = &t->m;
    range_encoder *e = &t->out;
    u32 s = x->state, class = length_class(to->len);
    encode_bit(e, &m->is_copy[s], to->kind != LITERAL);
    if (to->kind == LITERAL) {
        write_literal_byte(t, p, continued(t, p, x));
        return;
    }
    encode_bit(e, &m->is_repeat[s], to->kind == REPEAT);
    if (to->kind == MATCH) {
        u32 from_base = to->from < t->find.start;
        write_length(e, &m->match_length, to->len - SHORTEST_MATCH);
        encode_bit(e, &m->from_base[class], from_base);
        if (from_base) encode_bit(e, &m->backwards[class], to->from < x->near);
        if (from_base) write_place(e, &m->base_place, class, forwards(to->from, x->near));
        else write_place(e, &m->text_place, class, p - to->from - 1);
        return;
    }
    encode_bit(e, &m->is_last[s], to->rank == 0);
    if (to->rank == 0) {
        encode_bit(e, &m->is_single[s], to->len == 1);
        if (to->len == 1) return;
    } else {
        encode_bit(e, &m->is_second[s], to->rank == 1);
        if (to->rank > 1) encode_bit(e, &m->is_third[s], to->rank == 2);
    }
    write_length(e, &m->repeat_length, to->len - SHORTEST_MATCH);
}

static void write_block(text_encoder *t, u32 first, u32 n) {
    t->way.n = 0;
    for (u32 i = n; i > 0; i -= t->nodes[i].len) PUSH(t->way, i);
    u32 at = 0;
    for (u32 k = t->way.n; k-- > 0; at = t->way.at[k]) write_step(t, first + at, &t->nodes[at], &t->nodes[t->way.at[k]]);
}

static u32 packed_bytes;
__attribute__((export_name("kernel_packed_bytes"))) u32 kernel_packed_bytes(void) { return packed_bytes; }

/* Packs a text whose copies may reach into the base; returns where the result is. `depth`: how many occurrences of each
   place are looked at. */
__attribute__((export_name("kernel_pack_text"))) u32 kernel_pack_text(const u8 *base, u32 base_bytes, const u8 *text,
                                                                       u32 text_bytes, u32 depth) {
    text_encoder *t = allocate(sizeof(text_encoder));
    u8 *joined = allocate((u64)base_bytes + text_bytes + 8);
    __builtin_memcpy(joined, base, base_bytes);
    __builtin_memcpy(joined + base_bytes, text, text_bytes);
    u32 end = base_bytes + text_bytes, block = FIRST_BLOCK;
    fill_prices();
    finder_open(&t->find, joined, base_bytes, end, depth);
    t->nodes = allocate((MOST_BLOCK + 1) * sizeof(node));
    t->out.high = 0xffffffffu;
    for (u32 p = base_bytes; p < end;) {
        u32 n = end - p < block ? end - p : block;
        refresh_prices(t);
        t->nodes[0].cost = 0;
        plan_block(t, p, n);
        write_block(t, p, n);
        t->nodes[0] = t->nodes[n];
        p += n;
        if (block < MOST_BLOCK) block *= 2;
    }
    end_encoding(&t->out);
    packed_bytes = t->out.out.n;
    return (u32)t->out.out.at;
}
