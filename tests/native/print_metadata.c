/* Reads metadata from stdin and prints every field, one a line, doubles in full; or, with exit code
 * 1, the key that is wrong. */
#include <boxseg.h>
#include <inttypes.h>
#include <stdio.h>

static char text[1 << 20];

static void print_model(const bxs_model *model) {
    printf("strides");
    for (uint32_t i = 0; i < model->levels; i++) {
        printf(" %" PRIu32, model->strides[i]);
    }
    printf("\ncoordinate_scales");
    for (uint32_t i = 0; i < model->levels; i++) {
        printf(" %.9g", (double)model->coordinate_scales[i]);
    }
    printf("\nlayer_widths");
    for (uint32_t i = 0; i < model->layers; i++) {
        printf(" %" PRIu32, model->layer_widths[i]);
    }
    printf("\nmask_channels %" PRIu32 "\nmask_stride %" PRIu32 "\nrelative_coordinates %" PRIu32
           "\nscore0 %d\nfinal_score %d\ncandidate_score %.17g\nnms_iou %.17g\ncandidates %" PRIu32
           "\nmax_det %" PRIu32 "\n",
           model->mask_channels, model->mask_stride, model->relative_coordinates,
           (int)model->score0, (int)model->final_score, model->candidate_score, model->nms_iou,
           model->candidates, model->max_det);
}

int main(void) {
    size_t size = fread(text, 1, sizeof text, stdin);
    bxs_metadata metadata;
    const char *wrong;
    bxs_status status = bxs_metadata_read(text, size, &metadata, &wrong);
    if (status != BXS_OK) {
        printf("%s %s\n", bxs_status_name(status), wrong);
        return 1;
    }
    printf("form %d\nprecision %d\nsize %d %" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu32
           "\npadding %d %d %d\n",
           (int)metadata.form, (int)metadata.precision, (int)metadata.size_rule, metadata.height,
           metadata.width, metadata.short_side, metadata.long_side, metadata.divisor,
           metadata.padding[0], metadata.padding[1], metadata.padding[2]);
    print_model(&metadata.model);
    for (uint32_t i = 0; i < metadata.model.classes; i++) {
        char name[256];
        size_t length;
        uint64_t id;
        status = bxs_metadata_class(text, size, i, name, sizeof name, &length, &id);
        if (status != BXS_OK) {
            printf("%s\n", bxs_status_name(status));
            return 1;
        }
        printf("class %" PRIu64 " %.*s\n", id, (int)length, name);
    }
    return 0;
}
