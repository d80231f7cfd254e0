/* Prints the answer to a seeded scene: print_scene SEED */
#include "scene.h"

int main(int argc, char **argv) {
    scene of = scene_make(argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 1);
    char *text = (char *)scene_room(TEXT_BYTES);
    scene_answer(&of, text);
    fputs(text, stdout);
    free(text);
    scene_free(&of);
    return 0;
}
