/* boxseg.runtime._native: the C library for Python, through the buffer protocol.
 *
 * Arrays are any objects with buffers; this file checks their type and room, releases the GIL and
 * calls the library. Errors become ValueError with the status code's name. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "boxseg.h"

#include <math.h>
#include <string.h>
#include <time.h>

static PyObject *raise_status(bxs_status status) {
    PyErr_Format(PyExc_ValueError, "%s: %s", bxs_status_name(status), bxs_status_meaning(status));
    return NULL;
}

/* ---------------------------------------------------------------- limits */

static PyObject *simd_levels(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(nothing)) {
    const int best = (int)bxs_simd_best();
    PyObject *names = PyTuple_New(best);
    for (int level = 1; names != NULL && level <= best; level++) {
        PyObject *name = PyUnicode_FromString(bxs_simd_name((bxs_simd)level));
        if (name == NULL || PyTuple_SetItem(names, level - 1, name) != 0) {
            Py_DECREF(names);
            return NULL;
        }
    }
    return names;
}

/* A time on the monotonic clock. */
typedef struct {
    struct timespec end;
} alarm_clock;

static int is_over(void *context) {
    const struct timespec *end = &((const alarm_clock *)context)->end;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec > end->tv_sec || (now.tv_sec == end->tv_sec && now.tv_nsec >= end->tv_nsec);
}

/* Starts a deadline that ends after some milliseconds; NULL if there is none because `ms` is not
 * finite or not within a year. */
static const bxs_deadline *start_deadline(double ms, alarm_clock *clock, bxs_deadline *deadline) {
    if (!(ms < 3.2e10)) {
        return NULL;
    }
    ms = ms < 0.0 ? 0.0 : ms;
    const double seconds = floor(ms / 1e3);
    clock_gettime(CLOCK_MONOTONIC, &clock->end);
    clock->end.tv_sec += (time_t)seconds;
    clock->end.tv_nsec += (long)((ms - 1e3 * seconds) * 1e6);
    if (clock->end.tv_nsec >= 1000000000L) {
        clock->end.tv_nsec -= 1000000000L;
        clock->end.tv_sec++;
    }
    deadline->expired = is_over;
    deadline->context = clock;
    return deadline;
}

/* ---------------------------------------------------------------- images */

/* A (H, W) or (H, W, channels) byte image whose pixels have no gaps; rows may have some. */
static int get_image(PyObject *object, Py_buffer *view, uint32_t *height, uint32_t *width,
                     uint32_t *channels, size_t *row_stride, size_t *size) {
    if (PyObject_GetBuffer(object, view, PyBUF_STRIDES | PyBUF_FORMAT) != 0) {
        return -1;
    }
    Py_ssize_t depth = view->ndim == 3 ? view->shape[2] : 1;
    int good = (view->ndim == 2 || view->ndim == 3) && view->itemsize == 1 &&
               (view->format == NULL || view->format[0] == 'B') && view->shape[0] > 0 &&
               view->shape[1] > 0 && view->shape[0] <= (Py_ssize_t)BXS_MAX_SIDE &&
               view->shape[1] <= (Py_ssize_t)BXS_MAX_SIDE && depth >= 1 && depth <= 4 &&
               (view->ndim == 2 || depth == 1 || view->strides[2] == 1) &&
               (view->shape[1] == 1 || view->strides[1] == depth) &&
               (view->shape[0] == 1 || view->strides[0] >= view->shape[1] * depth);
    if (!good) {
        PyBuffer_Release(view);
        PyErr_Format(PyExc_ValueError,
                     "an image must be uint8 (H, W) or (H, W, 1..4) with pixels side by side and "
                     "sides of 1..%u",
                     BXS_MAX_SIDE);
        return -1;
    }
    *height = (uint32_t)view->shape[0];
    *width = (uint32_t)view->shape[1];
    *channels = (uint32_t)depth;
    size_t row_bytes = (size_t)(view->shape[1] * depth);
    *row_stride = view->shape[0] == 1 ? row_bytes : (size_t)view->strides[0];
    *size = (size_t)(view->shape[0] - 1) * *row_stride + row_bytes;
    return 0;
}

static int get_bytes(PyObject *object, Py_buffer *view) {
    return PyObject_GetBuffer(object, view, PyBUF_WRITABLE);
}

static PyObject *map_tuple(const bxs_letterbox *map) {
    return Py_BuildValue("(IIIIII)", map->frame_height, map->frame_width, map->content_height,
                         map->content_width, map->height, map->width);
}

#define MAP_FORMAT "(IIIIII)"
#define MAP_FIELDS(map)                                                                            \
    &(map).frame_height, &(map).frame_width, &(map).content_height, &(map).content_width,          \
        &(map).height, &(map).width

static PyObject *letterbox_fit(PyObject *Py_UNUSED(module), PyObject *args) {
    unsigned int frame_height, frame_width, height, width;
    bxs_letterbox map;
    if (!PyArg_ParseTuple(args, "IIII", &frame_height, &frame_width, &height, &width)) {
        return NULL;
    }
    bxs_status status = bxs_letterbox_fit(frame_height, frame_width, height, width, &map);
    return status == BXS_OK ? map_tuple(&map) : raise_status(status);
}

static PyObject *letterbox_short_long(PyObject *Py_UNUSED(module), PyObject *args) {
    unsigned int frame_height, frame_width, short_side, long_side, divisor;
    bxs_letterbox map;
    if (!PyArg_ParseTuple(args, "IIIII", &frame_height, &frame_width, &short_side, &long_side,
                          &divisor)) {
        return NULL;
    }
    bxs_status status =
        bxs_letterbox_short_long(frame_height, frame_width, short_side, long_side, divisor, &map);
    return status == BXS_OK ? map_tuple(&map) : raise_status(status);
}

static PyObject *letterbox_scratch_size(PyObject *Py_UNUSED(module), PyObject *args) {
    bxs_letterbox map;
    if (!PyArg_ParseTuple(args, MAP_FORMAT, MAP_FIELDS(map))) {
        return NULL;
    }
    return PyLong_FromSize_t(bxs_letterbox_scratch_size(&map));
}

/* A frame of any format; its size is the map's where the array's shape is another. */
static int get_frame(PyObject *object, int format, int yuv, const bxs_letterbox *map,
                     Py_buffer *view, bxs_frame *frame) {
    uint32_t channels;
    memset(frame, 0, sizeof *frame);
    if (get_image(object, view, &frame->height, &frame->width, &channels, &frame->row_stride,
                  &frame->size) != 0) {
        return -1;
    }
    frame->data = (const uint8_t *)view->buf;
    frame->format = (bxs_pixel_format)format;
    frame->yuv = (bxs_yuv)yuv;
    if (format == BXS_NV12 || format == BXS_YUYV) {
        frame->height = map->frame_height;
        frame->width = map->frame_width;
        return 0;
    }
    if (channels == 1) {
        frame->format = BXS_MONO8;
    } else if (channels != 3) {
        PyBuffer_Release(view);
        PyErr_Format(PyExc_ValueError, "a frame must have 1 or 3 channels, got %u", channels);
        return -1;
    }
    return 0;
}

/* Three bytes, or None for NULL. */
static int get_padding(PyObject *object, unsigned char padding[3], const uint8_t **given) {
    *given = NULL;
    if (object == Py_None) {
        return 0;
    }
    *given = padding;
    if (!PyTuple_Check(object)) {
        PyErr_SetString(PyExc_ValueError, "padding must be three bytes or None");
        return -1;
    }
    return PyArg_ParseTuple(object, "bbb", &padding[0], &padding[1], &padding[2]) ? 0 : -1;
}

static PyObject *letterbox_rgb8(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *frame_object, *padding_object, *scratch_object, *out_object, *result = NULL;
    Py_buffer image, scratch, out;
    bxs_letterbox map;
    bxs_frame frame;
    unsigned char bytes[3];
    const uint8_t *padding;
    int format, simd = BXS_SIMD_BEST, yuv = BXS_BT601_LIMITED;
    if (!PyArg_ParseTuple(args, "Oi" MAP_FORMAT "OOO|ii", &frame_object, &format, MAP_FIELDS(map),
                          &padding_object, &scratch_object, &out_object, &simd, &yuv) ||
        get_padding(padding_object, bytes, &padding) != 0 ||
        get_frame(frame_object, format, yuv, &map, &image, &frame) != 0) {
        return NULL;
    }
    if (get_bytes(scratch_object, &scratch) != 0) {
        goto release_image;
    }
    if (get_bytes(out_object, &out) != 0) {
        goto release_scratch;
    }
    bxs_status status;
    Py_BEGIN_ALLOW_THREADS status =
        bxs_letterbox_rgb8(&frame, &map, padding, (bxs_simd)simd, scratch.buf, (size_t)scratch.len,
                           (uint8_t *)out.buf, (size_t)out.len);
    Py_END_ALLOW_THREADS result = status == BXS_OK ? Py_NewRef(Py_None) : raise_status(status);
    PyBuffer_Release(&out);
release_scratch:
    PyBuffer_Release(&scratch);
release_image:
    PyBuffer_Release(&image);
    return result;
}

static PyObject *letterbox_f32(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *frame_object, *padding_object, *scratch_object, *out_object, *result = NULL;
    Py_buffer image, scratch, out;
    bxs_letterbox map;
    bxs_frame frame;
    unsigned char bytes[3];
    const uint8_t *padding;
    float mean[3], std[3];
    int format, simd = BXS_SIMD_BEST, yuv = BXS_BT601_LIMITED;
    if (!PyArg_ParseTuple(args, "Oi" MAP_FORMAT "O(fff)(fff)OO|ii", &frame_object, &format,
                          MAP_FIELDS(map), &padding_object, &mean[0], &mean[1], &mean[2], &std[0],
                          &std[1], &std[2], &scratch_object, &out_object, &simd, &yuv) ||
        get_padding(padding_object, bytes, &padding) != 0 ||
        get_frame(frame_object, format, yuv, &map, &image, &frame) != 0) {
        return NULL;
    }
    if (get_bytes(scratch_object, &scratch) != 0) {
        goto release_image;
    }
    if (PyObject_GetBuffer(out_object, &out, PyBUF_WRITABLE | PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) !=
        0) {
        goto release_scratch;
    }
    if (out.format == NULL || out.format[0] != 'f') {
        PyErr_SetString(PyExc_ValueError, "out must be float32");
        goto release_out;
    }
    bxs_status status;
    Py_BEGIN_ALLOW_THREADS status =
        bxs_letterbox_f32(&frame, &map, padding, mean, std, (bxs_simd)simd, scratch.buf,
                          (size_t)scratch.len, (float *)out.buf, (size_t)out.len / sizeof(float));
    Py_END_ALLOW_THREADS result = status == BXS_OK ? Py_NewRef(Py_None) : raise_status(status);
release_out:
    PyBuffer_Release(&out);
release_scratch:
    PyBuffer_Release(&scratch);
release_image:
    PyBuffer_Release(&image);
    return result;
}

static PyObject *resize_scratch_size(PyObject *Py_UNUSED(module), PyObject *args) {
    unsigned int channels, new_width;
    if (!PyArg_ParseTuple(args, "II", &channels, &new_width)) {
        return NULL;
    }
    return PyLong_FromSize_t(bxs_resize_scratch_size(channels, new_width));
}

static PyObject *resize_u8(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *image_object, *scratch_object, *out_object, *result = NULL;
    Py_buffer image, scratch, out;
    unsigned int new_height, new_width;
    uint32_t height, width, channels;
    size_t row_stride, size;
    if (!PyArg_ParseTuple(args, "OIIOO", &image_object, &new_height, &new_width, &scratch_object,
                          &out_object)) {
        return NULL;
    }
    if (get_image(image_object, &image, &height, &width, &channels, &row_stride, &size) != 0) {
        return NULL;
    }
    if (get_bytes(scratch_object, &scratch) != 0) {
        goto release_image;
    }
    if (get_bytes(out_object, &out) != 0) {
        goto release_scratch;
    }
    bxs_status status;
    Py_BEGIN_ALLOW_THREADS status = bxs_resize_u8(
        (const uint8_t *)image.buf, size, row_stride, height, width, channels, new_height,
        new_width, scratch.buf, (size_t)scratch.len, (uint8_t *)out.buf, (size_t)out.len);
    Py_END_ALLOW_THREADS result = status == BXS_OK ? Py_NewRef(Py_None) : raise_status(status);
    PyBuffer_Release(&out);
release_scratch:
    PyBuffer_Release(&scratch);
release_image:
    PyBuffer_Release(&image);
    return result;
}

/* ---------------------------------------------------------------- arrays */

/* Arrays of one call, released together. */
#define MAX_ARRAYS 8

typedef struct {
    Py_buffer views[MAX_ARRAYS];
    int count;
} arrays;

static void release_arrays(arrays *held) {
    while (held->count > 0) {
        PyBuffer_Release(&held->views[--held->count]);
    }
}

/* Memory of a C-contiguous array of `count` or more items of a type ('f', 'i', 'I', or 'B' for raw
 * bytes of any type), or NULL with an exception. */
static void *hold_array(arrays *held, PyObject *object, const char *name, char type, size_t count,
                        int flags) {
    Py_buffer *view = &held->views[held->count];
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | flags) != 0) {
        return NULL;
    }
    held->count++;
    size_t size = type == 'B' ? 1 : 4;
    if (type != 'B' && (view->format == NULL || view->format[0] != type || view->itemsize != 4)) {
        PyErr_Format(PyExc_ValueError, "%s must be %s, got format %s", name,
                     type == 'f'   ? "float32"
                     : type == 'i' ? "int32"
                                   : "uint32",
                     view->format ? view->format : "B");
        return NULL;
    }
    if ((size_t)view->len / size < count) {
        PyErr_Format(PyExc_ValueError, "%s must hold at least %zu items, got %zu", name, count,
                     (size_t)view->len / size);
        return NULL;
    }
    return view->buf;
}

static size_t held_bytes(const arrays *held) {
    return (size_t)held->views[held->count - 1].len;
}

/* ---------------------------------------------------------------- model */

#define MODEL_NAME "boxseg.model"

static void free_model(PyObject *capsule) {
    PyMem_Free(PyCapsule_GetPointer(capsule, MODEL_NAME));
}

static const bxs_model *get_model(PyObject *object) {
    return (const bxs_model *)PyCapsule_GetPointer(object, MODEL_NAME);
}

/* Reads up to `limit` numbers of a tuple; returns how many, or -1. */
static Py_ssize_t read_tuple(PyObject *tuple, Py_ssize_t limit, const char *name, double *values) {
    Py_ssize_t n = PyTuple_Size(tuple);
    if (n < 0) {
        return -1;
    }
    if (n > limit) {
        PyErr_Format(PyExc_ValueError, "%s must have at most %zd items, got %zd", name, limit, n);
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        values[i] = PyFloat_AsDouble(PyTuple_GetItem(tuple, i));
        if (PyErr_Occurred()) {
            return -1;
        }
        if (!(values[i] >= 0.0 && values[i] <= 1e9)) {
            PyErr_Format(PyExc_ValueError, "%s must be in 0..1e9", name);
            return -1;
        }
    }
    return n;
}

static PyObject *make_model(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *strides, *scales, *widths;
    double values[BXS_MAX_LEVELS];
    bxs_model model = {0};
    int score0, final_score, simd = 0;
    unsigned int classes, channels, mask_stride, relative, candidates, max_det;
    if (!PyArg_ParseTuple(args, "IO!O!IIO!IiiddII|i", &classes, &PyTuple_Type, &strides,
                          &PyTuple_Type, &scales, &channels, &mask_stride, &PyTuple_Type, &widths,
                          &relative, &score0, &final_score, &model.candidate_score, &model.nms_iou,
                          &candidates, &max_det, &simd)) {
        return NULL;
    }
    Py_ssize_t levels = read_tuple(strides, BXS_MAX_LEVELS, "strides", values);
    for (Py_ssize_t i = 0; i < levels; i++) {
        model.strides[i] = (uint32_t)values[i];
    }
    Py_ssize_t n_scales =
        levels < 0 ? -1 : read_tuple(scales, BXS_MAX_LEVELS, "coordinate_scales", values);
    for (Py_ssize_t i = 0; i < n_scales; i++) {
        model.coordinate_scales[i] = (float)values[i];
    }
    Py_ssize_t layers =
        n_scales < 0 ? -1 : read_tuple(widths, BXS_MAX_LAYERS, "layer_widths", values);
    for (Py_ssize_t i = 0; i < layers; i++) {
        model.layer_widths[i] = (uint32_t)values[i];
    }
    if (layers < 0) {
        return NULL;
    }
    if (n_scales != levels) {
        PyErr_SetString(PyExc_ValueError, "coordinate_scales must have one item per stride");
        return NULL;
    }
    model.classes = classes;
    model.levels = (uint32_t)levels;
    model.mask_channels = channels;
    model.mask_stride = mask_stride;
    model.layers = (uint32_t)layers;
    model.relative_coordinates = relative;
    model.score0 = (bxs_score0_rule)score0;
    model.final_score = (bxs_final_rule)final_score;
    model.candidates = candidates;
    model.max_det = max_det;
    model.simd = (bxs_simd)simd;
    bxs_status status = bxs_model_check(&model);
    if (status != BXS_OK) {
        return raise_status(status);
    }
    bxs_model *kept = (bxs_model *)PyMem_Malloc(sizeof *kept);
    if (kept == NULL) {
        return PyErr_NoMemory();
    }
    *kept = model;
    PyObject *capsule = PyCapsule_New(kept, MODEL_NAME, free_model);
    if (capsule == NULL) {
        PyMem_Free(kept);
    }
    return capsule;
}

static PyObject *parameter_count(PyObject *Py_UNUSED(module), PyObject *object) {
    const bxs_model *model = get_model(object);
    return model == NULL ? NULL : PyLong_FromSize_t(bxs_parameter_count(model));
}

static PyObject *location_count(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *object;
    unsigned int height, width;
    if (!PyArg_ParseTuple(args, "OII", &object, &height, &width)) {
        return NULL;
    }
    const bxs_model *model = get_model(object);
    return model == NULL ? NULL : PyLong_FromSize_t(bxs_location_count(model, height, width));
}

/* ---------------------------------------------------------------- candidates */

/* bxs_scan_dense or bxs_select_dense, which have the same arguments but for the deadline. */
static PyObject *find(PyObject *args, int selects) {
    PyObject *model_object, *logits, *quality, *boxes, *scratch_object, *out_object;
    bxs_letterbox map;
    arrays held = {.count = 0};
    PyObject *result = NULL;
    double budget_ms = INFINITY;
    if (!PyArg_ParseTuple(args, selects ? "OOOO" MAP_FORMAT "OO|d" : "OOOO" MAP_FORMAT "OO",
                          &model_object, &logits, &quality, &boxes, MAP_FIELDS(map),
                          &scratch_object, &out_object, &budget_ms)) {
        return NULL;
    }
    alarm_clock clock;
    bxs_deadline storage;
    const bxs_deadline *deadline = start_deadline(budget_ms, &clock, &storage);
    const bxs_model *model = get_model(model_object);
    if (model == NULL) {
        return NULL;
    }
    bxs_dense dense = {NULL, NULL, NULL, bxs_location_count(model, map.height, map.width)};
    size_t n = 0;
    dense.class_logits = (const float *)hold_array(&held, logits, "class_logits", 'f',
                                                   dense.locations * model->classes, 0);
    if (dense.class_logits == NULL) {
        goto release;
    }
    if (quality != Py_None) {
        dense.quality_logits =
            (const float *)hold_array(&held, quality, "quality_logits", 'f', dense.locations, 0);
        if (dense.quality_logits == NULL) {
            goto release;
        }
    }
    dense.boxes = (const float *)hold_array(&held, boxes, "boxes", 'f', 4 * dense.locations, 0);
    if (dense.boxes == NULL) {
        goto release;
    }
    void *scratch = hold_array(&held, scratch_object, "scratch", 'B', 0, PyBUF_WRITABLE);
    size_t scratch_size = scratch == NULL ? 0 : held_bytes(&held);
    void *out = scratch == NULL
                    ? NULL
                    : hold_array(&held, out_object, "candidates", 'B', 0, PyBUF_WRITABLE);
    if (out == NULL) {
        goto release;
    }
    size_t room = held_bytes(&held) / sizeof(bxs_candidate);
    bxs_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = selects ? bxs_select_dense(model, &dense, &map, deadline, scratch, scratch_size,
                                        (bxs_candidate *)out, room, &n)
                     : bxs_scan_dense(model, &dense, &map, scratch, scratch_size,
                                      (bxs_candidate *)out, room, &n);
    Py_END_ALLOW_THREADS;
    if (status != BXS_OK && status != BXS_ERROR_DEADLINE) {
        raise_status(status);
    } else if (selects) {
        result = Py_BuildValue("(nO)", (Py_ssize_t)n, status == BXS_OK ? Py_True : Py_False);
    } else {
        result = PyLong_FromSize_t(n);
    }
release:
    release_arrays(&held);
    return result;
}

static PyObject *scan_scratch_size(PyObject *Py_UNUSED(module), PyObject *object) {
    const bxs_model *model = get_model(object);
    return model == NULL ? NULL : PyLong_FromSize_t(bxs_scan_scratch_size(model));
}

static PyObject *scan_dense(PyObject *Py_UNUSED(module), PyObject *args) {
    return find(args, 0);
}

static PyObject *select_scratch_size(PyObject *Py_UNUSED(module), PyObject *object) {
    const bxs_model *model = get_model(object);
    return model == NULL ? NULL : PyLong_FromSize_t(bxs_select_scratch_size(model));
}

static PyObject *select_dense(PyObject *Py_UNUSED(module), PyObject *args) {
    return find(args, 1);
}

static PyObject *select_topk_scratch_size(PyObject *Py_UNUSED(module), PyObject *object) {
    const bxs_model *model = get_model(object);
    return model == NULL ? NULL : PyLong_FromSize_t(bxs_select_topk_scratch_size(model));
}

static PyObject *select_topk(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *model_object, *scores, *labels, *boxes, *locations, *levels;
    PyObject *scratch_object, *out_object, *result = NULL;
    bxs_letterbox map;
    arrays held = {.count = 0};
    double budget_ms = INFINITY;
    if (!PyArg_ParseTuple(args, "OOOOOO" MAP_FORMAT "OO|d", &model_object, &scores, &labels, &boxes,
                          &locations, &levels, MAP_FIELDS(map), &scratch_object, &out_object,
                          &budget_ms)) {
        return NULL;
    }
    alarm_clock clock;
    bxs_deadline storage;
    const bxs_deadline *deadline = start_deadline(budget_ms, &clock, &storage);
    const bxs_model *model = get_model(model_object);
    if (model == NULL) {
        return NULL;
    }
    bxs_topk topk = {NULL, NULL, NULL, NULL, NULL, 0};
    topk.scores = (const float *)hold_array(&held, scores, "scores", 'f', 0, 0);
    if (topk.scores == NULL) {
        goto release;
    }
    topk.rows = held_bytes(&held) / sizeof(float);
    topk.labels = (const int32_t *)hold_array(&held, labels, "labels", 'i', topk.rows, 0);
    if (topk.labels == NULL) {
        goto release;
    }
    topk.boxes = (const float *)hold_array(&held, boxes, "boxes", 'f', 4 * topk.rows, 0);
    if (topk.boxes == NULL) {
        goto release;
    }
    topk.locations =
        (const float *)hold_array(&held, locations, "locations", 'f', 2 * topk.rows, 0);
    if (topk.locations == NULL) {
        goto release;
    }
    topk.levels = (const int32_t *)hold_array(&held, levels, "levels", 'i', topk.rows, 0);
    if (topk.levels == NULL) {
        goto release;
    }
    void *scratch = hold_array(&held, scratch_object, "scratch", 'B', 0, PyBUF_WRITABLE);
    size_t scratch_size = scratch == NULL ? 0 : held_bytes(&held);
    void *out =
        scratch == NULL ? NULL : hold_array(&held, out_object, "kept", 'B', 0, PyBUF_WRITABLE);
    if (out == NULL) {
        goto release;
    }
    size_t room = held_bytes(&held) / sizeof(bxs_candidate), n = 0;
    bxs_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = bxs_select_topk(model, &topk, &map, deadline, scratch, scratch_size,
                             (bxs_candidate *)out, room, &n);
    Py_END_ALLOW_THREADS;
    if (status != BXS_OK && status != BXS_ERROR_DEADLINE) {
        raise_status(status);
    } else {
        result = Py_BuildValue("(nO)", (Py_ssize_t)n, status == BXS_OK ? Py_True : Py_False);
    }
release:
    release_arrays(&held);
    return result;
}

static PyObject *nms_scratch_size(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_ssize_t n;
    unsigned int class_count;
    if (!PyArg_ParseTuple(args, "nI", &n, &class_count)) {
        return NULL;
    }
    return PyLong_FromSize_t(n < 0 ? 0 : bxs_nms_scratch_size((size_t)n, class_count));
}

static PyObject *nms(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *boxes_object, *scores_object, *classes_object, *scratch_object, *keep_object;
    unsigned int class_count;
    double iou_threshold;
    float score_threshold;
    Py_ssize_t max_keep;
    int simd = 0;
    arrays held = {.count = 0};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "OOOIdfnOO|i", &boxes_object, &scores_object, &classes_object,
                          &class_count, &iou_threshold, &score_threshold, &max_keep,
                          &scratch_object, &keep_object, &simd)) {
        return NULL;
    }
    const float *boxes = NULL;
    const uint32_t *classes = NULL;
    void *scratch = NULL;
    uint32_t *keep = NULL;
    size_t n = 0, scratch_size = 0, n_keep = 0;
    const float *scores = (const float *)hold_array(&held, scores_object, "scores", 'f', 0, 0);
    if (scores != NULL) {
        n = held_bytes(&held) / 4;
        boxes = (const float *)hold_array(&held, boxes_object, "boxes", 'f', 4 * n, 0);
    }
    if (boxes != NULL && classes_object != Py_None) {
        classes = (const uint32_t *)hold_array(&held, classes_object, "classes", 'I', n, 0);
    }
    if (boxes != NULL && (classes != NULL || classes_object == Py_None)) {
        scratch = hold_array(&held, scratch_object, "scratch", 'B', 0, PyBUF_WRITABLE);
        scratch_size = scratch == NULL ? 0 : held_bytes(&held);
    }
    if (scratch != NULL) {
        size_t most = max_keep < 0 ? 0 : (size_t)max_keep < n ? (size_t)max_keep : n;
        keep = (uint32_t *)hold_array(&held, keep_object, "keep", 'I', most, PyBUF_WRITABLE);
    }
    if (keep != NULL) {
        bxs_status status;
        Py_BEGIN_ALLOW_THREADS status =
            bxs_nms(boxes, scores, classes, n, class_count, iou_threshold, score_threshold,
                    max_keep < 0 ? 0 : (size_t)max_keep, (bxs_simd)simd, scratch, scratch_size,
                    keep, &n_keep);
        Py_END_ALLOW_THREADS result =
            status == BXS_OK ? PyLong_FromSize_t(n_keep) : raise_status(status);
    }
    release_arrays(&held);
    return result;
}

/* ---------------------------------------------------------------- masks */

#define REGION_FORMAT "(IIII)"
#define REGION_FIELDS(region) &(region).x0, &(region).y0, &(region).x1, &(region).y1

static PyObject *region_tuple(const bxs_region *region) {
    return Py_BuildValue("(IIII)", region->x0, region->y0, region->x1, region->y1);
}

/* Holds parameters (P, slots) or, when `by_slot`, (slots, P), and the features of a grid; where
 * there are no features, the parameters are logits (slots, rows, columns). */
static int hold_inputs(arrays *held, const bxs_model *model, PyObject *parameters,
                       PyObject *features, Py_ssize_t slots, int by_slot, uint32_t rows,
                       uint32_t columns, bxs_mask_inputs *inputs) {
    size_t count = bxs_parameter_count(model);
    if (slots < 0 || rows > BXS_MAX_SIDE || columns > BXS_MAX_SIDE) {
        PyErr_SetString(PyExc_ValueError, "sizes are negative or too large");
        return -1;
    }
    inputs->slots = (size_t)slots;
    inputs->parameter_stride = by_slot ? 1 : inputs->slots;
    inputs->slot_stride = by_slot ? count : 1;
    inputs->rows = rows;
    inputs->columns = columns;
    inputs->logits = NULL;
    if (features == Py_None) {
        inputs->parameters = inputs->features = NULL;
        inputs->logits = (const float *)hold_array(held, parameters, "mask_logits", 'f',
                                                   inputs->slots * rows * columns, 0);
        return inputs->logits == NULL ? -1 : 0;
    }
    inputs->parameters =
        (const float *)hold_array(held, parameters, "parameters", 'f', count * inputs->slots, 0);
    if (inputs->parameters == NULL) {
        return -1;
    }
    inputs->features = (const float *)hold_array(held, features, "mask_features", 'f',
                                                 (size_t)model->mask_channels * rows * columns, 0);
    return inputs->features == NULL ? -1 : 0;
}

static PyObject *cut_box(PyObject *Py_UNUSED(module), PyObject *args) {
    float box[4];
    bxs_letterbox map;
    unsigned int mask_stride;
    bxs_cut cut;
    if (!PyArg_ParseTuple(args, "(ffff)" MAP_FORMAT "I", &box[0], &box[1], &box[2], &box[3],
                          MAP_FIELDS(map), &mask_stride)) {
        return NULL;
    }
    bxs_status status = bxs_cut_box(box, &map, mask_stride, &cut);
    if (status != BXS_OK) {
        return raise_status(status);
    }
    return Py_BuildValue("((ffff)(ffff)NN)", cut.input_box[0], cut.input_box[1], cut.input_box[2],
                         cut.input_box[3], cut.frame_box[0], cut.frame_box[1], cut.frame_box[2],
                         cut.frame_box[3], region_tuple(&cut.pixels), region_tuple(&cut.cells));
}

static PyObject *mask_head_scratch_size(PyObject *Py_UNUSED(module), PyObject *object) {
    const bxs_model *model = get_model(object);
    return model == NULL ? NULL : PyLong_FromSize_t(bxs_mask_head_scratch_size(model));
}

static PyObject *mask_head(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *model_object, *parameters, *features, *candidate_object, *scratch_object, *out_object;
    Py_ssize_t slots;
    int by_slot;
    unsigned int rows, columns;
    bxs_region region;
    bxs_mask_inputs inputs;
    arrays held = {.count = 0};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "OOOnpIIO" REGION_FORMAT "OO", &model_object, &parameters,
                          &features, &slots, &by_slot, &rows, &columns, &candidate_object,
                          REGION_FIELDS(region), &scratch_object, &out_object)) {
        return NULL;
    }
    const bxs_model *model = get_model(model_object);
    if (model == NULL) {
        return NULL;
    }
    if (hold_inputs(&held, model, parameters, features, slots, by_slot, rows, columns, &inputs) !=
        0) {
        goto release;
    }
    bxs_candidate candidate;
    const void *bytes =
        hold_array(&held, candidate_object, "candidate", 'B', sizeof(bxs_candidate), 0);
    if (bytes == NULL) {
        goto release;
    }
    memcpy(&candidate, bytes, sizeof candidate);
    void *scratch = hold_array(&held, scratch_object, "scratch", 'B', 0, PyBUF_WRITABLE);
    size_t scratch_size = scratch == NULL ? 0 : held_bytes(&held);
    float *out = scratch == NULL
                     ? NULL
                     : (float *)hold_array(&held, out_object, "logits", 'f', 0, PyBUF_WRITABLE);
    if (out == NULL) {
        goto release;
    }
    size_t room = held_bytes(&held) / sizeof(float);
    bxs_status status;
    Py_BEGIN_ALLOW_THREADS status =
        bxs_mask_head(model, &inputs, &candidate, region, scratch, scratch_size, out, room);
    Py_END_ALLOW_THREADS result = status == BXS_OK ? Py_NewRef(Py_None) : raise_status(status);
release:
    release_arrays(&held);
    return result;
}

/* Holds the logits of a surface and checks that its region lies in its grid. */
static int hold_surface(arrays *held, PyObject *logits, bxs_surface *surface) {
    const bxs_region *region = &surface->region;
    if (region->x0 >= region->x1 || region->y0 >= region->y1 || region->x1 > surface->columns ||
        region->y1 > surface->rows || surface->columns > BXS_MAX_SIDE ||
        surface->rows > BXS_MAX_SIDE || surface->stride < 1) {
        PyErr_SetString(PyExc_ValueError, "the region must be a part of the grid");
        return -1;
    }
    size_t count = (size_t)(region->x1 - region->x0) * (region->y1 - region->y0);
    surface->logits = (const float *)hold_array(held, logits, "logits", 'f', count, 0);
    return surface->logits == NULL ? -1 : 0;
}

#define SURFACE_FORMAT "O" REGION_FORMAT "III"
#define SURFACE_FIELDS(object, surface)                                                            \
    &(object), REGION_FIELDS((surface).region), &(surface).rows, &(surface).columns,               \
        &(surface).stride

static PyObject *mask_score(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *logits;
    bxs_surface surface;
    float box[4];
    arrays held = {.count = 0};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, SURFACE_FORMAT "(ffff)", SURFACE_FIELDS(logits, surface), &box[0],
                          &box[1], &box[2], &box[3])) {
        return NULL;
    }
    if (hold_surface(&held, logits, &surface) == 0) {
        result = PyFloat_FromDouble((double)bxs_mask_score(&surface, box));
    }
    release_arrays(&held);
    return result;
}

static PyObject *surface_scratch_size(PyObject *Py_UNUSED(module), PyObject *args) {
    unsigned int height, width, rows;
    if (!PyArg_ParseTuple(args, "III", &height, &width, &rows)) {
        return NULL;
    }
    return PyLong_FromSize_t(bxs_surface_scratch_size(height, width, rows));
}

static PyObject *surface_text_size(PyObject *Py_UNUSED(module), PyObject *args) {
    bxs_letterbox map;
    unsigned int rows;
    if (!PyArg_ParseTuple(args, MAP_FORMAT "I", MAP_FIELDS(map), &rows)) {
        return NULL;
    }
    return PyLong_FromSize_t(bxs_surface_text_size(&map, rows));
}

static PyObject *surface_rle(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *logits, *scratch_object, *text_object, *result = NULL;
    bxs_surface surface;
    bxs_letterbox map;
    bxs_region pixels;
    int simd = 0;
    arrays held = {.count = 0};
    if (!PyArg_ParseTuple(args, SURFACE_FORMAT MAP_FORMAT REGION_FORMAT "OO|i",
                          SURFACE_FIELDS(logits, surface), MAP_FIELDS(map), REGION_FIELDS(pixels),
                          &scratch_object, &text_object, &simd)) {
        return NULL;
    }
    if (hold_surface(&held, logits, &surface) != 0) {
        goto release;
    }
    void *scratch = hold_array(&held, scratch_object, "scratch", 'B', 0, PyBUF_WRITABLE);
    size_t scratch_size = scratch == NULL ? 0 : held_bytes(&held);
    char *text = scratch == NULL
                     ? NULL
                     : (char *)hold_array(&held, text_object, "text", 'B', 0, PyBUF_WRITABLE);
    if (text == NULL) {
        goto release;
    }
    size_t length = 0, room = held_bytes(&held);
    uint32_t area = 0;
    bxs_status status;
    Py_BEGIN_ALLOW_THREADS status = bxs_surface_rle(&surface, &map, pixels, (bxs_simd)simd, scratch,
                                                    scratch_size, text, room, &length, &area);
    Py_END_ALLOW_THREADS result =
        status == BXS_OK ? Py_BuildValue("(nI)", (Py_ssize_t)length, area) : raise_status(status);
release:
    release_arrays(&held);
    return result;
}

typedef bxs_status (*draw_function)(const bxs_surface *, const bxs_letterbox *, bxs_region,
                                    bxs_simd, void *, size_t, uint8_t *, size_t);

static PyObject *draw(PyObject *args, draw_function function) {
    PyObject *logits, *scratch_object, *out_object, *result = NULL;
    bxs_surface surface;
    bxs_letterbox map;
    bxs_region pixels;
    int simd = 0;
    arrays held = {.count = 0};
    if (!PyArg_ParseTuple(args, SURFACE_FORMAT MAP_FORMAT REGION_FORMAT "OO|i",
                          SURFACE_FIELDS(logits, surface), MAP_FIELDS(map), REGION_FIELDS(pixels),
                          &scratch_object, &out_object, &simd)) {
        return NULL;
    }
    if (hold_surface(&held, logits, &surface) != 0) {
        goto release;
    }
    void *scratch = hold_array(&held, scratch_object, "scratch", 'B', 0, PyBUF_WRITABLE);
    size_t scratch_size = scratch == NULL ? 0 : held_bytes(&held);
    uint8_t *out = scratch == NULL
                       ? NULL
                       : (uint8_t *)hold_array(&held, out_object, "out", 'B', 0, PyBUF_WRITABLE);
    if (out == NULL) {
        goto release;
    }
    size_t room = held_bytes(&held);
    bxs_status status;
    Py_BEGIN_ALLOW_THREADS status =
        function(&surface, &map, pixels, (bxs_simd)simd, scratch, scratch_size, out, room);
    Py_END_ALLOW_THREADS result = status == BXS_OK ? Py_NewRef(Py_None) : raise_status(status);
release:
    release_arrays(&held);
    return result;
}

static PyObject *surface_bytes(PyObject *Py_UNUSED(module), PyObject *args) {
    return draw(args, bxs_surface_bytes);
}

static PyObject *surface_bits(PyObject *Py_UNUSED(module), PyObject *args) {
    return draw(args, bxs_surface_bits);
}

/* Rings while they are found; the room grows once, to what is needed. */
typedef struct {
    float *points;
    uint32_t *ends;
    size_t point_room, ring_room, n_points, n_rings;
} rings;

static int rings_open(rings *found, size_t points, size_t n) {
    found->point_room = points;
    found->ring_room = n;
    found->points = (float *)PyMem_Malloc(points * 2 * sizeof(float) + 1);
    found->ends = (uint32_t *)PyMem_Malloc(n * sizeof(uint32_t) + 1);
    if (found->points == NULL || found->ends == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static void rings_close(rings *found) {
    PyMem_Free(found->points);
    PyMem_Free(found->ends);
    found->points = NULL;
    found->ends = NULL;
}

static int rings_grow(rings *found) {
    rings_close(found);
    return rings_open(found, found->n_points, found->n_rings);
}

static PyObject *rings_bytes(const rings *found) {
    return Py_BuildValue(
        "(y#y#)", (const char *)found->points, (Py_ssize_t)(found->n_points * 2 * sizeof(float)),
        (const char *)found->ends, (Py_ssize_t)(found->n_rings * sizeof(uint32_t)));
}

static PyObject *surface_polygons(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *logits, *result = NULL;
    bxs_surface surface;
    bxs_letterbox map;
    float box[4];
    void *scratch = NULL;
    rings found = {NULL, NULL, 0, 0, 0, 0};
    arrays held = {.count = 0};
    if (!PyArg_ParseTuple(args, SURFACE_FORMAT MAP_FORMAT "(ffff)", SURFACE_FIELDS(logits, surface),
                          MAP_FIELDS(map), &box[0], &box[1], &box[2], &box[3])) {
        return NULL;
    }
    if (hold_surface(&held, logits, &surface) != 0 || rings_open(&found, 256, 16) != 0) {
        goto release;
    }
    size_t size = bxs_surface_polygons_scratch_size(&surface.region);
    scratch = PyMem_Malloc(size);
    if (scratch == NULL) {
        PyErr_NoMemory();
        goto release;
    }
    bxs_status status;
    do {
        Py_BEGIN_ALLOW_THREADS;
        status =
            bxs_surface_polygons(&surface, &map, box, scratch, size, found.points, found.point_room,
                                 found.ends, found.ring_room, &found.n_points, &found.n_rings);
        Py_END_ALLOW_THREADS;
        if (status == BXS_ERROR_ROOM && rings_grow(&found) != 0) {
            goto release;
        }
    } while (status == BXS_ERROR_ROOM);
    result = status == BXS_OK ? rings_bytes(&found) : raise_status(status);
release:
    rings_close(&found);
    PyMem_Free(scratch);
    release_arrays(&held);
    return result;
}

static PyObject *masks_scratch_size(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *object;
    bxs_letterbox map;
    if (!PyArg_ParseTuple(args, "O" MAP_FORMAT, &object, MAP_FIELDS(map))) {
        return NULL;
    }
    const bxs_model *model = get_model(object);
    return model == NULL ? NULL : PyLong_FromSize_t(bxs_masks_scratch_size(model, &map));
}

static PyObject *masks(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *model_object, *parameters, *features, *candidate_object, *scratch_object;
    PyObject *instance_object, *text_object, *result = NULL;
    Py_ssize_t slots, n;
    int by_slot;
    double confidence, budget_ms = INFINITY;
    bxs_letterbox map;
    bxs_mask_inputs inputs;
    arrays held = {.count = 0};
    if (!PyArg_ParseTuple(args, "OOOnp" MAP_FORMAT "OndOOO|d", &model_object, &parameters,
                          &features, &slots, &by_slot, MAP_FIELDS(map), &candidate_object, &n,
                          &confidence, &scratch_object, &instance_object, &text_object,
                          &budget_ms)) {
        return NULL;
    }
    alarm_clock clock;
    bxs_deadline storage;
    const bxs_deadline *deadline = start_deadline(budget_ms, &clock, &storage);
    const bxs_model *model = get_model(model_object);
    if (model == NULL) {
        return NULL;
    }
    if (n < 0) {
        return raise_status(BXS_ERROR_SIZE);
    }
    if (hold_inputs(&held, model, parameters, features, slots, by_slot,
                    map.height / model->mask_stride, map.width / model->mask_stride,
                    &inputs) != 0) {
        goto release;
    }
    const void *candidates = hold_array(&held, candidate_object, "candidates", 'B',
                                        (size_t)n * sizeof(bxs_candidate), 0);
    if (candidates == NULL) {
        goto release;
    }
    void *scratch = hold_array(&held, scratch_object, "scratch", 'B', 0, PyBUF_WRITABLE);
    size_t scratch_size = scratch == NULL ? 0 : held_bytes(&held);
    void *instances = scratch == NULL
                          ? NULL
                          : hold_array(&held, instance_object, "instances", 'B', 0, PyBUF_WRITABLE);
    size_t room = instances == NULL ? 0 : held_bytes(&held) / sizeof(bxs_instance);
    void *text =
        instances == NULL ? NULL : hold_array(&held, text_object, "text", 'B', 0, PyBUF_WRITABLE);
    if (text == NULL) {
        goto release;
    }
    size_t text_room = held_bytes(&held), n_instances = 0, text_size = 0;
    bxs_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = bxs_masks(model, &inputs, &map, (const bxs_candidate *)candidates, (size_t)n,
                       confidence, deadline, scratch, scratch_size, (bxs_instance *)instances, room,
                       &n_instances, (char *)text, text_room, &text_size);
    Py_END_ALLOW_THREADS;
    result = status == BXS_OK || status == BXS_ERROR_DEADLINE
                 ? Py_BuildValue("(nnO)", (Py_ssize_t)n_instances, (Py_ssize_t)text_size,
                                 status == BXS_OK ? Py_True : Py_False)
                 : raise_status(status);
release:
    release_arrays(&held);
    return result;
}

/* ---------------------------------------------------------------- run-length text */

static PyObject *rle_encode(PyObject *Py_UNUSED(module), PyObject *object) {
    Py_buffer image;
    uint32_t height, width, channels, area = 0;
    size_t row_stride, size, length = 0;
    PyObject *result = NULL;
    if (get_image(object, &image, &height, &width, &channels, &row_stride, &size) != 0) {
        return NULL;
    }
    if (channels != 1 || row_stride != width) {
        PyErr_SetString(PyExc_ValueError, "a mask must be a contiguous (H, W) array of bytes");
        goto release;
    }
    size_t room = bxs_rle_text_size(height, width);
    char *text = (char *)PyMem_Malloc(room);
    if (text == NULL) {
        PyErr_NoMemory();
        goto release;
    }
    bxs_status status;
    Py_BEGIN_ALLOW_THREADS status =
        bxs_rle_encode((const uint8_t *)image.buf, height, width, text, room, &length, &area);
    Py_END_ALLOW_THREADS result = status == BXS_OK
                                      ? PyBytes_FromStringAndSize(text, (Py_ssize_t)length)
                                      : raise_status(status);
    PyMem_Free(text);
release:
    PyBuffer_Release(&image);
    return result;
}

static PyObject *rle_paint(PyObject *Py_UNUSED(module), PyObject *args) {
    const char *text;
    Py_ssize_t length;
    unsigned int height, width;
    bxs_region window;
    unsigned char value;
    PyObject *out_object, *result = NULL;
    arrays held = {.count = 0};
    if (!PyArg_ParseTuple(args, "y#II" REGION_FORMAT "bO", &text, &length, &height, &width,
                          REGION_FIELDS(window), &value, &out_object)) {
        return NULL;
    }
    uint8_t *out = (uint8_t *)hold_array(&held, out_object, "out", 'B', 0, PyBUF_WRITABLE);
    if (out != NULL) {
        size_t row_stride = window.x1 > window.x0 ? window.x1 - window.x0 : 0;
        size_t room = held_bytes(&held);
        bxs_status status;
        Py_BEGIN_ALLOW_THREADS status = bxs_rle_paint(text, (size_t)length, height, width, window,
                                                      value, out, row_stride, room);
        Py_END_ALLOW_THREADS result = status == BXS_OK ? Py_NewRef(Py_None) : raise_status(status);
    }
    release_arrays(&held);
    return result;
}

static PyObject *rle_measure(PyObject *Py_UNUSED(module), PyObject *args) {
    const char *text;
    Py_ssize_t length;
    unsigned int height, width;
    uint32_t area;
    bxs_region box;
    if (!PyArg_ParseTuple(args, "y#II", &text, &length, &height, &width)) {
        return NULL;
    }
    bxs_status status = bxs_rle_measure(text, (size_t)length, height, width, &area, &box);
    return status == BXS_OK ? Py_BuildValue("(IN)", area, region_tuple(&box))
                            : raise_status(status);
}

typedef bxs_status (*window_function)(const char *, size_t, uint32_t, uint32_t, bxs_region,
                                      uint8_t *, size_t);

static PyObject *draw_window(PyObject *args, window_function function) {
    const char *text;
    Py_ssize_t length;
    unsigned int height, width;
    bxs_region window;
    PyObject *out_object, *result = NULL;
    arrays held = {.count = 0};
    if (!PyArg_ParseTuple(args, "y#II" REGION_FORMAT "O", &text, &length, &height, &width,
                          REGION_FIELDS(window), &out_object)) {
        return NULL;
    }
    uint8_t *out = (uint8_t *)hold_array(&held, out_object, "out", 'B', 0, PyBUF_WRITABLE);
    if (out != NULL) {
        size_t room = held_bytes(&held);
        bxs_status status;
        Py_BEGIN_ALLOW_THREADS;
        status = function(text, (size_t)length, height, width, window, out, room);
        Py_END_ALLOW_THREADS;
        result = status == BXS_OK ? Py_NewRef(Py_None) : raise_status(status);
    }
    release_arrays(&held);
    return result;
}

static PyObject *rle_bytes(PyObject *Py_UNUSED(module), PyObject *args) {
    return draw_window(args, bxs_rle_bytes);
}

static PyObject *rle_bits(PyObject *Py_UNUSED(module), PyObject *args) {
    return draw_window(args, bxs_rle_bits);
}

static PyObject *label_image_scratch_size(PyObject *Py_UNUSED(module), PyObject *args) {
    unsigned int height, width;
    if (!PyArg_ParseTuple(args, "II", &height, &width)) {
        return NULL;
    }
    return PyLong_FromSize_t(bxs_label_image_scratch_size(height, width));
}

static PyObject *label_image(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *texts, *scratch_object, *out_object, *result = NULL;
    unsigned int height, width;
    arrays held = {.count = 0};
    if (!PyArg_ParseTuple(args, "O!IIOO", &PyTuple_Type, &texts, &height, &width, &scratch_object,
                          &out_object)) {
        return NULL;
    }
    const Py_ssize_t n = PyTuple_Size(texts);
    bxs_text *masks = (bxs_text *)PyMem_Calloc((size_t)n + 1, sizeof *masks);
    if (masks == NULL) {
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        char *text;
        Py_ssize_t length;
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(texts, i), &text, &length) != 0) {
            goto release;
        }
        masks[i].text = text;
        masks[i].length = (size_t)length;
    }
    void *scratch = hold_array(&held, scratch_object, "scratch", 'B', 0, PyBUF_WRITABLE);
    size_t scratch_size = scratch == NULL ? 0 : held_bytes(&held);
    void *out =
        scratch == NULL ? NULL : hold_array(&held, out_object, "out", 'B', 0, PyBUF_WRITABLE);
    if (out == NULL) {
        goto release;
    }
    const Py_buffer *view = &held.views[held.count - 1];
    const int is_u16 = view->itemsize == 2;
    if (view->format == NULL || view->format[0] != (is_u16 ? 'H' : 'B') || view->format[1] != 0) {
        PyErr_Format(PyExc_ValueError, "out must be uint8 or uint16, got format %s",
                     view->format ? view->format : "none");
        goto release;
    }
    size_t room = held_bytes(&held) / (size_t)view->itemsize;
    bxs_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = is_u16 ? bxs_label_image_u16(masks, (size_t)n, height, width, scratch, scratch_size,
                                          (uint16_t *)out, width, room)
                    : bxs_label_image_u8(masks, (size_t)n, height, width, scratch, scratch_size,
                                         (uint8_t *)out, width, room);
    Py_END_ALLOW_THREADS;
    result = status == BXS_OK ? Py_NewRef(Py_None) : raise_status(status);
release:
    release_arrays(&held);
    PyMem_Free(masks);
    return result;
}

static PyObject *rle_polygons(PyObject *Py_UNUSED(module), PyObject *args) {
    const char *text;
    Py_ssize_t length;
    unsigned int height, width;
    uint32_t area;
    bxs_region box;
    if (!PyArg_ParseTuple(args, "y#II", &text, &length, &height, &width)) {
        return NULL;
    }
    bxs_status status = bxs_rle_measure(text, (size_t)length, height, width, &area, &box);
    if (status != BXS_OK) {
        return raise_status(status);
    }
    if (area == 0) {
        return Py_BuildValue("(y#y#)", "", (Py_ssize_t)0, "", (Py_ssize_t)0);
    }
    PyObject *result = NULL;
    rings found = {NULL, NULL, 0, 0, 0, 0};
    size_t size = bxs_rle_polygons_scratch_size(&box);
    void *scratch = PyMem_Malloc(size);
    if (scratch == NULL) {
        return PyErr_NoMemory();
    }
    if (rings_open(&found, 1024, 16) != 0) {
        goto release;
    }
    do {
        Py_BEGIN_ALLOW_THREADS;
        status = bxs_rle_polygons(text, (size_t)length, height, width, box, scratch, size,
                                  found.points, found.point_room, found.ends, found.ring_room,
                                  &found.n_points, &found.n_rings);
        Py_END_ALLOW_THREADS;
        if (status == BXS_ERROR_ROOM && rings_grow(&found) != 0) {
            goto release;
        }
    } while (status == BXS_ERROR_ROOM);
    result = status == BXS_OK ? rings_bytes(&found) : raise_status(status);
release:
    rings_close(&found);
    PyMem_Free(scratch);
    return result;
}

/* ---------------------------------------------------------------- module */

static PyMethodDef functions[] = {
    {"simd_levels", simd_levels, METH_NOARGS, "-> names of levels 1, 2, ... of this machine"},
    {"letterbox_fit", letterbox_fit, METH_VARARGS, "frame h, w, input h, w -> map"},
    {"letterbox_short_long", letterbox_short_long, METH_VARARGS,
     "frame h, w, short, long, divisor -> map"},
    {"letterbox_scratch_size", letterbox_scratch_size, METH_VARARGS, "map -> bytes"},
    {"letterbox_rgb8", letterbox_rgb8, METH_VARARGS,
     "frame, format, map, padding, scratch, out, simd, yuv"},
    {"letterbox_f32", letterbox_f32, METH_VARARGS,
     "frame, format, map, padding, mean, std, scratch, out, simd, yuv"},
    {"resize_scratch_size", resize_scratch_size, METH_VARARGS, "channels, new_width -> bytes"},
    {"resize_u8", resize_u8, METH_VARARGS, "image, new_height, new_width, scratch, out"},
    {"make_model", make_model, METH_VARARGS, "description -> model"},
    {"parameter_count", parameter_count, METH_O, "model -> P"},
    {"location_count", location_count, METH_VARARGS, "model, height, width -> L"},
    {"scan_scratch_size", scan_scratch_size, METH_O, "model -> bytes"},
    {"scan_dense", scan_dense, METH_VARARGS,
     "model, class_logits, quality_logits, boxes, map, scratch, out -> n"},
    {"select_scratch_size", select_scratch_size, METH_O, "model -> bytes"},
    {"select_dense", select_dense, METH_VARARGS,
     "model, class_logits, quality_logits, boxes, map, scratch, out, budget_ms -> n, complete"},
    {"select_topk_scratch_size", select_topk_scratch_size, METH_O, "model -> bytes"},
    {"select_topk", select_topk, METH_VARARGS,
     "model, scores, labels, boxes, locations, levels, map, scratch, out, budget_ms -> n, "
     "complete"},
    {"nms_scratch_size", nms_scratch_size, METH_VARARGS, "n, class_count -> bytes"},
    {"nms", nms, METH_VARARGS,
     "boxes, scores, classes, class_count, iou, score, max_keep, scratch, keep, simd -> n"},
    {"cut_box", cut_box, METH_VARARGS,
     "box, map, mask_stride -> input box, frame box, pixels, cells"},
    {"mask_head_scratch_size", mask_head_scratch_size, METH_O, "model -> bytes"},
    {"mask_head", mask_head, METH_VARARGS,
     "model, parameters, features, slots, by_slot, rows, columns, candidate, region, scratch, out"},
    {"mask_score", mask_score, METH_VARARGS, "surface, box -> score"},
    {"surface_scratch_size", surface_scratch_size, METH_VARARGS,
     "frame height, frame width, rows -> bytes"},
    {"surface_text_size", surface_text_size, METH_VARARGS, "map, rows -> bytes"},
    {"surface_rle", surface_rle, METH_VARARGS,
     "surface, map, pixels, scratch, text, simd -> length, area"},
    {"surface_bytes", surface_bytes, METH_VARARGS, "surface, map, pixels, scratch, out, simd"},
    {"surface_bits", surface_bits, METH_VARARGS, "surface, map, pixels, scratch, out, simd"},
    {"surface_polygons", surface_polygons, METH_VARARGS,
     "surface, map, frame box -> float32 points, uint32 ends"},
    {"masks_scratch_size", masks_scratch_size, METH_VARARGS, "model, map -> bytes"},
    {"masks", masks, METH_VARARGS,
     "model, parameters, features, slots, by_slot, map, candidates, n, confidence, scratch, "
     "instances, text, budget_ms -> n, text size, complete"},
    {"rle_encode", rle_encode, METH_O, "mask -> text"},
    {"rle_paint", rle_paint, METH_VARARGS, "text, height, width, window, value, out"},
    {"rle_measure", rle_measure, METH_VARARGS, "text, height, width -> area, box"},
    {"rle_bytes", rle_bytes, METH_VARARGS, "text, height, width, window, out"},
    {"rle_bits", rle_bits, METH_VARARGS, "text, height, width, window, out"},
    {"rle_polygons", rle_polygons, METH_VARARGS,
     "text, height, width -> float32 points, uint32 ends"},
    {"label_image_scratch_size", label_image_scratch_size, METH_VARARGS, "height, width -> bytes"},
    {"label_image", label_image, METH_VARARGS, "texts, height, width, scratch, out"},
    {NULL, NULL, 0, NULL},
};

static int add_constants(PyObject *native) {
    return PyModule_AddIntConstant(native, "CANDIDATE_BYTES", (long)sizeof(bxs_candidate)) != 0 ||
                   PyModule_AddIntConstant(native, "INSTANCE_BYTES", (long)sizeof(bxs_instance)) !=
                       0 ||
                   PyModule_AddIntConstant(native, "MAX_SIDE", (long)BXS_MAX_SIDE) != 0
               ? -1
               : 0;
}

static PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native", "The native runtime.", 0, functions, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *native = PyModule_Create(&module);
    if (native != NULL && add_constants(native) != 0) {
        Py_DECREF(native);
        return NULL;
    }
    return native;
}
