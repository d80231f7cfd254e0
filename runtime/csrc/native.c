/* boxseg.runtime._native: the C library for Python, through the buffer protocol.
 *
 * Arrays are any objects with buffers; this file checks their type and room, releases the GIL and
 * calls the library. Errors become ValueError with the status code's name. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "boxseg.h"

static PyObject *raise_status(bxs_status status) {
    PyErr_Format(PyExc_ValueError, "%s: %s", bxs_status_name(status), bxs_status_meaning(status));
    return NULL;
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

static PyObject *letterbox_rgb8(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *frame_object, *scratch_object, *out_object, *result = NULL;
    Py_buffer image, scratch, out;
    bxs_letterbox map;
    bxs_frame frame;
    unsigned char padding[3];
    uint32_t channels;
    int reversed;
    if (!PyArg_ParseTuple(args, "Op" MAP_FORMAT "(bbb)OO", &frame_object, &reversed,
                          MAP_FIELDS(map), &padding[0], &padding[1], &padding[2], &scratch_object,
                          &out_object)) {
        return NULL;
    }
    if (get_image(frame_object, &image, &frame.height, &frame.width, &channels, &frame.row_stride,
                  &frame.size) != 0) {
        return NULL;
    }
    if (channels != 1 && channels != 3) {
        PyErr_Format(PyExc_ValueError, "a frame must have 1 or 3 channels, got %u", channels);
        goto release_image;
    }
    frame.data = (const uint8_t *)image.buf;
    frame.format = channels == 1 ? BXS_MONO8 : reversed ? BXS_BGR8 : BXS_RGB8;
    if (get_bytes(scratch_object, &scratch) != 0) {
        goto release_image;
    }
    if (get_bytes(out_object, &out) != 0) {
        goto release_scratch;
    }
    bxs_status status;
    Py_BEGIN_ALLOW_THREADS status =
        bxs_letterbox_rgb8(&frame, &map, padding, scratch.buf, (size_t)scratch.len,
                           (uint8_t *)out.buf, (size_t)out.len);
    Py_END_ALLOW_THREADS result = status == BXS_OK ? Py_NewRef(Py_None) : raise_status(status);
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

/* ---------------------------------------------------------------- module */

static PyMethodDef functions[] = {
    {"letterbox_fit", letterbox_fit, METH_VARARGS, "frame h, w, input h, w -> map"},
    {"letterbox_short_long", letterbox_short_long, METH_VARARGS,
     "frame h, w, short, long, divisor -> map"},
    {"letterbox_scratch_size", letterbox_scratch_size, METH_VARARGS, "map -> bytes"},
    {"letterbox_rgb8", letterbox_rgb8, METH_VARARGS, "frame, reversed, map, padding, scratch, out"},
    {"resize_scratch_size", resize_scratch_size, METH_VARARGS, "channels, new_width -> bytes"},
    {"resize_u8", resize_u8, METH_VARARGS, "image, new_height, new_width, scratch, out"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native", "The native runtime.", 0, functions, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) {
    return PyModuleDef_Init(&module);
}
