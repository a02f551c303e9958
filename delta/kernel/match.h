/* Which old function each new one came from. */
#ifndef LOWCLOUD_MATCH_H
#define LOWCLOUD_MATCH_H

#include "maps.h"

/* Gives passive segments the addresses that memory.init copies them to, where the code shows them. */
void find_passive_addresses(module *m);

/* refs[i] for every new function: an old index (with REF_REPEATED where it has another use), REF_NONE or REF_RAW. */
void match_functions(const module *o, const module *n, u32 *refs);

#endif
