/* Metadata: any text. */
#include "fuzz_input.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    bxs_metadata metadata;
    const char *wrong = NULL;
    char name[16];
    size_t length;
    uint64_t id;
    const char *text = (const char *)bytes;
    bxs_status status = bxs_metadata_read(text, size, &metadata, &wrong);
    fuzz_require(size == 0 || wrong != NULL, "wrong is set");
    fuzz_require(status == BXS_OK || status == BXS_ERROR_METADATA || status == BXS_ERROR_NULL,
                 "status");
    for (uint32_t i = 0; i < 5; i++) {
        bxs_status found = bxs_metadata_class(text, size, i, name, sizeof name, &length, &id);
        fuzz_require(found != BXS_OK || length <= sizeof name, "length");
        fuzz_require(status != BXS_OK || i >= metadata.model.classes || found == BXS_OK ||
                         found == BXS_ERROR_ROOM,
                     "every class has a name");
    }
    if (status == BXS_OK) {
        bxs_letterbox map;
        fuzz_require(bxs_model_check(&metadata.model) == BXS_OK, "the model is valid");
        bxs_metadata_letterbox(&metadata, 480, 640, &map);
    }
    return 0;
}
