/* Names of the status codes. */
#include "boxseg.h"

const char *bxs_status_name(bxs_status status) {
    switch (status) {
#define BXS_STATUS_CASE(code, meaning)                                                             \
    case code:                                                                                     \
        return #code;
        BXS_LIST_STATUS(BXS_STATUS_CASE)
#undef BXS_STATUS_CASE
    case BXS_STATUS_COUNT:
    default:
        return "BXS_UNKNOWN";
    }
}

const char *bxs_status_meaning(bxs_status status) {
    switch (status) {
#define BXS_STATUS_CASE(code, meaning)                                                             \
    case code:                                                                                     \
        return meaning;
        BXS_LIST_STATUS(BXS_STATUS_CASE)
#undef BXS_STATUS_CASE
    case BXS_STATUS_COUNT:
    default:
        return "unknown status";
    }
}
