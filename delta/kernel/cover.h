/* Stretches of new bytes that are nearly the same as stretches of old bytes. */
#ifndef LOWCLOUD_COVER_H
#define LOWCLOUD_COVER_H

#include "maps.h"

/* Ascending and disjoint on the new side. Found by 12-byte seeds, grown over single differences, and given up for a better
   one inside of what they were grown over, as bsdiff does. */
void find_covers(const u8 *o, u32 on, const u8 *n, u32 nn, covers *out);

#endif
