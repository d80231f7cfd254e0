/* 8 threads share one const scene and its model; each has its own scratch and outputs. All answers
 * are those of one thread alone. */
#include <pthread.h>

#include "scene.h"

enum { THREADS = 8, ROUNDS = 4 };

typedef struct {
    const scene *of;
    const char *expected;
    int differs;
} job;

static void *answer(void *argument) {
    job *mine = (job *)argument;
    char *text = (char *)scene_room(TEXT_BYTES);
    for (int i = 0; i < ROUNDS; i++) {
        scene_answer(mine->of, text);
        mine->differs |= strcmp(text, mine->expected) != 0;
    }
    free(text);
    return NULL;
}

int main(void) {
    scene of = scene_make(3);
    char *expected = (char *)scene_room(TEXT_BYTES);
    scene_answer(&of, expected);
    pthread_t threads[THREADS];
    job jobs[THREADS];
    int differs = 0;
    for (int i = 0; i < THREADS; i++) {
        jobs[i] = (job){&of, expected, 0};
        if (pthread_create(&threads[i], NULL, answer, &jobs[i]) != 0) {
            return 2;
        }
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        differs |= jobs[i].differs;
    }
    free(expected);
    scene_free(&of);
    return differs;
}
