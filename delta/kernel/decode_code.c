/* The decoder of function bodies. Nearly all of a target's code is the base's with other operands, so one walk over old
   instructions does nearly all of the work: it writes stretches in which nothing changes as they are and stops only
   where an operand differs. Its quick cases read canonical operands of up to 8 bytes at once; every other form goes
   through the reader that the encoder uses too. */
#include "decoder.h"

i64 read_exception(decoder *d, u32 cls, i64 v, i64 predicted) {
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

/* The new operand of an inserted instruction; marks on addresses are taken off (`*op` may change with them). */
INLINE i64 literal_operand(const decoder *d, u32 cls, u32 *op, i64 v) {
    switch (cls) {
    case C_FUNC: return label_to_new(&d->functions, (u64)v);
    case C_TYPE: return (u64)v < d->types.new_of_label.n ? (i64)label_to_new(&d->types, (u64)v) : v;
    case C_I32: case C_OFFSET: {
        if (v >= ESCAPED_PADDED && v < ESCAPED) *op |= OP_PADDED;
        i64 y = cls == C_I32 && v < ESCAPED_PADDED ? (i64)(u32)v : v;
        if (y >= ESCAPED_PADDED || (y >= d->addresses.low && y < d->addresses.high)) y = address_of_label(&d->addresses, y);
        return cls == C_I32 ? (i32)y : y;
    }
    case C_I64: return d->m.go ? wide_of_label(&d->wide, v) : v;
    default: return v;
    }
}

/* What a walk does with the instructions: old ones are copied or skipped, inserted ones are in the base's numbering. */
enum walk { WALK_COPY, WALK_SKIP, WALK_LITERAL };

INLINE i64 operand_of(decoder *d, enum walk walk, u32 cls, u32 *op, i64 v) {
    if (walk == WALK_SKIP) return v;
    return walk == WALK_COPY ? copy_operand(d, cls, v) : literal_operand(d, cls, op, v);
}

/* Copies in steps of 16 bytes, up to 15 too many on both sides: bytes that are written over or never looked at. */
INLINE void copy_run(u8 *to, const u8 *from, u32 n) {
    enum { STEP = 16, LONG = 256 };
    if (UNLIKELY(n > LONG)) {
        __builtin_memcpy(to, from, n);
        return;
    }
    for (u32 i = 0; i < n; i += STEP) __builtin_memcpy(to + i, from + i, STEP);
}

/* The general case: any instruction. Returns 1 where it stays as it is, else `*v` is its new operand. */
static __attribute__((noinline)) int walk_any(decoder *d, enum walk walk, const u8 *p, const u8 *end, token *t, i64 *v) {
    if (!read_instruction_inline(p, 0, (u32)(end - p), d->m.go, 0, t)) fail(E_STREAM);
    u32 cls = TOKEN_CLASS(t->op), op = t->op;
    if (cls == C_NONE || walk == WALK_SKIP) return 1;
    *v = operand_of(d, walk, cls, &t->op, t->v);
    return *v == t->v && op == t->op;
}

static void quick_case(decoder *d, u32 from, u32 to, u32 cls, u32 len, u32 mask, u32 want) {
    for (u32 op = from; op <= to; op++) d->quick[0][op] = d->quick[1][op] = (quick_step){mask, want, cls, len};
}

void open_code(decoder *d) {
    enum { ONE_BYTE = 0x80 << 8, ALIGN_AND_ONE_BYTE = 0xc0 << 8 | 0x80 << 16, NO_TYPE = 0x40 << 8, SMALLEST_ADDRESS = 128 };
    static const u8 plain[] = {0x00, 0x01, 0x05, 0x0b, 0x0f, 0x1a, 0x1b};
    d->run[C_NONE] = ~0ull;
    for (u32 op = 0; op < 256; op++) quick_case(d, op, op, C_NONE, 0, 1, ~op); /* never equal to itself */
    for (u32 i = 0; i < sizeof plain; i++) quick_case(d, plain[i], plain[i], C_NONE, 1, 0, 0);
    quick_case(d, 0x45, 0xc4, C_NONE, 1, 0, 0);
    quick_case(d, 0x02, 0x04, C_NONE, 2, 0xff << 8, NO_TYPE);
    quick_case(d, 0x0c, 0x0d, C_LABEL, 2, ONE_BYTE, 0);
    if (d->m.low >= SMALLEST_ADDRESS) quick_case(d, 0x28, 0x3e, C_OFFSET, 3, ALIGN_AND_ONE_BYTE, 0);
    for (u32 op = 0x20; op <= 0x22; op++) d->quick[0][op] = (quick_step){ONE_BYTE, 0, C_LOCAL, 2};
}

/* Walks over up to `count` instructions of p[..end), which 16 readable bytes follow, and writes them with their new
   operands; returns where it stopped. A copy ends silently with its body, so that "all of it" needs no count. */
INLINE const u8 *walk_code(decoder *d, enum walk walk, const u8 *p, const u8 *end, u64 count) {
    output *o = &d->out;
    u64 *right = d->run;
    const int go = d->m.go, copies = walk == WALK_COPY;
    const quick_step *quick = d->quick[d->m.locals_differ];
    const u8 *run = p; /* from here to p nothing has been written yet */
    for (; count > 0 && p < end; count--) {
        u32 at = 1, n, len, op = 0; /* the operand is at p[at..at + n) of an instruction of len bytes */
        i64 old, v;
        quick_step q = quick[*p];
        if (LIKELY(((word_at(p) ^ q.want) & q.mask) == 0 && (!copies || right[q.cls] > 0))) {
            if (copies) right[q.cls]--;
            p += q.len;
            continue;
        }
        switch (*p) {
        case 0x20 ... 0x22:
            if (!(n = short_uleb(p + 1, &old))) goto any;
            v = operand_of(d, walk, C_LOCAL, &op, old);
            quick = d->quick[d->m.locals_differ];
            break;
        case 0x23: case 0x24:
            if (!(n = short_uleb(p + 1, &old))) goto any;
            v = operand_of(d, walk, C_GLOBAL, &op, old);
            break;
        case 0x28 ... 0x3e:
            at = 2;
            if (p[1] >= 64 || !(n = short_uleb(p + 2, &old))) goto any;
            v = operand_of(d, walk, C_OFFSET, &op, old);
            break;
        case 0x10:
            n = go ? short_sleb(p + 1, &old) : short_uleb(p + 1, &old);
            if (!n) goto any;
            op = go ? OP_SIGNED : 0;
            v = operand_of(d, walk, C_FUNC, &op, old);
            break;
        case 0x41:
            if (!(n = short_sleb(p + 1, &old))) goto any;
            op = OP_SIGNED;
            v = operand_of(d, walk, C_I32, &op, old);
            break;
        case 0x42:
            if (!(n = short_sleb(p + 1, &old))) goto any;
            op = OP_SIGNED;
            v = operand_of(d, walk, C_I64, &op, old);
            break;
        default: goto any;
        }
        len = at + n;
        if (v == old) {
            p += len;
            continue;
        }
        if (0) {
        any:;
            token t;
            int same = walk_any(d, walk, p, end, &t, &v);
            len = t.len;
            if (same) {
                p += len;
                continue;
            }
            at = t.operand_at;
            n = t.operand_len;
            op = t.op;
        }
        u32 before = (u32)(p - run) + at;
        need(o, before);
        copy_run(o->at + o->n, run, before);
        o->n += before;
        o->n += write_operand_quickly(o->at + o->n, op, v);
        run = p + at + n;
        p += len;
    }
    if (UNLIKELY(p > end || (count > 0 && !copies))) fail(E_STREAM);
    if (walk != WALK_SKIP) out_bytes(o, run, (u32)(p - run));
    return p;
}

/* One body of the base. Its first tokens are the groups of locals. */
typedef struct {
    const u8 *p, *end;
    i64 groups; /* still to be read; -1 before their number */
} old_body;

static void note_head(decoder *d, const token *t, i64 v) {
    if ((t->op >> 8 & 255) == PSEUDO_BODY) {
        d->new_groups = (u32)v;
        d->new_head = 0;
    } else if (d->new_groups) {
        d->new_groups--;
    }
}

static void write_head(decoder *d, const u8 *b, const token *t, i64 v) {
    output *o = &d->out;
    u32 behind = t->operand_at + t->operand_len;
    note_head(d, t, v);
    out_bytes(o, b, t->operand_at);
    o->n += write_operand(o->at + o->n, t->op, v);
    out_bytes(o, b + behind, t->len - behind);
}

static void read_old_head(old_body *c, token *t) {
    u32 n = (u32)(c->end - c->p);
    int ok = c->groups < 0 ? read_local_groups(c->p, 0, n, t) : read_local_group(c->p, 0, n, t);
    if (!ok) fail(E_STREAM);
    c->groups = c->groups < 0 ? t->v : c->groups - 1;
    c->p += t->len;
}

static void copy_old(decoder *d, old_body *c, u64 count) {
    for (token t; count > 0 && c->groups != 0 && c->p < c->end; count--) {
        const u8 *b = c->p;
        read_old_head(c, &t);
        write_head(d, b, &t, copy_operand(d, TOKEN_CLASS(t.op), t.v));
    }
    if (c->groups == 0) c->p = walk_code(d, WALK_COPY, c->p, c->end, count);
}

static void skip_old(decoder *d, old_body *c, u64 count) {
    for (token t; count > 0 && c->groups != 0; count--) read_old_head(c, &t);
    if (count > 0) c->p = walk_code(d, WALK_SKIP, c->p, c->end, count);
}

static void write_literals(decoder *d, u64 count) {
    reader *r = &d->s[S_LITERAL];
    for (token t; count > 0 && (d->new_head || d->new_groups); count--) {
        int ok = d->new_head ? read_local_groups(r->b, r->p, r->end, &t) : read_local_group(r->b, r->p, r->end, &t);
        if (!ok) fail(E_STREAM);
        i64 v = literal_operand(d, TOKEN_CLASS(t.op), &t.op, t.v);
        write_head(d, r->b + r->p, &t, v);
        r->p += t.len;
    }
    if (count > 0) r->p = (u32)(walk_code(d, WALK_LITERAL, r->b + r->p, r->b + r->end, count) - r->b);
}

static void decode_body(decoder *d, u32 ref) {
    u64 steps = take_number(&d->s[S_OPS]);
    if (ref == REF_RAW) {
        out_bytes(&d->out, take_bytes(&d->s[S_RAW], steps), (u32)steps);
        return;
    }
    model_next_function(&d->m);
    d->new_head = 1;
    d->new_groups = 0;
    if (ref == REF_NONE) {
        write_literals(d, steps);
        return;
    }
    range old = d->o->bodies.at[ref & REF_INDEX];
    old_body c = {d->o->b + old.start, d->o->b + old.end, -1};
    if (steps == 0) copy_old(d, &c, ~0ull);
    for (; steps > 0; steps--) {
        u32 copied = take_below(&d->s[S_COPY], 1ull << 32), deleted = take_below(&d->s[S_DELETE], 1ull << 32);
        u32 inserted = take_below(&d->s[S_INSERT], 1ull << 32);
        copy_old(d, &c, copied);
        skip_old(d, &c, deleted);
        write_literals(d, inserted);
    }
}

/* It is written after room for its size, which the old body's size usually guesses right. */
void decode_sized_body(decoder *d, u32 ref, int padded) {
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
