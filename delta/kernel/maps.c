#include "maps.h"

static void fill(u32s *v, u32 n, u32 x) {
    RESERVE(*v, n);
    for (u32 i = 0; i < n; i++) v->at[i] = x;
    v->n = n;
}

/* Calls equal hashes of both sides partners, in order; NOWHERE for the rest. */
static void pair_hashes(const u64s *o, const u64s *n, u32 *new_of_old, u32 *old_of_new) {
    pair *a = allocate((u64)o->n * sizeof(pair)), *b = allocate((u64)n->n * sizeof(pair));
    for (u32 i = 0; i < o->n; i++) a[i] = (pair){o->at[i], i};
    for (u32 i = 0; i < n->n; i++) b[i] = (pair){n->at[i], i};
    sort_pairs(a, o->n);
    sort_pairs(b, n->n);
    for (u32 i = 0, k = 0; i < o->n && k < n->n;) {
        if (a[i].key < b[k].key) {
            i++;
        } else if (a[i].key > b[k].key) {
            k++;
        } else {
            new_of_old[a[i].value] = b[k].value;
            old_of_new[b[k].value] = a[i].value;
            i++;
            k++;
        }
    }
}

static void label_the_new(label_map *m) {
    for (u32 i = 0; i < m->label_of_new.n; i++) {
        if (m->label_of_new.at[i] != NOWHERE) continue;
        m->label_of_new.at[i] = m->new_of_label.n;
        PUSH(m->new_of_label, i);
    }
}

void map_functions(label_map *m, const module *o, const module *n, u32 functions, const u32 *refs) {
    u32 old_count = o->imports + o->bodies.n;
    m->old_count = old_count;
    fill(&m->new_of_label, old_count, NOWHERE);
    fill(&m->label_of_new, n->imports + functions, NOWHERE);
    pair_hashes(&o->import_hashes, &n->import_hashes, m->new_of_label.at, m->label_of_new.at);
    for (u32 i = 0; i < functions; i++) {
        if (!ref_is_old(refs[i]) || (refs[i] & REF_REPEATED)) continue;
        u32 j = o->imports + refs[i];
        if (m->new_of_label.at[j] != NOWHERE) continue;
        m->new_of_label.at[j] = n->imports + i;
        m->label_of_new.at[n->imports + i] = j;
    }
    fill(&m->guess, old_count, 0);
    i64 shift = 0;
    for (u32 j = 0; j < old_count; j++) {
        u32 to = m->new_of_label.at[j];
        if (to != NOWHERE) shift = (i64)to - j;
        m->guess.at[j] = j + shift > 0 ? (u32)(j + shift) : 0;
    }
    label_the_new(m);
}

void map_types(label_map *m, const module *o, const module *n) {
    m->old_count = o->type_hashes.n;
    fill(&m->new_of_label, o->type_hashes.n, NOWHERE);
    fill(&m->label_of_new, n->type_hashes.n, NOWHERE);
    pair_hashes(&o->type_hashes, &n->type_hashes, m->new_of_label.at, m->label_of_new.at);
    fill(&m->guess, o->type_hashes.n, 0);
    for (u32 j = 0; j < o->type_hashes.n; j++)
        m->guess.at[j] = m->new_of_label.at[j] != NOWHERE ? m->new_of_label.at[j] : j;
    label_the_new(m);
}

static void open_row(row *r, u32 n) {
    r->keys = allocate((u64)n * sizeof(u64));
    r->n = n;
}

static void index_row(row *r) {
    if (r->n == 0) return;
    u64 low = r->keys[0], span = r->keys[r->n - 1] - low;
    while (span >> r->shift >= 2ull * r->n) r->shift++;
    u32 stretches = (u32)(span >> r->shift) + 1;
    r->first = allocate(((u64)stretches + 1) * sizeof(u32));
    for (u32 i = 0; i < r->n; i++) r->first[((r->keys[i] - low) >> r->shift) + 1] = i + 1;
    for (u32 k = 1; k <= stretches; k++)
        if (r->first[k] == 0) r->first[k] = r->first[k - 1];
}

/* How many keys are x or below it. */
static u32 up_to(const row *r, u64 x) {
    u32 lo = 0, hi = r->n;
    if (hi == 0 || x < r->keys[0]) return 0;
    if (x >= r->keys[hi - 1]) return hi;
    if (r->first) {
        u64 k = (x - r->keys[0]) >> r->shift;
        lo = r->first[k];
        hi = r->first[k + 1];
    }
    while (lo < hi) {
        u32 mid = (lo + hi) / 2;
        if (r->keys[mid] <= x) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

static void order_by_address(address_side *side, const segment *segs, u32 n) {
    side->segs = segs;
    pair *p = allocate((u64)n * sizeof(pair));
    u32 known = 0;
    for (u32 i = 0; i < n; i++)
        if (segs[i].addr >= 0) p[known++] = (pair){(u64)segs[i].addr, i};
    sort_pairs(p, known);
    RESERVE(side->by_address, known);
    open_row(&side->addresses, known);
    for (u32 i = 0; i < known; i++) {
        PUSH(side->by_address, p[i].value);
        side->addresses.keys[i] = p[i].key;
    }
    open_row(&side->payloads, n);
    for (u32 i = 0; i < n; i++) side->payloads.keys[i] = segs[i].pay;
}

typedef struct {
    const cover *c;
    u32 *heap; /* indices of active covers; the longest, then the first, on top */
    u32 n;
} longest_first;

static int wins(const longest_first *h, u32 a, u32 b) {
    return h->c[a].len != h->c[b].len ? h->c[a].len > h->c[b].len : a < b;
}

static void heap_push(longest_first *h, u32 x) {
    u32 i = h->n++;
    for (; i > 0 && wins(h, x, h->heap[(i - 1) / 2]); i = (i - 1) / 2) h->heap[i] = h->heap[(i - 1) / 2];
    h->heap[i] = x;
}

static void heap_pop(longest_first *h) {
    u32 x = h->heap[--h->n], i = 0;
    for (;;) {
        u32 child = 2 * i + 1;
        if (child >= h->n) break;
        if (child + 1 < h->n && wins(h, h->heap[child + 1], h->heap[child])) child++;
        if (!wins(h, h->heap[child], x)) break;
        h->heap[i] = h->heap[child];
        i = child;
    }
    if (h->n) h->heap[i] = x;
}

static void keep_piece(covers *out, const cover *c, u32 from, u32 to) {
    cover piece = {c->n + (from - c->o), from, to - from};
    if (out->n) {
        cover *last = &out->at[out->n - 1];
        if (last->o + last->len == piece.o && last->n + last->len == piece.n) {
            last->len += piece.len;
            return;
        }
    }
    PUSH(*out, piece);
}

/* Every old byte belongs to the longest cover over it: a sweep over the old side with a heap of what is open. */
static void longest_on_the_old_side(covers *out, const covers *in) {
    pair *starts = allocate((u64)in->n * sizeof(pair));
    longest_first h = {in->at, allocate((u64)in->n * 4 + 4), 0};
    for (u32 i = 0; i < in->n; i++) starts[i] = (pair){in->at[i].o, i};
    sort_pairs(starts, in->n);
    u32 next = 0, at = 0;
    while (next < in->n || h.n) {
        if (h.n == 0) at = (u32)starts[next].key;
        while (next < in->n && starts[next].key <= at) heap_push(&h, starts[next++].value);
        const cover *top = &in->at[h.heap[0]];
        u32 end = top->o + top->len;
        if (end <= at) {
            heap_pop(&h);
            continue;
        }
        u32 stop = next < in->n && starts[next].key < end ? (u32)starts[next].key : end;
        keep_piece(out, top, at, stop);
        at = stop;
    }
}

void map_addresses(address_map *m, const covers *c, const module *o, const segments *new_segs) {
    m->by_new = *c;
    longest_on_the_old_side(&m->by_old, c);
    order_by_address(&m->old_side, o->segs.at, o->segs.n);
    order_by_address(&m->new_side, new_segs->at, new_segs->n);
    open_row(&m->new_starts, m->by_new.n);
    for (u32 i = 0; i < m->by_new.n; i++) m->new_starts.keys[i] = m->by_new.at[i].n;
    open_row(&m->old_starts, m->by_old.n);
    for (u32 i = 0; i < m->by_old.n; i++) m->old_starts.keys[i] = m->by_old.at[i].o;
    index_row(&m->old_side.addresses);
    index_row(&m->old_starts);
    index_row(&m->new_side.payloads);
    m->low = o->low;
    m->old_end = o->data_end;
    m->new_end = 0;
    for (u32 i = 0; i < new_segs->n; i++) {
        const segment *s = &new_segs->at[i];
        if (s->addr >= 0 && s->addr + s->len > m->new_end) m->new_end = s->addr + s->len;
    }
    m->high = m->old_end > 0 ? m->old_end + BSS_BYTES : 0;
}

/* The place of an address in the joined payloads. An address behind its segment keeps the distance to its end. */
static int to_payload(const address_side *s, i64 a, u32 *p, i64 *beyond) {
    u32 n = a < 0 ? 0 : up_to(&s->addresses, (u64)a);
    if (n == 0) return 0;
    const segment *g = &s->segs[s->by_address.at[n - 1]];
    i64 d = a - g->addr;
    if (d < g->len) {
        *p = g->pay + (u32)d;
        *beyond = 0;
        return 1;
    }
    *p = g->pay + g->len;
    *beyond = d - g->len;
    if (*beyond > 0 && *p > 0) { /* go by the segment's last byte */
        --*p;
        ++*beyond;
    }
    return 1;
}

static i64 to_address(const address_side *s, u32 p) {
    u32 n = up_to(&s->payloads, p);
    if (n == 0) return -1;
    u32 k = n - 1;
    while (s->segs[k].len == 0 && k > 0) k--;
    const segment *g = &s->segs[k];
    return g->addr < 0 ? -1 : g->addr + (i64)(p - g->pay);
}

i64 address_forward(const address_map *m, i64 a) {
    u32 p;
    i64 beyond;
    if (a < m->low || a >= m->high) return a;
    if (a >= m->old_end) return a - m->old_end + m->new_end;
    if (!to_payload(&m->old_side, a, &p, &beyond)) return a;
    u32 n = up_to(&m->old_starts, p);
    if (n == 0) return a;
    const cover *c = &m->by_old.at[n - 1];
    i64 x = to_address(&m->new_side, c->n + (p - c->o));
    return x < 0 ? a : x + beyond;
}

i64 address_back(const address_map *m, i64 a) {
    u32 p;
    i64 beyond;
    if (a >= m->new_end) return a - m->new_end + m->old_end;
    if (!to_payload(&m->new_side, a, &p, &beyond)) return a;
    u32 n = up_to(&m->new_starts, p);
    if (n == 0) return a;
    const cover *c = &m->by_new.at[n - 1];
    i64 x = to_address(&m->old_side, c->o + (p - c->n));
    return x < 0 ? a : x + beyond;
}

i64 address_label(const address_map *m, i64 y) {
    i64 x = address_back(m, y);
    if (x >= m->low && x < m->high && address_forward(m, x) == y) return x;
    if (y < m->low || y >= m->high) return y;
    return y + ESCAPED;
}

static int is_counter(i64 v) { return v >= GO_FIRST_PC && v <= 0xffffffffll; }
static i64 counter_function(i64 v, i64 imports) { return (v >> 16) - GO_FIRST_FUNCTION + imports; }
static i64 counter_of(i64 function, i64 imports, i64 v) {
    return (function - imports + GO_FIRST_FUNCTION) << 16 | (v & 0xffff);
}

i64 wide_of_label(const wide_map *m, i64 label) {
    if (is_wide_mark(label)) return label - ESCAPED;
    if (label < GO_FIRST_PC) return label < 0 ? label : address_forward(m->addresses, label);
    if (!is_counter(label)) return label;
    i64 f = counter_function(label, m->old_imports);
    if (f < 0 || f >= m->functions->new_of_label.n || m->functions->new_of_label.at[f] == NOWHERE) return label;
    return counter_of(m->functions->new_of_label.at[f], m->new_imports, label);
}

i64 wide_label(const wide_map *m, i64 y) {
    i64 x = y;
    if (y >= 0 && y < GO_FIRST_PC) x = address_label(m->addresses, y);
    if (is_counter(y)) {
        i64 f = counter_function(y, m->new_imports);
        if (f >= 0 && f < m->functions->label_of_new.n)
            x = counter_of(m->functions->label_of_new.at[f], m->old_imports, y);
    }
    if (wide_of_label(m, x) == y) return x;
    return is_wide_mark(y + ESCAPED) ? y + ESCAPED : y;
}
