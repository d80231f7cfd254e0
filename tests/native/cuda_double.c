/* Stands in for NVIDIA's driver: one GPU whose memory is the host's. */
#include <stdlib.h>
#include <string.h>

static int live = 0;
/* Given out and not yet taken back; a block's size stands before it. */
static size_t taken = 0;
enum { ROOM = 1 << 30, HEAD = 64 };
/* A thread has to make the context current before it works. */
static _Thread_local void *current = NULL;
static char context[1], stream[1];

#define NEEDS_CONTEXT                                                                              \
    if (current == NULL) {                                                                         \
        return 201;                                                                                \
    }

int live_handles(void) {
    return live;
}

int cuInit(unsigned flags) {
    return (int)flags;
}

int cuDriverGetVersion(int *version) {
    *version = 12080;
    return 0;
}

int cuDeviceGetCount(int *count) {
    *count = 1;
    return 0;
}

int cuDeviceGet(int *device, int number) {
    *device = number;
    return 0;
}

int cuDeviceGetName(char *name, int room, int device) {
    (void)device;
    strncpy(name, "Stand-in GPU", (size_t)room);
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? 8 : 6;
    return 0;
}

int cuDevicePrimaryCtxRetain(void **made, int device) {
    (void)device;
    *made = context;
    live++;
    return 0;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    live--;
    return 0;
}

int cuCtxSetCurrent(void *chosen) {
    current = chosen;
    return 0;
}

int cuStreamCreate(void **made, unsigned flags) {
    NEEDS_CONTEXT(void) flags;
    *made = stream;
    live++;
    return 0;
}

int cuStreamSynchronize(void *of) {
    NEEDS_CONTEXT
    return of == stream ? 0 : 400;
}

int cuStreamDestroy_v2(void *of) {
    live--;
    return of == stream ? 0 : 400;
}

static int take(void **address, size_t size) {
    *address = malloc(size);
    live++;
    return *address == NULL ? 2 : 0;
}

static int give(void *address) {
    free(address);
    live--;
    return 0;
}

int cuMemGetInfo_v2(size_t *unused, size_t *total) {
    NEEDS_CONTEXT
    *total = ROOM;
    *unused = ROOM - taken;
    return 0;
}

int cuMemAlloc_v2(void **address, size_t size) {
    NEEDS_CONTEXT
    void *block = NULL;
    const int code = take(&block, size + HEAD);
    if (code == 0) {
        memcpy(block, &size, sizeof size);
        taken += size;
        *address = (char *)block + HEAD;
    }
    return code;
}

int cuMemFree_v2(void *address) {
    void *block = (char *)address - HEAD;
    size_t size = 0;
    memcpy(&size, block, sizeof size);
    taken -= size;
    return give(block);
}

int cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    NEEDS_CONTEXT(void) flags;
    return take(address, size);
}

int cuMemFreeHost(void *address) {
    return give(address);
}

int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, void *of) {
    NEEDS_CONTEXT
    memcpy(to, from, size);
    return of == stream ? 0 : 400;
}

int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t size, void *of) {
    NEEDS_CONTEXT
    memcpy(to, from, size);
    return of == stream ? 0 : 400;
}

int cuGetErrorString(int code, const char **text) {
    *text = code == 201 ? "invalid device context" : "some error";
    return 0;
}
