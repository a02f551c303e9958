#include "model.h"

static belief *beliefs_from(const u32s *guess) {
    belief *b = allocate((u64)guess->n * sizeof(belief) + 1);
    for (u32 i = 0; i < guess->n; i++) b[i] = (belief){guess->at[i], 1};
    return b;
}

void model_open(model *m, const module *o, const address_map *map, const label_map *functions, const label_map *types) {
    m->functions = beliefs_from(&functions->guess);
    m->function_count = functions->guess.n;
    m->types = beliefs_from(&types->guess);
    m->type_count = types->guess.n;
    m->table_count = 0;
    if (!m->global_shifts) m->global_shifts = allocate(GLOBALS * sizeof(i32));
    else __builtin_memset(m->global_shifts, 0, GLOBALS * sizeof(i32));
    if (!m->local_shifts) m->local_shifts = allocate(LOCALS * sizeof(local_shift));
    m->addresses = (address_beliefs){0};
    m->wide = (address_beliefs){0};
    m->map = map;
    m->low = map->low;
    m->high = map->high;
    m->old_end = map->old_end;
    m->bss_shift = map->new_end - map->old_end;
    m->go = o->go;
    m->old_imports = o->imports;
}

void model_set_table(model *m, u32 *table, u32 count) {
    m->table = table;
    m->table_count = count;
    m->small = allocate((u64)count * sizeof(belief) + 1);
    for (u32 i = 0; i < count; i++) m->small[i] = (belief){i, 1};
}

enum { FIRST_SLOTS = 1 << 12 };

static u32 find_slot(const address_beliefs *t, u32 key) {
    u32 i = (u32)((key * 0x9E3779B97F4A7C15ull) >> 40) & t->mask;
    while (t->slots[i].key && t->slots[i].key != key + 1) i = (i + 1) & t->mask;
    return i;
}

static void enlarge(address_beliefs *t) {
    address_beliefs old = *t;
    u32 slots = old.mask ? (old.mask + 1) * 4 : FIRST_SLOTS;
    if (slots > 1u << 24) fail(E_MEMORY);
    t->slots = allocate((u64)slots * sizeof(address_slot));
    t->mask = slots - 1;
    for (u32 i = 0; old.mask && i <= old.mask; i++)
        if (old.slots[i].key) t->slots[find_slot(t, old.slots[i].key - 1)] = old.slots[i];
}

belief *address_belief_slow(address_beliefs *t, u32 key, int *is_new) {
    if (!t->mask || t->n * 2 > t->mask) enlarge(t);
    address_slot *slot = &t->slots[find_slot(t, key)];
    if (!slot->key) {
        slot->key = key + 1;
        t->n++;
        *is_new = 1;
    }
    return &slot->belief;
}

void word_model_open(word_model *w) {
    if (!w->pages) w->pages = allocate(WORD_PAGES * sizeof(page_shift));
    for (u32 i = 0; i < WORD_PAGES; i++) w->pages[i] = (page_shift){0, 1, -2};
    __builtin_memset(w->slot_score, 0, sizeof w->slot_score);
    w->was_slot = w->before_was_slot = 0;
}

static u32 slot_context(const word_model *w, const model *m, i64 v, i64 next) {
    return (u32)(w->was_slot | w->before_was_slot << 1 | (v >= SMALL_SLOT) << 2 |
                 (next > 0 && next < m->table_count) << 3 | (next >= SMALL_SLOT) << 4);
}

word_guess predict_word(word_model *w, model *m, i64 v, i64 next) {
    page_shift *page = page_of(w, v);
    i64 shifted = (i64)(u32)(v + page->shift), to;
    if (v >= m->low && v < m->high) {
        i64 a = predict_address(m, v);
        if (page->choice < 0) return (word_guess){a, shifted == a ? v : shifted, a, WORD_NOT_SLOT};
        return (word_guess){shifted, shifted == a ? v : a, a, WORD_NOT_SLOT};
    }
    if (v > 0 && v < m->table_count) {
        u32 c = slot_context(w, m, v, next);
        i64 slot = m->table[v];
        return w->slot_score[c] > 0 ? (word_guess){slot, v, 0, c} : (word_guess){v, slot, 0, c};
    }
    if (go_counter(m, v, &to)) return (word_guess){(i64)(u32)to, v, 0, WORD_NOT_SLOT};
    return (word_guess){v >= WORD_PLAIN_BELOW ? shifted : v, v, 0, WORD_NOT_SLOT};
}

static void learn_page(word_model *w, const model *m, i64 v, i64 actual, i64 mapped) {
    page_shift *page = page_of(w, v);
    i64 shifted = (i64)(u32)(v + page->shift);
    if (v >= m->low && v < m->high) {
        if (mapped != shifted && actual == shifted && page->choice < 3) page->choice++;
        if (mapped != shifted && actual == mapped && page->choice > -3) page->choice--;
    }
    i32 shift = (i32)(actual - v);
    if (shift == page->shift) {
        if (page->trust < MAX_TRUST) page->trust++;
    } else if (--page->trust < 0) {
        page->shift = shift;
        page->trust = 0;
    }
}

static void learn_slot(word_model *w, const model *m, i64 v, i64 actual, u32 context) {
    enum { LIMIT = 6 };
    i64 slot = m->table[v];
    i8 *score = &w->slot_score[context];
    if (slot != v && actual == slot && *score < LIMIT) ++*score;
    if (slot != v && actual == v && *score > -LIMIT) --*score;
    w->before_was_slot = w->was_slot;
    w->was_slot = (slot == actual && slot != v) || (slot == v && actual == v && *score > 0);
}

void learn_word(word_model *w, model *m, i64 v, i64 actual, word_guess g) {
    if (g.context != WORD_NOT_SLOT) {
        learn_slot(w, m, v, actual, g.context);
        return;
    }
    if (v >= WORD_PLAIN_BELOW) learn_page(w, m, v, actual, g.mapped);
    w->before_was_slot = w->was_slot;
    w->was_slot = 0;
    if (v >= m->low && v < m->high) learn(m, C_OFFSET, v, g.likely, actual);
}
