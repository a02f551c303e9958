/* One instruction as a token: an opcode with its small immediates, at most one operand of a class that can be
   predicted, and the place of that operand inside the instruction's bytes, so that the instruction can be written again
   with another operand whatever its form is. Instructions with several operands, or none that is worth predicting, are
   opaque: their bytes are the token. Opcodes: the WebAssembly 3.0 binary format, with the legacy exception
   instructions that toolchains still emit. */
#ifndef LOWCLOUD_TOKEN_H
#define LOWCLOUD_TOKEN_H

#include "base.h"

enum operand_class {
    C_NONE, C_FUNC, C_TYPE, C_GLOBAL, C_LOCAL, C_LABEL, C_I32, C_I64, C_OFFSET, C_MISC,
    CLASSES
};

/* token.op: bits 0..7 opcode, 8..17 sub-opcode or pseudo kind, 18..23 small immediate, 24..27 class, then flags */
enum {
    OP_SECOND_SHIFT = 18,
    OP_CLASS_SHIFT = 24,
    OP_SIGNED = 1 << 28,
    OP_PSEUDO = 1 << 29,
    OP_SECOND_WIDE = 1 << 30,
};
#define OP_PADDED 0x80000000u

/* Pseudo opcodes for what is not an instruction but is coded in the same way. */
enum { PSEUDO_BODY = 0, PSEUDO_LOCAL = 1, PSEUDO_ELEMENT = 2, PSEUDO_SEGMENT = 3, PSEUDO_SEGMENT_BYTES = 4 };
#define PSEUDO(kind, low) (OP_PSEUDO | (u32)(low) | (u32)(kind) << 8)

typedef struct {
    u32 op;
    u32 pos;        /* where the instruction starts */
    u32 len;        /* its bytes */
    u8 operand_at;  /* offset of the operand in it */
    u8 operand_len;
    i64 v;          /* operand; for an opaque token (when asked for) a hash of its bytes */
} token;

#define TOKEN_CLASS(op) ((op) >> OP_CLASS_SHIFT & 15)

/* Reads one instruction of b[p..end). Returns 0 where it is not understood. `hashed`, for analysis: be strict about values,
   and give opaque tokens a hash. */
static int read_instruction(const u8 *b, u32 p, u32 end, int signed_calls, int hashed, token *t);

/* Writes an operand the way the token's original was written; room for 10 bytes. */
INLINE u32 write_operand(u8 *to, u32 op, i64 v) {
    if (op & OP_PADDED) return write_padded(to, v);
    return op & OP_SIGNED ? write_sleb(to, v) : write_uleb(to, (u64)v);
}

/* The same, quickly, where 10 bytes behind `to` may be written. */
INLINE u32 write_operand_quickly(u8 *to, u32 op, i64 v) {
    if (UNLIKELY(op & OP_PADDED)) return write_padded(to, v);
    return op & OP_SIGNED ? write_sleb_quickly(to, v) : write_uleb_quickly(to, (u64)v);
}

/* `strict` (whenever a module is analysed): no value that its type cannot hold, so that larger ones are free for marks. */
INLINE int token_operand(token *t, const u8 *b, u32 at, u32 end, u32 op, u32 cls, int is_signed, int strict) {
    u32 n, least;
    i64 v;
    if (is_signed) {
        n = read_sleb(b, at, end, &v);
        least = sleb_bytes(v);
        op |= OP_SIGNED;
    } else {
        u64 u = 0;
        n = read_uleb(b, at, end, &u);
        v = (i64)u;
        least = uleb_bytes(u);
    }
    if (n == 0) return 0;
    if (n != least) {
        if (n != 5) return 0;
        op |= OP_PADDED;
    }
    if (strict && (cls == C_I32 ? v != (i32)v : cls != C_I64 && !is_signed && (u64)v > 0xffffffffull)) return 0;
    t->op = op | cls << OP_CLASS_SHIFT;
    t->operand_at = (u8)(at - t->pos);
    t->operand_len = (u8)n;
    t->v = v;
    t->len = at + n - t->pos;
    return 1;
}

INLINE int token_opaque(token *t, const u8 *b, u32 after, u32 end, u32 op, int hashed) {
    if (after > end || after < t->pos) return 0;
    t->op = op;
    t->len = after - t->pos;
    t->operand_at = 0;
    t->operand_len = 0;
    t->v = hashed && t->len > 1 ? (i64)(hash_bytes(b + t->pos, t->len) >> 1) : 0;
    return 1;
}

/* Steps over `count` LEB128 numbers; returns 0 where they do not fit. */
INLINE u32 skip_numbers(const u8 *b, u32 p, u32 end, u64 count) {
    for (; count > 0; count--) {
        u64 v;
        u32 n = read_uleb(b, p, end, &v);
        if (n == 0) return 0;
        p += n;
    }
    return p;
}

INLINE int token_memory(token *t, const u8 *b, u32 at, u32 end, u32 op, int hashed) {
    if (at >= end) return 0;
    u8 align = b[at];
    if (align >= 64) { /* bit 6: a memory index follows */
        u32 q = skip_numbers(b, at, end, 3);
        return q ? token_opaque(t, b, q, end, op, hashed) : 0;
    }
    return token_operand(t, b, at + 1, end, op | (u32)align << OP_SECOND_SHIFT, C_OFFSET, 0, hashed);
}

/* An operand followed by one small number that belongs to the opcode's identity. */
INLINE int token_operand_and_second(token *t, const u8 *b, u32 at, u32 end, u32 op, u32 cls, int hashed) {
    if (!token_operand(t, b, at, end, op, cls, 0, hashed)) return 0;
    u64 second = 0;
    u32 n = read_uleb(b, t->pos + t->len, end, &second);
    if (n == 0 || second > 63) return 0;
    if (n != 1) {
        if (n != 5) return 0;
        t->op |= OP_SECOND_WIDE;
    }
    t->op |= (u32)second << OP_SECOND_SHIFT;
    t->len += n;
    return 1;
}

INLINE int token_try_table(token *t, const u8 *b, u32 p, u32 end, u32 op, int hashed) {
    i64 type;
    u64 catches, kind;
    u32 n = read_sleb(b, p, end, &type);
    if (n == 0) return 0;
    p += n;
    n = read_uleb(b, p, end, &catches);
    if (n == 0) return 0;
    p += n;
    for (u64 i = 0; i < catches; i++) {
        n = read_uleb(b, p, end, &kind);
        if (n == 0) return 0;
        p = skip_numbers(b, p + n, end, kind < 2 ? 2 : 1);
        if (p == 0) return 0;
    }
    return token_opaque(t, b, p, end, op, hashed);
}

/* 0xfb: how many numbers follow each sub-opcode of the GC instructions; 255: not understood. */
INLINE u32 gc_numbers(u64 sub) {
    static const u8 numbers[31] = {1, 1, 2, 2, 2, 2, 1, 1, 2, 2, 2, 1, 1, 1, 1, 0,
                                   1, 2, 2, 2, 1, 1, 1, 1, 255, 255, 0, 0, 0, 0, 0};
    return sub < 31 ? numbers[sub] : 255;
}

INLINE int token_prefixed(token *t, const u8 *b, u32 p, u32 end, u8 opcode, int hashed) {
    u64 sub = 0;
    u32 n = read_uleb(b, p, end, &sub), q;
    if (n == 0 || n != uleb_bytes(sub) || sub > 0x3ff) return 0;
    u32 op = opcode | (u32)sub << 8;
    p += n;
    switch (opcode) {
    case 0xfb:
        if (sub == 24 || sub == 25) { /* br_on_cast: flags, label, two heap types */
            q = skip_numbers(b, p, end, 4);
            return q ? token_opaque(t, b, q, end, op, hashed) : 0;
        }
        if (gc_numbers(sub) == 255) return 0;
        q = skip_numbers(b, p, end, gc_numbers(sub));
        return q ? token_opaque(t, b, q, end, op, hashed) : 0;
    case 0xfc:
        if (sub <= 7) return token_opaque(t, b, p, end, op, hashed);
        if (sub == 8) return token_operand_and_second(t, b, p, end, op, C_MISC, hashed);
        if (sub == 9 || sub == 13 || (sub >= 15 && sub <= 17)) return token_operand(t, b, p, end, op, C_MISC, 0, hashed);
        q = sub == 11 ? skip_numbers(b, p, end, 1) : sub <= 14 ? skip_numbers(b, p, end, 2) : 0;
        return q ? token_opaque(t, b, q, end, op, hashed) : 0;
    case 0xfd:
        if (sub <= 11 || sub == 92 || sub == 93) return token_memory(t, b, p, end, op, hashed);
        if (sub == 12 || sub == 13) return token_opaque(t, b, p + 16, end, op, hashed);
        if (sub >= 21 && sub <= 34) return token_opaque(t, b, p + 1, end, op, hashed);
        if (sub >= 84 && sub <= 91) {
            q = skip_numbers(b, p, end, 2);
            return q ? token_opaque(t, b, q + 1, end, op, hashed) : 0;
        }
        return token_opaque(t, b, p, end, op, hashed);
    default: /* 0xfe */
        if (sub == 3) return token_opaque(t, b, p + 1, end, op, hashed);
        return token_memory(t, b, p, end, op, hashed);
    }
}

INLINE int read_instruction_inline(const u8 *b, u32 p, u32 end, int signed_calls, int hashed, token *t) {
    if (p >= end) return 0;
    u8 o = b[p];
    u32 q = p + 1;
    u64 count;
    t->pos = p;
    switch (o) {
    case 0x20: case 0x21: case 0x22:
        return token_operand(t, b, q, end, o, C_LOCAL, 0, hashed);
    case 0x41:
        return token_operand(t, b, q, end, o, C_I32, 1, hashed);
    case 0x42:
        return token_operand(t, b, q, end, o, C_I64, 1, hashed);
    case 0x10:
        return token_operand(t, b, q, end, o, C_FUNC, signed_calls, hashed);
    case 0x12: case 0xd2:
        return token_operand(t, b, q, end, o, C_FUNC, 0, hashed);
    case 0x28 ... 0x3e:
        return token_memory(t, b, q, end, o, hashed);
    case 0x02: case 0x03: case 0x04: case 0x06:
        if (q < end && (b[q] & 0xc0) == 0x40 && b[q] != 0x63 && b[q] != 0x64)
            return token_opaque(t, b, q + 1, end, o | (u32)b[q] << 8, hashed);
        return token_operand(t, b, q, end, o, C_TYPE, 1, hashed);
    case 0x0c: case 0x0d: case 0x18: case 0x09: case 0xd5: case 0xd6:
        return token_operand(t, b, q, end, o, C_LABEL, 0, hashed);
    case 0x0e: {
        u32 n = read_uleb(b, q, end, &count);
        if (n == 0 || count > end - p) return 0;
        q = skip_numbers(b, q + n, end, count + 1);
        return q ? token_opaque(t, b, q, end, o, hashed) : 0;
    }
    case 0x11: case 0x13:
        return token_operand_and_second(t, b, q, end, o, C_TYPE, hashed);
    case 0x14: case 0x15:
        return token_operand(t, b, q, end, o, C_TYPE, 0, hashed);
    case 0x23: case 0x24:
        return token_operand(t, b, q, end, o, C_GLOBAL, 0, hashed);
    case 0x43:
        return token_opaque(t, b, q + 4, end, o, hashed);
    case 0x44:
        return token_opaque(t, b, q + 8, end, o, hashed);
    case 0x25: case 0x26: case 0x07: case 0x08:
        return token_operand(t, b, q, end, o, C_MISC, 0, hashed);
    case 0x1c: {
        u32 n = read_uleb(b, q, end, &count);
        if (n == 0 || count > end - p) return 0;
        return token_opaque(t, b, q + n + (u32)count, end, o, hashed);
    }
    case 0x1f:
        return token_try_table(t, b, q, end, o, hashed);
    case 0x3f: case 0x40: case 0xd0:
        q = skip_numbers(b, q, end, 1);
        return q ? token_opaque(t, b, q, end, o, hashed) : 0;
    case 0xfb: case 0xfc: case 0xfd: case 0xfe:
        return token_prefixed(t, b, q, end, o, hashed);
    case 0x00: case 0x01: case 0x05: case 0x0a: case 0x0b: case 0x0f: case 0x19: case 0x1a: case 0x1b:
    case 0x45 ... 0xc4: case 0xd1: case 0xd3: case 0xd4:
        return token_opaque(t, b, q, end, o, hashed);
    default:
        return 0;
    }
}

static int read_instruction(const u8 *b, u32 p, u32 end, int signed_calls, int hashed, token *t) {
    return hashed ? read_instruction_inline(b, p, end, signed_calls, 1, t)
                  : read_instruction_inline(b, p, end, signed_calls, 0, t);
}

/* The numbers before the instructions of a body: how many groups of locals, then a count and a type for each. */
INLINE int read_local_group(const u8 *b, u32 p, u32 end, token *t) {
    t->pos = p;
    if (!token_operand(t, b, p, end, PSEUDO(PSEUDO_LOCAL, 0), C_MISC, 0, 1) || (t->op & OP_PADDED)) return 0;
    u32 q = p + t->len;
    if (q >= end) return 0;
    if (b[q] == 0x63 || b[q] == 0x64) { /* references: the operand is the heap type, and the count belongs to the opcode */
        if (t->len != 1 || b[p] > 63) return 0;
        u32 op = b[q] | PSEUDO_LOCAL << 8 | (u32)b[p] << OP_SECOND_SHIFT;
        return token_operand(t, b, q + 1, end, op, C_TYPE, 1, 1);
    }
    t->op |= b[q];
    t->len++;
    return 1;
}

INLINE int read_local_groups(const u8 *b, u32 p, u32 end, token *t) {
    t->pos = p;
    return token_operand(t, b, p, end, PSEUDO(PSEUDO_BODY, 0), C_MISC, 0, 1) && !(t->op & OP_PADDED);
}

#endif
