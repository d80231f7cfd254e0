/* Asking the caller's clock. */
#ifndef BXS_DEADLINE_H
#define BXS_DEADLINE_H

#include "boxseg.h"

static inline int bxs_expired(const bxs_deadline *deadline) {
    return deadline != NULL && deadline->expired(deadline->context) != 0;
}

#endif
