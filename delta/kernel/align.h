/* How a new function body is best made from an old one: copy, delete and insert steps over their tokens. */
#ifndef LOWCLOUD_ALIGN_H
#define LOWCLOUD_ALIGN_H

#include "diff.h"
#include "model.h"

enum list_kind { LIST_BODY, LIST_ELEMENTS, LIST_SEGMENTS };

typedef struct {
    u32 i, j;
} aligned;

typedef struct {
    differ diff;
    u64s ak, bk;
    steps found, inner, best, tried;
    VEC(aligned) pairs;
    struct {
        u32 generation;
        i64 v;
    } *locals;
    u32 generation;
} aligner;

/* `labels[j]`: the operand of b[j] in the old numbering. The result is in `best`; one step of copying everything where
   the lists agree. */
void align(aligner *x, const token *a, u32 an, const token *b, u32 bn, const i64 *labels, enum list_kind kind);

#endif
